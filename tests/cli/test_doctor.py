"""`protostar doctor` names each cause and its remedy; every cause is produced on real parts."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import pytest
import redis
from protostar_client import keys

from models.database import connect
from protostar.cli.checks.environment import examine
from protostar.cli.checks.finding import Finding
from protostar.cli.checks.run import CHECKS, diagnose
from protostar.settings import CorpusSettings, load
from rag.corpus.chunk import ChunkSettings
from rag.index.reindex import reindex
from rag.providers import ProviderError
from rag.providers.embedder import embedding
from stack.places import Account, temporary_base_folder
from stack.postgres import Postgres
from stack.redis import Redis
from tests.support.stack_under_test import Stack, clean_environment, until

NOWHERE = {"REDIS_URL": "redis://127.0.0.1:1/0", "DATABASE_URL": "postgres://127.0.0.1:1/none"}


class Report:
    """What the doctor found."""

    def __init__(self, findings: list[Finding]) -> None:
        self.findings = findings

    def of(self, check: str) -> list[Finding]:
        found = [finding for finding in self.findings if finding.check == check]
        assert found, f"nothing of {check}: {self.findings}"
        return found

    def one(self, check: str, state: str) -> Finding:
        """The only finding of a check in this state."""
        [found] = [finding for finding in self.of(check) if finding.state == state] or self.of(check)
        assert found.state == state, found
        return found

    def problem(self, check: str, *causes: str, remedy: str) -> None:
        """The check names this cause, and this remedy."""
        self.expect(check, "problem", *causes, remedy=remedy)

    def expect(self, check: str, state: str, *causes: str, remedy: str = "") -> None:
        named = [
            finding
            for finding in self.of(check)
            if finding.state == state and all(cause in finding.says for cause in causes) and remedy in finding.remedy
        ]
        assert named, f"{state} {causes} {remedy!r} is not in {self.of(check)}"

    def has_problem(self, check: str, cause: str) -> bool:
        return any(f.check == check and f.state == "problem" and cause in f.says for f in self.findings)


async def look(monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str], *, model: bool = False) -> Report:
    for name in os.environ.keys() - clean_environment().keys():
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Report(await diagnose(asks_models=model))


# Settings


async def test_every_wrong_setting_is_named_at_once_and_the_rest_is_checked_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wrong = {
        "REDIS_URL": "http://localhost",
        "DATABASE_URL": "postgres://127.0.0.1:1/x",
        "OPENAI_API_KEY": "sk-secret한글",
        "PROTOSTAR_MAX_JOBS": "many",
        "PROTOSTAR_CHUNK_OVERLAP": "300",
        "PROTOSTAR_MAX_OUTPUT_TOKENS": "9000",
        "PROTOSTAR_CORPUS_DIR": str(tmp_path),
    }
    report = await look(monkeypatch, wrong, model=True)
    report.problem("settings", "PROTOSTAR_CHAT_MODEL is not set", remedy="set it")
    for variable in (
        *("REDIS_URL", "OPENAI_API_KEY", "PROTOSTAR_MAX_JOBS", "PROTOSTAR_CHUNK_OVERLAP"),
        "PROTOSTAR_MAX_OUTPUT_TOKENS",
    ):
        report.expect("settings", "problem", variable)
    assert len(report.of("settings")) == 6
    assert "secret" not in str(report.findings)
    report.expect("workers", "skipped", "not checked: REDIS_URL is wrong")
    report.expect("model", "skipped", "not checked: PROTOSTAR_CHAT_MODEL is wrong")
    report.problem("postgres", "unreachable", remedy="DATABASE_URL")
    report.problem("corpus", "is empty", remedy="Markdown")


def test_a_default_in_the_place_of_a_wrong_value_conflicts_with_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROTOSTAR_CHAT_MODEL", "m")
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("PROTOSTAR_MAX_OUTPUT_TOKENS", "few")
    monkeypatch.setenv("PROTOSTAR_CONTEXT_WINDOW", "600")
    [problem] = examine().problems
    assert problem.startswith("PROTOSTAR_MAX_OUTPUT_TOKENS is wrong")


# Redis


@pytest.fixture(scope="module")
def careless_redis(account: Account | None) -> Iterator[str]:
    """A Redis that keeps nothing and evicts."""
    with temporary_base_folder(account) as base, CarelessRedis(base, account) as server:
        yield server.url


class CarelessRedis(Redis):
    def _command(self) -> list[str | Path]:
        return [*super()._command(), "--appendonly", "no", "--maxmemory-policy", "allkeys-lru"]


async def test_redis_without_aof_and_with_an_evicting_policy(
    careless_redis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = await look(monkeypatch, NOWHERE | {"REDIS_URL": careless_redis})
    report.expect("redis", "ok")
    report.problem("redis durability", "no append-only file", remedy="appendonly yes")
    report.problem("redis eviction", "allkeys-lru", remedy="maxmemory-policy noeviction")


async def test_redis_unreachable_hides_nothing_else(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.md").write_text("# A\n")
    places = {"DATABASE_URL": database_url, "PROTOSTAR_CORPUS_DIR": str(tmp_path)}
    report = await look(monkeypatch, places | {"REDIS_URL": "redis://:secret@127.0.0.1:1/0"})
    report.problem("redis", "Redis is unreachable", remedy="REDIS_URL")
    for check in ("redis version", "redis durability", "redis eviction", "workers", "jobs", "dead jobs", "pauses"):
        report.expect(check, "skipped", "not checked: Redis is unreachable")
    for check in ("postgres", "schema", "locale", "corpus", "outbox"):
        report.expect(check, "ok")
    assert "secret" not in str(report.findings)


async def test_a_password_that_redis_refuses(careless_redis: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with redis.Redis.from_url(careless_redis) as client:
        client.config_set("requirepass", "secret")
        try:
            report = await look(monkeypatch, NOWHERE | {"REDIS_URL": careless_redis})
        finally:
            client.config_set("requirepass", "")
    report.problem("redis", "refuses the credentials", remedy="password in REDIS_URL")


async def test_a_redis_of_an_old_version(careless_redis: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with older(careless_redis, tmp_path / "old.sock") as url:
        report = await look(monkeypatch, NOWHERE | {"REDIS_URL": url})
    report.problem("redis version", "Redis 5.0.9 is too old", remedy="6.2 or newer")


@asynccontextmanager
async def older(url: str, path: Path) -> AsyncIterator[str]:
    """The same Redis, which says on its way that it is an older one."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 20):
            writer.write(data.replace(b"redis_version:7.2.4", b"redis_version:5.0.9"))
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_unix_connection(url.removeprefix("unix://"))
        await asyncio.gather(pump(reader, server_writer), pump(server_reader, writer))

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield f"unix://{path}"
    finally:
        server.close()


async def test_servers_that_are_frozen(
    account: Account | None, postgres_server: Postgres, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with temporary_base_folder(account) as base, Redis(base, account) as server:
        server.freeze()
        postgres_server.freeze()
        try:
            report = await look(monkeypatch, {"REDIS_URL": server.url, "DATABASE_URL": database_url})
        finally:
            server.thaw()
            postgres_server.thaw()
    report.problem("redis", "unreachable: no answer", remedy="frozen")
    report.problem("postgres", "unreachable: no answer", remedy="frozen")
    assert {finding.check for finding in report.findings} == {check.name for check in CHECKS} - {"model"}


# PostgreSQL


async def test_postgres_unreachable_or_without_the_database(
    redis_url: str, postgres_server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = await look(monkeypatch, {"REDIS_URL": redis_url, "DATABASE_URL": "postgres://u:secret@127.0.0.1:1/x"})
    report.problem("postgres", "unreachable", remedy="DATABASE_URL")
    for check in ("schema", "locale", "pgvector", "index", "outbox"):
        report.expect(check, "skipped", "not checked: PostgreSQL is unreachable")
    report.expect("redis durability", "ok")
    assert "secret" not in str(report.findings)

    report = await look(monkeypatch, {"REDIS_URL": redis_url, "DATABASE_URL": postgres_server.url("nowhere")})
    report.problem("postgres", "does not exist", remedy="createdb")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("ENCODING 'UTF8' LOCALE_PROVIDER libc LOCALE 'C'", "LC_CTYPE is C"),
        ("ENCODING 'SQL_ASCII' LOCALE_PROVIDER libc LOCALE 'C'", "encoding is SQL_ASCII"),
    ],
)
async def test_a_database_that_is_not_migrated_of_a_wrong_locale_and_without_pgvector(
    postgres_server: Postgres, monkeypatch: pytest.MonkeyPatch, options: str, named: str
) -> None:
    name = f"bare_{uuid4().hex}"
    postgres_server.query("postgres", f"CREATE DATABASE {name} TEMPLATE template0 {options}")
    postgres_server.query("postgres", f"ALTER DATABASE {name} SET extension_control_path = '/nowhere'")
    report = await look(monkeypatch, NOWHERE | {"DATABASE_URL": postgres_server.url(name)})
    report.problem("schema", "not migrated", remedy="protostar migrate")
    report.problem("locale", "wrong locale", named, remedy="--locale=C.UTF-8")
    report.expect("pgvector", "note", "pgvector is missing", remedy="nothing")
    for check in ("index", "outbox"):
        report.expect(check, "skipped", "not checked: the database is not migrated")


# Models


@pytest.mark.parametrize("provider", ["openai", "openrouter"])
async def test_each_fault_of_a_provider(shared_stack: Stack, monkeypatch: pytest.MonkeyPatch, provider: str) -> None:
    faults: dict[str, dict[str, Any]] = {
        "refused-key": {"status": 401, "error": {"message": "Incorrect API key provided", "code": "invalid_api_key"}},
        "unknown": {"status": 404, "error": {"message": "The model `unknown` does not exist"}},
        "unknown-400": {"status": 400, "error": {"message": "unknown-400 is not a valid model ID"}},
        "no-credit": {"status": 402, "error": {"message": "Insufficient credits"}},
        "limited": {"status": 429, "error": {"message": "slow down"}},
        "down": {"status": 503, "error": {"message": "overloaded"}},
        "slow": {"first_delay_s": 2.2},
        "hangs": {"hold": "never"},
    }
    first, *others = faults
    faults["embeds"] = {"endpoint": "embeddings", "status": 404}
    shared_stack.model.script(*({"model": name, "times": None, **fault} for name, fault in faults.items()))
    key, url = f"{provider.upper()}_API_KEY", f"{provider.upper()}_BASE_URL"
    environment = {
        key: "sk-test-secret",
        url: shared_stack.model.base_url,
        "NO_PROXY": "127.0.0.1",
        "PROTOSTAR_PROVIDER": provider,
        "PROTOSTAR_CHAT_MODEL": first,
        "PROTOSTAR_FALLBACK_MODELS": ",".join([*others, "healthy"]),
        "PROTOSTAR_EMBEDDING_MODEL": "embeds",
    }
    report = await look(monkeypatch, NOWHERE | environment, model=True)
    report.problem("model refused-key", "the key is refused", remedy=key)
    report.problem("model unknown", "the model unknown is unknown", remedy="PROTOSTAR_FALLBACK_MODELS")
    report.problem("model unknown-400", "the model unknown-400 is unknown", remedy="PROTOSTAR_FALLBACK_MODELS")
    report.problem("model no-credit", "no credit", remedy="top it up")
    report.expect("model limited", "note", "asks to wait")
    report.problem("model down", "unreachable or down", remedy=url)
    assert "the provider is slow" in report.of("model slow")[0].says  # a note, or on a busy machine a problem
    report.problem("model hangs", "the provider is slow: no answer", remedy="status page")
    report.problem("model embeds", "the model embeds is unknown", remedy="PROTOSTAR_EMBEDDING_MODEL")
    assert not report.has_problem("model healthy", "")
    assert "sk-test-secret" not in str(report.findings)


async def test_a_provider_that_can_not_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "http://127.0.0.1:1/v1", "PROTOSTAR_CHAT_MODEL": "m"}
    report = await look(monkeypatch, NOWHERE | environment, model=True)
    report.problem("model m", "unreachable", remedy="OPENAI_BASE_URL")


# The corpus and its index


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every account may enter."""
    with TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


async def test_a_corpus_folder_that_is_missing_empty_or_unreadable(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = open_folder / "corpus"

    async def corpus() -> Finding:
        report = await look(monkeypatch, NOWHERE | {"PROTOSTAR_CORPUS_DIR": str(folder)})
        return report.one("corpus", "problem")

    assert "does not exist" in (await corpus()).says
    folder.mkdir()
    assert "is empty" in (await corpus()).says
    (folder / "a.txt").write_text("no Markdown")
    assert "no Markdown file" in (await corpus()).says
    (folder / "without").mkdir()
    assert "is empty: no Markdown file" in (await corpus()).says
    (folder / "a.md").write_text("# A\n")
    for locked in (folder / "locked", folder):
        locked.mkdir(exist_ok=True)
        locked.chmod(0)
        with as_a_user_without_rights():
            found = await corpus()
        locked.chmod(0o755)
        assert "can't be read" in found.says
        assert "allow" in found.remedy
        assert locked == folder or found.says.endswith(": locked")


@contextmanager
def as_a_user_without_rights() -> Iterator[None]:
    """Root reads everything."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


async def test_an_index_that_is_stale(shared_stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def index(**environment: str) -> Report:
        return await look(monkeypatch, shared_stack.environment | environment)

    (await index()).expect("index", "ok")
    (tmp_path / "new.md").write_text("# New\n")
    moved = {"PROTOSTAR_CORPUS_DIR": str(tmp_path)}
    (await index(**moved)).expect("index", "note", "a little stale (1 file new, 1 file gone: new.md", remedy="reindex")
    for_ever = {"PROTOSTAR_REINDEX_MINUTES": "0"}
    (await index(**moved, **for_ever)).problem("index", "is stale: 1 file new", remedy="protostar reindex")
    other = {"PROTOSTAR_CHUNK_TOKENS": "200"}
    (await index(**other, **for_ever)).problem("index", "is stale: it was made with other", remedy="protostar reindex")


async def test_an_index_that_is_not_there_whose_making_failed_or_whose_file_has_changed(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = await look(monkeypatch, stack.environment)
    report.problem("index", "there is no index", remedy="protostar reindex")

    stack.environment["PROTOSTAR_REINDEX_MINUTES"] = "0"
    how = ChunkSettings(400, 60, "test-model")
    async with connect(stack.database_url):
        await reindex(stack.corpus, settings=how)
    (await look(monkeypatch, stack.environment)).expect("index", "ok")

    (stack.corpus / "delivery.md").write_text("# Other\n\nAnother text.\n")
    report = await look(monkeypatch, stack.environment)
    report.problem("index", "is stale: 1 file changed: delivery.md", remedy="protostar reindex")

    stack.model.script({"endpoint": "embeddings", "status": 401, "times": None})
    monkeypatch.setenv("PROTOSTAR_EMBEDDING_MODEL", "embeds")
    async with connect(stack.database_url), embedding(load(CorpusSettings)) as embedder:
        with pytest.raises(ProviderError):
            await reindex(stack.corpus, settings=how, embedder=embedder)
    report = await look(monkeypatch, stack.environment | {"PROTOSTAR_EMBEDDING_MODEL": "embeds"})
    report.problem("index", "the last reindex failed", "401", remedy="protostar reindex")
    report.problem("index", "is stale: it was made with other", remedy="protostar reindex")


# Workers, jobs and the outbox


async def test_no_worker(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    job = await stack.ask("아무도 없나요?")
    await stack.rows(
        "INSERT INTO outbox_jobs (job_id, function, arguments, created_at) "
        "VALUES ('summary:1', 'summarize_message', '{}', now() - interval '1 minute')"
    )
    report = await look(monkeypatch, stack.environment)
    report.problem("workers", "no worker runs", remedy="arq arq_settings.WorkerSettings")
    report.problem("jobs", job.job_id, "stuck, because no worker takes anything", remedy="start one")
    report.problem("outbox", "the outbox grows: 1 follow-up jobs", "60 s", remedy="start one")


async def test_a_job_that_waits_a_job_that_is_stuck_and_a_worker_that_lives_but_does_nothing(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await stack.start_worker(PROTOSTAR_MAX_JOBS="1", PROTOSTAR_LEASE="120")
    stack.model.script({"pieces": ["가", "나"], "after": 1, "hold": "middle"})
    user = str(uuid4())
    running = await stack.ask("하나", user=user, session="a")
    await stack.until_said(running.job_id, "가")
    await stack.ask("둘", user=user, session="a")
    ready = await stack.ask("셋", user=user, session="b")

    report = await look(monkeypatch, stack.environment)
    report.expect("workers", "ok", "1 at work")
    report.expect("jobs", "ok", "none is stuck: 1 run, 1 are ready, 1 wait for their turn")
    report.expect(
        "jobs", "note", f"job {ready.job_id}: not stuck, waiting for one of the 1 slots", remedy="more workers"
    )

    await stack.redis.pexpire(f"arq:in-progress:{running.job_id}", 500_000)  # as after an hour
    report = await look(monkeypatch, stack.environment)
    report.problem("jobs", f"job {running.job_id} is stuck", "beyond its time", remedy="restart that worker")

    worker.send(signal.SIGSTOP)
    report = await until_found(stack, monkeypatch, "workers", "lives but does nothing")
    report.problem("workers", "its process has given no sign", remedy="restart it")
    report.problem("jobs", f"job {running.job_id} is stuck at worker", remedy="takes the job over")
    report.problem("jobs", f"job {ready.job_id}", "stuck", remedy="start one")


async def test_a_worker_whose_loop_is_blocked(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    await stack.start_worker(settings="tests.support.blocking_worker.WorkerSettings")
    job = await stack.redis.enqueue_job("block")
    assert job is not None
    report = await until_found(stack, monkeypatch, "workers", "lives but does nothing")
    report.problem("workers", "its loop has not looked into the queue", remedy="restart it")
    report.problem("jobs", f"job {job.job_id} is stuck at worker", remedy="restart that worker")


async def test_a_worker_whose_loop_runs_late(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    await stack.start_worker(settings="tests.support.blocking_worker.WorkerSettings", PROTOSTAR_REINDEX_MINUTES="0")
    job = await stack.redis.enqueue_job("block_for", 1.5)
    assert job is not None
    await stack.result(job.job_id)
    report = Report([])

    async def noted() -> bool:
        nonlocal report
        report = await look(monkeypatch, stack.environment)
        return any(f.check == "workers" and "was held up for 1" in f.says for f in report.findings)

    await until(noted, "the delay is noted", lambda: f"{report.findings}")


async def test_jobs_of_a_class_that_nobody_serves(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = await stack.start_worker(PROTOSTAR_SERVE="reindex", PROTOSTAR_LEASE="120")
    job = await stack.ask("누가 답하나요?")
    report = await look(monkeypatch, stack.environment)
    report.problem("jobs", f"job {job.job_id}", "no worker serves the class chat", remedy="PROTOSTAR_SERVE")

    worker.send(signal.SIGSTOP)
    another = await stack.redis.enqueue_job("reindex_corpus")
    assert another is not None
    report = await look(monkeypatch, stack.environment)
    report.problem("jobs", f"job {another.job_id}", "stuck, because", "takes", remedy="start")


async def until_found(stack: Stack, monkeypatch: pytest.MonkeyPatch, check: str, cause: str) -> Report:
    report = Report([])

    async def found() -> bool:
        nonlocal report
        report = await look(monkeypatch, stack.environment)
        return report.has_problem(check, cause)

    await until(found, cause, lambda: f"{report.findings}\n{stack.logs()}")
    return report


# The command


async def test_in_a_healthy_stack_all_is_ok(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    await stack.start_worker()

    async def indexed() -> object:
        return await stack.rows("SELECT 1 FROM reindex_runs WHERE ended_at IS NOT NULL")

    await until(indexed, "the corpus is indexed", stack.logs)
    code, printed, said = await stack.run("doctor")
    assert (code, said) == (0, ""), printed + said
    lines = printed.splitlines()
    assert len(lines) == len(CHECKS)
    # On a busy machine the model may really be slow.
    assert all(line.startswith(("ok  ", "note     model test-model: ")) for line in lines), printed
    assert "\x1b" not in printed
    assert [line[9:].split(":")[0] for line in lines] == [
        "model test-model" if check.name == "model" else check.name for check in CHECKS
    ]

    await stack.redis.xadd(keys.DEAD, {"data": "{}"})
    for is_open, state, says in (("0", "note", "is paused for"), ("1", "problem", "is down")):
        gate = {"until": str((time.time_ns() // 1_000_000) + 600_000), "reason": "rate_limited", "open": is_open}
        await stack.redis.hset(keys.gate("openai", "test-model"), mapping=gate)  # type: ignore[misc]
        report = await look(monkeypatch, stack.environment)
        report.expect("pauses", state, f"openai:test-model {says}", "rate_limited", remedy="nothing")
        report.expect("dead jobs", "note", "1 jobs were given up", remedy="protostar jobs --state dead")


async def test_problems_exit_with_1_and_as_json(stack: Stack) -> None:
    code, printed, said = await stack.run("doctor", "--json", "--no-model")
    assert (code, said) == (1, "")
    findings = [json.loads(line) for line in printed.splitlines()]
    assert all(finding.keys() == {"check", "state", "says", "remedy"} for finding in findings)
    assert not any(finding["check"].startswith("model") for finding in findings)
    assert {finding["check"] for finding in findings if finding["state"] == "problem"} == {"workers", "index"}
    assert stack.model.requests() == []
