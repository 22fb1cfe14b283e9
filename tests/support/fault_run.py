"""Runs the fault matrix; `python -m tests.support.fault_run` writes its table into `docs/faults.md`."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from uuid import uuid4

from models.migrate import migrate
from rag.providers import ProviderName
from stack.places import Account, server_account, temporary_base_folder
from stack.postgres import Postgres
from stack.redis import Redis
from tests.support.faults import (
    CASES,
    DATE_IN_2_S,
    FIRST_TOKEN_S,
    GROUPS,
    JOB_S,
    MAX_OUTPUT_TOKENS,
    STALL_S,
    Behaviour,
    Case,
    script_of,
)
from tests.support.model_control import ModelControl, running_model_server
from tests.support.stack_under_test import ROOT, Stack, text_of, until

ADAPTERS: Final[tuple[ProviderName, ...]] = ("openai", "openrouter")
EVERYTHING: Final = {(adapter, case.title) for adapter in ADAPTERS for case in CASES}
DEADLINE_S: Final = 120.0
SLOTS: Final = 6
CALM_SLOTS: Final = 2  # where the seconds are to be the provider's, and not those of a crowded machine
PAGE: Final = ROOT / "docs" / "faults.md"
HEADER: Final = "| the provider | the job ends with | requests | limit s | openai s | openrouter s |"
BEGIN, END = "<!-- matrix -->", "<!-- /matrix -->"

_CLOSED_PORT: Final = "http://127.0.0.1:1/v1"
_ATTEMPT_ENDED: Final = re.compile(r"attempt_ended job_id=(\S+) function=generate_chat .* ms=(\d+)")


@dataclass(frozen=True, slots=True)
class Seen:
    """The outcome of a case's job."""

    events: list[dict[str, Any]]
    requests: int
    messages: list[dict[str, Any]]
    result: dict[str, Any]
    slowest_s: float
    """Its longest attempt."""


Matrix = dict[tuple[ProviderName, str], Seen]


@contextmanager
def prepared_servers(account: Account | None, folder: Path) -> Iterator[tuple[Redis, Postgres, ModelControl]]:
    """Start Redis, PostgreSQL and a model server."""
    (folder / "corpus").mkdir()
    with (
        temporary_base_folder(account) as base,
        Redis(base, account) as redis,
        Postgres(base, account, durable=False) as postgres,
        running_model_server(folder) as model,
    ):
        postgres.create_database("empty")
        asyncio.run(migrate(postgres.url("empty")))
        yield redis, postgres, model


async def run(
    servers: tuple[Redis, Postgres, ModelControl],
    folder: Path,
    wanted: Collection[tuple[ProviderName, str]] = EVERYTHING,
    *,
    slots: int = SLOTS,
) -> Matrix:
    """Run the wanted cases (adapter and title) side by side."""
    parts = [(name, is_reachable) for name in ADAPTERS for is_reachable in (True, False)]
    found: Matrix = {}
    runs = [
        _run_part(servers, folder / str(number), number, *part, wanted, slots)
        for number, part in enumerate(parts, start=1)
    ]
    for part in await asyncio.gather(*runs):
        found |= part
    return found


async def _run_part(
    servers: tuple[Redis, Postgres, ModelControl],
    folder: Path,
    number: int,
    name: ProviderName,
    is_reachable: bool,
    wanted: Collection[tuple[ProviderName, str]],
    slots: int,
) -> Matrix:
    async with _stack(servers, folder, number, name, is_reachable) as stack:
        await _start_worker(stack, slots)
        cases = {
            f"{name}-{n}": case
            for n, case in enumerate(CASES)
            if case.is_reachable is is_reachable and (name, case.title) in wanted
        }
        for job_id, case in cases.items():
            await asyncio.to_thread(stack.model.script, *map(_dated, script_of(case, f"[{job_id}]")))
        for job_id in cases:
            await stack.ask(f"질문 [{job_id}]", user=str(uuid4()), job_id=job_id)
        attempts_s = await _until_all_ended(stack, set(cases))
        requests = await asyncio.to_thread(stack.model.requests, 1000)
        return {
            (name, case.title): Seen(
                events=await _all_events(stack, job_id),
                requests=sum(f"[{job_id}]" in str(request["body"]["messages"]) for request in requests),
                messages=await stack.messages(job_id),
                result=await stack.result(job_id),
                slowest_s=max(attempts_s[job_id]),
            )
            for job_id, case in cases.items()
        }


@asynccontextmanager
async def _stack(
    servers: tuple[Redis, Postgres, ModelControl], folder: Path, number: int, name: ProviderName, is_reachable: bool
) -> AsyncIterator[Stack]:
    """A worker with a Redis database and a PostgreSQL database of its own."""
    redis, postgres, model = servers
    await asyncio.to_thread(folder.mkdir)
    await asyncio.to_thread(postgres.create_database, f"faults_{number}", template="empty")
    stack = Stack(f"{redis.url}?db={number}", postgres.url(f"faults_{number}"), model, folder, folder.parent / "corpus")
    base_url = model.base_url if is_reachable else _CLOSED_PORT
    stack.environment |= {
        "PROTOSTAR_PROVIDER": name,
        f"{name.upper()}_BASE_URL": base_url,
        f"{name.upper()}_API_KEY": "sk-test-secret",
        "PROTOSTAR_FIRST_TOKEN_TIMEOUT": str(FIRST_TOKEN_S),
        "PROTOSTAR_STALL_TIMEOUT": str(STALL_S),
        "PROTOSTAR_JOB_TIMEOUT": str(JOB_S),
        "PROTOSTAR_MAX_OUTPUT_TOKENS": str(MAX_OUTPUT_TOKENS),
        "PROTOSTAR_REINDEX_MINUTES": "0",
        # Cases side by side ask one model: what one of them learns of it must not hold up the others.
        "PROTOSTAR_PROVIDER_WAIT": "0",
        "NO_PROXY": "*",
        "no_proxy": "*",
    }
    try:
        yield stack
    finally:
        for worker in stack.workers:
            worker.stop()
        await stack.disconnect()


async def _start_worker(stack: Stack, slots: int) -> None:
    await stack.start_worker(PROTOSTAR_MAX_JOBS=str(slots))
    await stack.result((await stack.ask("첫 질문은 연결을 연다")).job_id)


async def _until_all_ended(stack: Stack, job_ids: set[str]) -> dict[str, list[float]]:
    """Wait until every job is finished; the seconds of each job's attempts, as the worker's log has them."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        left = [job_id for job_id in job_ids if not await stack.redis.exists(f"arq:result:{job_id}")]
        if not left:
            break
        assert time.monotonic() < deadline, f"not ended: {sorted(left)}\n{stack.logs()}"
        await asyncio.sleep(0.1)
    attempts_s: dict[str, list[float]] = {}

    async def logged() -> bool:
        attempts_s.clear()
        for job_id, ms in _ATTEMPT_ENDED.findall(stack.workers[0].log.read_text()):
            attempts_s.setdefault(job_id, []).append(int(ms) / 1000)
        return job_ids <= attempts_s.keys()

    await until(logged, "every attempt is in the log", stack.logs)
    return attempts_s


async def _all_events(stack: Stack, job_id: str) -> list[dict[str, Any]]:
    """The whole stream, also what might follow an ending."""
    return [json.loads(fields[b"data"]) for _, fields in await stack.redis.xrange(f"chat:events:{job_id}")]


def _dated(behaviour: Behaviour) -> Behaviour:
    headers = behaviour.get("headers", {})
    if DATE_IN_2_S not in headers.values():
        return behaviour
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    return behaviour | {"headers": dict.fromkeys(headers, date)}


def table(matrix: Matrix) -> str:
    """The page's tables; the seconds are what was seen."""
    lines = []
    for group, cases in GROUPS.items():
        lines += [
            "",
            f"### {group}",
            "",
            "| the provider | the job ends with | requests | limit s | openai s | openrouter s |",
        ]
        lines += ["|---|---|---:|---:|---:|---:|", *(_row(case, matrix) for case in cases)]
    return "\n".join([*lines, ""])


def promise(case: Case) -> str:
    """What a row of the page promises, up to the seconds that were seen."""
    return f"| {case.title} | {case.outcome} | {case.requests} | {case.limit_s:g} |"


def _row(case: Case, matrix: Matrix) -> str:
    seen = (f"{matrix[name, case.title].slowest_s:.2f}" for name in ADAPTERS)
    return f"{promise(case)} {' | '.join(seen)} |"


def main() -> None:
    """Run the matrix and replace the page's tables."""
    with TemporaryDirectory() as folder, prepared_servers(server_account(), Path(folder)) as servers:
        matrix = asyncio.run(run(servers, Path(folder), slots=CALM_SLOTS))
    text = PAGE.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{table(matrix)}\n{END}{after}")
    for key, seen in matrix.items():
        print(*key, seen.events[-1].get("code") or text_of(seen.events)[:30], seen.requests, seen.slowest_s, sep=" | ")


if __name__ == "__main__":
    main()
