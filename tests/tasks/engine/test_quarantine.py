"""A job that kills its worker ends alone: suspects run one at a time on a worker, and pay for its death alone."""

from __future__ import annotations

from tests.tasks.engine.conftest import Places

POISON = "poison"


async def two_deaths(places: Places, *job_ids: str) -> None:
    """Enqueue jobs that run on two workers that die."""
    for job_id in job_ids:
        await places.enqueue(job_id)
    for worker in ("w1", "w2"):
        assert len(await places.claim(worker, chat=100)) == len(job_ids)
        assert await places.die(worker) == len(job_ids)


async def test_a_job_whose_worker_died_once_runs_beside_others(places: Places) -> None:
    for job_id in "abc":
        await places.enqueue(job_id)
    await places.claim("w1")
    await places.die("w1")
    assert await places.ids("w2") == ["a", "b", "c"]


async def test_after_two_deaths_a_worker_runs_one_of_the_suspects_at_a_time(places: Places) -> None:
    await two_deaths(places, "a", "b", "c")
    assert await places.ids("w3") == ["a"]
    assert await places.ids("w3") == []
    assert await places.ids("w4") == ["b"]
    [claim] = await places.claim("w5")
    assert await places.queue("w5").done(claim, result=None, result_ttl_ms=0)
    assert await places.ids("w5") == []


async def test_a_suspect_holds_up_no_other_job(places: Places) -> None:
    await two_deaths(places, "a", "b")
    await places.enqueue("other")
    assert await places.ids("w3") == ["a", "other"]


async def test_the_next_suspect_starts_when_the_first_one_ends(places: Places) -> None:
    await two_deaths(places, "a", "b", "c", "d")
    queue = places.queue("w3")
    [first] = await places.claim("w3")
    assert await queue.done(first, result=None, result_ttl_ms=0)
    [second] = await places.claim("w3")
    assert await queue.retry(second, delay_ms=60_000, spared=False, reason="again")
    [third] = await places.claim("w3")
    assert await queue.hand_over(third)
    [fourth] = await places.claim("w3")
    assert [claim.job_id for claim in (first, second, third, fourth)] == ["a", "b", "c", "c"]


async def test_a_death_costs_the_suspect_an_attempt_and_its_neighbours_none(places: Places) -> None:
    await two_deaths(places, "suspect")
    await places.enqueue("neighbour")
    assert await places.ids("w3") == ["neighbour", "suspect"]
    await places.die("w3")
    claims = {claim.job_id: claim for claim in await places.claim("w4")}
    assert (claims["suspect"].attempt, claims["suspect"].tries) == (4, 4)
    assert (claims["neighbour"].attempt, claims["neighbour"].tries) == (2, 1)


async def test_suspects_that_killed_again_come_last(places: Places) -> None:
    await two_deaths(places, "a", "b")
    assert await places.ids("w3") == ["a"]
    await places.die("w3")
    assert await places.ids("w4") == ["b"]


async def test_a_suspect_that_outlives_its_earlier_attempts_is_cleared(places: Places) -> None:
    await two_deaths(places, "a", "b")
    assert await places.ids("w3") == ["a"]
    await places.ran_for("a", 60_000)
    assert await places.ids("w3") == ["b"]
    assert (await places.record("a"))["deaths"] == "0"


async def test_a_suspect_is_not_cleared_before_it_has_run_as_long_as_it_did(places: Places) -> None:
    for job_id in "ab":
        await places.enqueue(job_id)
    for worker in ("w1", "w2"):
        await places.claim(worker)
        await places.ran_for("a", 20_000)
        await places.die(worker)
    assert await places.ids("w3") == ["a"]
    await places.ran_for("a", 21_000)
    assert await places.ids("w3") == []


async def test_how_long_a_suspect_ran_before_it_met_the_poison_does_not_matter(places: Places) -> None:
    for job_id in "ab":
        await places.enqueue(job_id)
    for worker, ran_ms in (("w1", 300_000), ("w2", 1000)):
        await places.claim(worker)
        await places.ran_for("a", ran_ms)
        await places.die(worker)
    assert await places.ids("w3") == ["a"]
    await places.ran_for("a", 6000)
    assert await places.ids("w3") == ["b"]


async def test_a_suspect_that_outlived_its_earlier_attempts_shares_the_death_with_its_neighbours(
    places: Places,
) -> None:
    await two_deaths(places, "suspect")
    await places.enqueue("neighbour")
    await places.claim("w3")
    await places.ran_for("suspect", 60_000)
    await places.die("w3")
    assert {claim.job_id: claim.tries for claim in await places.claim("w4")} == {"suspect": 4, "neighbour": 2}


async def test_a_worker_that_leaves_is_no_death(places: Places) -> None:
    await places.enqueue("a")
    for worker in ("w1", "w2", "w3"):
        await places.claim(worker)
        await places.die(worker, "leaving")
    assert "deaths" not in await places.record("a")


async def test_an_abort_ends_a_suspect_that_waits(places: Places) -> None:
    await two_deaths(places, "a", "b")
    assert await places.ids("w3") == ["a"]
    await places.redis.zadd("arq:abort", {"b": await places.now_ms()})
    _, [claim] = await places.queue("w3").aborts()
    assert (claim.job_id, claim.aborted) == ("b", True)
    assert await places.queue("w3").done(claim, result=None, result_ttl_ms=0)
    assert await places.ids("w4") == []
    assert await places.redis.hgetall("protostar:quarantined") == {b"w3": b"a"}  # type: ignore[misc]


async def test_twenty_neighbours_of_a_poison_job_all_end_and_the_poison_uses_up_its_attempts(places: Places) -> None:
    """Each round is a life of one worker: it claims, runs what it has, and dies where the poison is among that."""
    names = [f"answer-{number:02}" for number in range(20)]
    for name in [*names[:10], POISON, *names[10:]]:
        await places.enqueue(name)
    done: list[str] = []
    deaths = life = 0
    tries = 0
    while tries <= 5:
        life += 1
        worker = f"life-{life}"
        claims = await places.claim(worker, chat=100)
        assert claims
        poison = [claim for claim in claims if claim.job_id == POISON]
        if poison and (tries := poison[0].tries) <= 5:
            deaths += 1
            await places.die(worker)
            continue
        for claim in claims:
            assert claim.job_id == POISON or claim.tries <= 5
            assert await places.queue(worker).done(claim, result=None, result_ttl_ms=0)
            done.append(claim.job_id)
    assert deaths == 5
    assert sorted(done) == [*names, POISON]
