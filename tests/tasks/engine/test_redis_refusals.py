"""Redis servers that are there but refuse, and access rules that refuse what is not needed."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from uuid import uuid4

import pytest
from protostar_client import ChatClient, JobHandle, JobVanished
from redis.asyncio import Redis as AsyncRedis

from stack.places import Account
from stack.processes import Process
from tests.support.model_control import ModelControl
from tests.support.redis_servers import Sentinel, TcpRedis
from tests.support.stack_under_test import ROOT, Stack, clean_environment, until

BACK_WITHIN_S = 5.0
PASSWORD = "p@s/s"
MINIMAL_RULES = "~arq:* ~chat:* ~protostar:* &* +@all -@admin -@dangerous"
"""The rules of docs/production.md."""


class Pair:
    """A primary, its replica and a Sentinel."""

    def __init__(self, base: Path, account: Account | None) -> None:
        self.primary = TcpRedis(base, account, name="primary")
        self.replica = TcpRedis(base, account, "--replicaof", f"127.0.0.1 {self.primary.port}", name="replica")
        self.sentinel = Sentinel(base, account, self.primary)

    async def linked(self) -> None:
        """Wait until the replica follows and the Sentinel sees it."""

        async def is_linked() -> bool:
            replication = await asyncio.to_thread(self.replica.call, "INFO", "replication")
            replicas = await asyncio.to_thread(self.sentinel.call, "SENTINEL", "REPLICAS", "main")
            return replication["master_link_status"] == "up" and len(replicas) == 1 and "slave" in str(replicas)

        await until(is_linked, "the replica is linked")

    async def promoted(self) -> None:
        """Wait until the Sentinel names the replica as the primary."""

        async def is_promoted() -> bool:
            return await asyncio.to_thread(self.sentinel.primary_port) == self.replica.port

        await until(is_promoted, "the replica is promoted")


@pytest.fixture
def pair(base_folder: Path, account: Account | None) -> Iterator[Pair]:
    pair = Pair(base_folder, account)
    with ExitStack() as servers:
        for server in (pair.primary, pair.replica, pair.sentinel):
            servers.enter_context(server)
        yield pair


async def ask(client: ChatClient, number: int) -> JobHandle:
    return await client.enqueue(user_uuid=uuid4(), session_id="s", content=f"question {number}", job_id=f"j{number}")


async def is_answered(stack: Stack, number: int) -> None:
    async with ChatClient.connect(stack.redis_url) as client:
        result = await (await ask(client, number)).result(timeout_s=BACK_WITHIN_S)
    assert result.finish_reason == "stop"


async def test_a_demoted_primary_serves_again_seconds_after_its_promotion(
    base_folder: Path,
    account: Account | None,
    database_url: str,
    model_server: ModelControl,
    tmp_path: Path,
) -> None:
    (tmp_path / "corpus").mkdir()
    with TcpRedis(base_folder, account, name="primary") as server:
        stack = Stack(server.url, database_url, model_server, tmp_path, tmp_path / "corpus")
        try:
            await stack.start_worker(PROTOSTAR_REINDEX_MINUTES="0")
            async with ChatClient.connect(server.url) as client:
                await (await ask(client, 1)).result(timeout_s=20)
                server.call("REPLICAOF", "127.0.0.1", 1)
                waiting = asyncio.create_task(ask(client, 2))
                worker = stack.workers[0]

                async def refused() -> bool:
                    return "heartbeat_failed" in worker.log.read_text()

                await until(refused, "the worker is refused", stack.logs)
                assert not waiting.done()
                server.call("REPLICAOF", "NO", "ONE")
                async with asyncio.timeout(BACK_WITHIN_S):
                    await (await waiting).result(timeout_s=BACK_WITHIN_S)
        finally:
            await stack.close()


@pytest.mark.parametrize("fault", ["crash", "planned"])
async def test_a_failover_under_load_loses_no_job_that_the_new_primary_has(
    fault: str, pair: Pair, database_url: str, model_server: ModelControl, tmp_path: Path
) -> None:
    (tmp_path / "corpus").mkdir()
    stack = Stack(pair.sentinel.url, database_url, model_server, tmp_path, tmp_path / "corpus")
    try:
        await pair.linked()
        await stack.start_worker(PROTOSTAR_REINDEX_MINUTES="0", PROTOSTAR_MAX_JOBS="4")
        async with ChatClient.connect(pair.sentinel.url, patience_s=20) as client:
            asked = [asyncio.create_task(ask(client, number)) for number in range(20)]
            await (await asked[0]).result(timeout_s=20)
            if fault == "crash":
                pair.primary.kill()
            else:
                pair.sentinel.call("SENTINEL", "FAILOVER", "main")
            asked += [asyncio.create_task(ask(client, number)) for number in range(20, 40)]
            await pair.promoted()
            async with AsyncRedis(port=pair.replica.port) as new, asyncio.timeout(BACK_WITHIN_S):
                answered = 40
                while not await new.exists(f"arq:result:j{answered}"):  # what the former primary answers is lost
                    answered += 1
                    asked.append(asyncio.create_task(ask(client, answered)))
                    with suppress(JobVanished):
                        await (await asked[-1]).result()
            await asyncio.gather(*asked)
        async with AsyncRedis(port=pair.replica.port) as new:
            ids = {key.decode().rpartition(":")[2] for key in await new.keys("arq:job:j*")} | {f"j{answered}"}
            if fault == "crash":
                ids |= {f"j{number}" for number in range(20, 40)}

            async def all_ended() -> bool:
                return int(await new.zcard("arq:queue")) == 0

            await until(all_ended, "every job of the new primary ends", stack.logs)
            assert [job_id for job_id in ids if not await new.exists(f"arq:result:{job_id}")] == []
        rows = await stack.rows("SELECT job_id FROM messages WHERE role = 'assistant' GROUP BY 1 HAVING count(*) > 1")
        assert rows == []
    finally:
        await stack.close()


@pytest.fixture(params=["+@all -@dangerous ~* &*", MINIMAL_RULES], ids=["not_dangerous", "minimal"])
def guarded(request: pytest.FixtureRequest, base_folder: Path, account: Account | None) -> Iterator[TcpRedis]:
    """A Redis with a user `app` who may not do everything."""
    with TcpRedis(base_folder, account, name="guarded") as server:
        server.call("ACL", "SETUSER", "app", "on", f">{PASSWORD}", *request.param.split(), "-client|setname")
        yield server


async def test_a_user_without_dangerous_commands_serves_and_is_healthy(
    guarded: TcpRedis, database_url: str, model_server: ModelControl, tmp_path: Path
) -> None:
    (tmp_path / "corpus").mkdir()
    url = f"redis://app:p%40s%2Fs@127.0.0.1:{guarded.port}/0?socket_keepalive=true"
    stack = Stack(url, database_url, model_server, tmp_path, tmp_path / "corpus")
    try:
        await stack.start_worker(PROTOSTAR_REINDEX_MINUTES="0")
        await is_answered(stack, 1)
        check = Process(
            [sys.executable, "-m", "arq", "--check", "arq_settings.WorkerSettings"],
            log=tmp_path / "check.log",
            env=clean_environment() | stack.environment,
            cwd=ROOT,
        )
        await until(lambda: _ended(check), "the check ends", stack.logs)
        assert check.exit_code == 0, check.last_lines(20)
        assert not re.search("Traceback|_failed", stack.workers[0].log.read_text()), stack.logs()
        code, _, said = await stack.run("status")
        assert code == 0, said
    finally:
        await stack.close()


async def _ended(process: Process) -> bool:
    return not process.running
