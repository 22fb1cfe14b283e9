"""What a worker tells Prometheus, scraped from real ones; and that dashboard and alerts ask for nothing else."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import urllib.error
import urllib.request
from uuid import uuid4

from prometheus_client.parser import text_string_to_metric_families

from stack.postgres import Postgres
from tests.support.stack_under_test import ROOT, Stack, until

USAGE = {"prompt_tokens": 321, "completion_tokens": 54, "total_tokens": 375, "cost": 0.25}
GRAFANA = ROOT / "docs" / "grafana"

Samples = dict[str, list[tuple[dict[str, str], float]]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def scraped(port: int) -> Samples:
    def read() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as response:
            return str(response.read().decode())

    found: Samples = {}
    for family in text_string_to_metric_families(await asyncio.to_thread(read)):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def value(samples: Samples, name: str, **labels: str) -> float:
    """The sum of the samples with these labels."""
    return sum(number for named, number in samples.get(name, []) if labels.items() <= named.items())


def names_in(text: str) -> set[str]:
    return set(re.findall(r"\b(?:protostar|process)_[a-z_]+\b(?=[{\[) <]|$)", text, re.MULTILINE))


async def test_a_worker_counts_what_it_does_and_the_dashboard_asks_for_nothing_else(
    stack: Stack, postgres_server: Postgres
) -> None:
    port = free_port()
    await stack.start_worker(PROTOSTAR_METRICS_PORT=str(port))

    async def indexed() -> bool:
        return value(await scraped(port), "protostar_index_chunks") > 0

    await until(indexed, "the corpus is indexed", stack.logs)

    stack.model.script({"pieces": ["하나 ", "둘 ", "셋."], "usage": USAGE, "first_delay_s": 0.2})
    await stack.result((await stack.ask("임대 시간은?")).job_id)
    stack.model.script({"status": 401})
    await stack.result((await stack.ask("둘째")).job_id)
    stack.model.script({"status": 429, "headers": {"retry-after": "1"}, "times": None})
    limited = [await stack.ask("셋째"), await stack.ask("넷째")]

    async def waits() -> bool:
        return value(await scraped(port), "protostar_gate_waits_total", reason="limited") >= 1

    await until(waits, "what one was told holds for the other", stack.logs)
    stack.model.reset()
    stack.model.script({"pieces": ["네."], "times": 2})
    for job in limited:
        await stack.result(job.job_id)

    async def counted() -> Samples | None:
        samples = await scraped(port)
        done = value(samples, "protostar_attempts_total", function="generate_chat", outcome="done")
        return samples if done == 3 and value(samples, "protostar_running_turns") == 0 else None

    found: Samples = await until(counted, "three answers are counted, and none runs", stack.logs)
    expected = {
        ("protostar_attempts_total", "outcome", "provider_error"): 1,
        ("protostar_dead_letters_total", "code", "provider_error"): 1,
        ("protostar_model_errors_total", "code", "provider_error"): 1,
        ("protostar_cost_total", "model", "test-model"): 0.25,
        ("protostar_first_token_seconds_count", "model", "test-model"): 3,
    }
    assert {key: value(found, key[0], **{key[1]: key[2]}) for key in expected} == expected
    assert value(found, "protostar_first_token_seconds_sum") >= 0.2
    refused = value(found, "protostar_model_errors_total", code="rate_limited")
    assert value(found, "protostar_attempts_total", outcome="again:rate_limited") == refused >= 1
    assert value(found, "protostar_streamed_pieces_total") == 5
    assert value(found, "protostar_output_tokens_total") >= 54
    assert value(found, "protostar_prompt_tokens_sum") > 300
    assert value(found, "protostar_retrieval_seconds_count") >= 3
    assert value(found, "protostar_store_seconds_count") >= 3
    assert value(found, "protostar_answer_tokens_per_second_count") >= 1
    assert (value(found, "protostar_workers"), value(found, "protostar_stores_up")) == (1, 1)
    assert (value(found, "protostar_dead_letters_kept"), value(found, "protostar_queue_age_seconds")) == (1, 0)

    dashboard = json.loads((GRAFANA / "protostar.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    asked += [str(variable.get("definition", "")).replace(",", " ") for variable in dashboard["templating"]["list"]]
    asked += re.findall(r"expr: (.*)", (GRAFANA / "alerts.yaml").read_text())
    assert all(names_in(expression) for expression in asked if expression), asked
    assert names_in("\n".join(asked)) <= found.keys()
    for expression in asked:
        grouped = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", expression)))) - {"instance"}
        labels = {label for name in names_in(expression) for sample, _ in found[name] for label in sample}
        assert grouped <= labels, expression

    postgres_server.freeze()
    frozen = await scraped(port)
    postgres_server.thaw()
    assert value(frozen, "protostar_stores_up") == 0
    assert "protostar_outbox_jobs" not in frozen
    assert value(frozen, "protostar_attempts_total", outcome="done", function="generate_chat") == 3


async def test_a_worker_without_the_port_works(stack: Stack) -> None:
    port = free_port()
    setting = {"PROTOSTAR_METRICS_PORT": str(port), "PROTOSTAR_REINDEX_MINUTES": "0"}
    first = await stack.start_worker(**setting)
    stack.model.script({"pieces": ["반쯤 "], "hold": "half", "after": 1}, {"pieces": ["다 했습니다."]})
    job = await stack.ask("질문", user=str(uuid4()))
    await stack.until_said(job.job_id, "반쯤")
    second = await stack.start_worker(**setting)
    assert f"metrics_port_taken host=127.0.0.1 port={port}" in second.log.read_text()
    assert value(await scraped(port), "protostar_workers") == 2

    first.send(signal.SIGKILL)
    assert (await stack.result(job.job_id))["s"] is True


async def test_a_worker_whose_event_loop_is_held_up_is_not_healthy(stack: Stack) -> None:
    port = free_port()
    blocking = "tests.support.blocking_worker.WorkerSettings"
    setting = {"PROTOSTAR_METRICS_PORT": str(port), "PROTOSTAR_REINDEX_MINUTES": "0", "PROTOSTAR_LEASE": "2"}
    await stack.start_worker(settings=blocking, **setting)
    assert await health(port) == (200, "ok\n")

    # Shorter than half the lease: only the metric shows it.
    short = await stack.redis.enqueue_job("block_for", 0.6)
    assert short is not None
    await stack.result(short.job_id)
    assert (await health(port))[0] == 200
    assert value(await scraped(port), "protostar_event_loop_lag_seconds") > 0.3

    long = await stack.redis.enqueue_job("block_for", 12)
    assert long is not None

    async def is_unhealthy() -> bool:
        return (await health(port))[0] == 503

    await until(is_unhealthy, "the health route notices", stack.logs)
    assert "the event loop has not run for" in (await health(port))[1]

    async def key_is_gone() -> bool:
        return not await stack.redis.exists("arq:queue:health-check")

    await until(key_is_gone, "ARQ's health key expires", stack.logs)
    await stack.result(long.job_id)

    async def is_healthy() -> bool:
        return (await health(port))[0] == 200 and bool(await stack.redis.exists("arq:queue:health-check"))

    await until(is_healthy, "the worker is healthy again", stack.logs)


async def health(port: int) -> tuple[int, str]:
    """What the health route answers."""

    def read() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=30) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return await asyncio.to_thread(read)


async def test_an_address_that_is_not_this_machines_stops_the_worker(stack: Stack) -> None:
    worker = stack.launch(PROTOSTAR_METRICS_PORT="9464", PROTOSTAR_METRICS_HOST="192.0.2.1")

    async def over() -> bool:
        return not worker.running

    await until(over, "the worker gives up", stack.logs)
    [line] = worker.log.read_text().splitlines()
    assert worker.exit_code == 1
    assert "PROTOSTAR_METRICS_HOST is 192.0.2.1" in line
