"""The processes of the demo: Redis, PostgreSQL, a model server where the user has none, and the worker."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Self

from stack.errors import StackError
from stack.places import base_folder, server_account
from stack.postgres import Postgres
from stack.processes import Process, dying_with_us, wait_until
from stack.provider import local_environment, own_environment
from stack.redis import Redis

ROOT: Final = Path(__file__).resolve().parent.parent
SAMPLE_CORPUS: Final = ROOT / "corpus"
STATE: Final = ROOT / ".protostar"
_BIN: Final = Path(sys.executable).parent
_WORKER_STOP_S: Final = 15


@dataclass(frozen=True, slots=True)
class Parts:
    """Running servers and their addresses. `environment` has the variables that they add to the user's."""

    environment: dict[str, str]
    model_server_url: str | None
    base: Path

    @property
    def redis_url(self) -> str:
        """The URL for the client."""
        return self.environment["REDIS_URL"]

    @property
    def database_url(self) -> str:
        """The URL of the database."""
        return self.environment["DATABASE_URL"]

    def reindex(self, *, output: IO[str]) -> None:
        """Index the corpus, with a progress bar in this terminal and the result to `output`.

        Raises:
            StackError: it failed; it has said why.
        """
        output.flush()
        _protostar("reindex", self.environment, output=output)

    @contextmanager
    def worker(self, **environment: str) -> Iterator[Process]:
        """Run a worker, started with ARQ's own command; `environment` comes on top of the servers'."""
        worker = Process(
            [_BIN / "python", "-m", "arq", "arq_settings.WorkerSettings"],
            log=self.base / "worker.log",
            env=os.environ | self.environment | environment,
            cwd=ROOT,
        )
        try:
            yield worker
        finally:
            worker.stop(timeout_s=_WORKER_STOP_S)


@contextmanager
def running_parts(corpus: Path) -> Iterator[Parts]:
    """Start the servers on the state of earlier runs and migrate the database; stop them at the end.

    Raises:
        StackError: something is missing or did not start, or a demo is running already.
    """
    if not corpus.is_dir():
        raise StackError(f"{corpus} is not a folder; name one that holds Markdown files")
    model = own_environment(os.environ)
    account = server_account()
    with ExitStack() as stack:
        stack.enter_context(_only_one())
        base = base_folder(STATE, account)
        # First, because it takes longest to start.
        model_server = stack.enter_context(ModelServer(base)) if model is None else None
        redis = stack.enter_context(Redis(base, account))
        postgres = stack.enter_context(Postgres(base, account))
        environment = {
            "REDIS_URL": redis.url,
            "DATABASE_URL": _migrated_database(postgres, corpus),
            "PROTOSTAR_CORPUS_DIR": str(corpus),
        }
        url = model_server.wait_for_url() if model_server else None
        environment |= local_environment(url, os.environ) if url else model or {}
        yield Parts(environment, url, base)


def remove_state() -> None:
    """Remove what earlier runs have stored."""
    with _only_one():
        base = base_folder(STATE, server_account())
        for name in ("redis", "postgres"):
            shutil.rmtree(base / name, ignore_errors=True)


@contextmanager
def _only_one() -> Iterator[None]:
    """Hold the lock that allows one demo at a time; the kernel releases it when the process ends."""
    path = STATE / "lock"
    try:
        STATE.mkdir(mode=0o711, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise StackError(f"can't write to {STATE} ({error.strerror}); use a clone of your own") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip()
            raise StackError(f"a demo is running in this clone already (process {holder}); end that first") from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


class ModelServer:
    """The local model server, as a context that ends it."""

    def __init__(self, base: Path) -> None:
        self._port_file = base / "model-server.port"
        self._port_file.unlink(missing_ok=True)
        command: list[str | Path] = [_BIN / "python", "-m", "stack.model_server"]
        command += ["--port", "0", "--port-file", self._port_file]
        self._process = Process(command, log=base / "model-server.log", cwd=ROOT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.stop()

    def wait_for_url(self) -> str:
        """Its address, once it listens.

        Raises:
            StackError: it ended, or does not listen after 30 s.
        """
        listens = self._port_file.exists
        wait_until(lambda: listens() or not self._process.running, timeout_s=30, what="the model server starts")
        if not listens():
            raise StackError(f"the local model server ended:\n{self._process.last_lines()}")
        return f"http://127.0.0.1:{self._port_file.read_text().strip()}"


def _migrated_database(postgres: Postgres, corpus: Path) -> str:
    """The URL of a database of `corpus`'s own, so that a user's folder does not displace the sample."""
    name = "protostar"
    if corpus != SAMPLE_CORPUS:
        name = f"protostar_{hashlib.sha256(os.fsencode(corpus)).hexdigest()[:12]}"
    if name not in postgres.databases():
        postgres.create_database(name)
    url = postgres.url(name)
    if not _is_migrated(postgres, name):  # asked here, because the command takes a second to start
        _protostar("migrate", {"DATABASE_URL": url}, output=sys.stderr)
    return url


def _is_migrated(postgres: Postgres, database: str) -> bool:
    migrations = {file.stem for file in (ROOT / "models/migrations").glob("[0-9]*.py")}
    try:
        return migrations <= set(postgres.query(database, "SELECT name FROM tortoise_migrations"))
    except StackError:
        return False


def _protostar(name: str, environment: dict[str, str], *, output: IO[str]) -> None:
    command = dying_with_us([_BIN / "protostar", name])
    done = subprocess.run(command, env=os.environ | environment, cwd=ROOT, stdout=output, check=False)
    if done.returncode != 0:
        raise StackError(f"protostar {name} failed; the lines above say why")
