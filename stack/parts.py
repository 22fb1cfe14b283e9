"""What the demo runs: Redis, PostgreSQL, a model server where the user has none, and the worker."""

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
from typing import IO, Final

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
    """Running servers, and how to reach them. `environment` is what they add to the user's."""

    environment: dict[str, str]
    model_server_url: str | None
    base: Path

    @property
    def redis_url(self) -> str:
        """For the client."""
        return self.environment["REDIS_URL"]

    @property
    def database_url(self) -> str:
        """For a look into the tables."""
        return self.environment["DATABASE_URL"]

    def protostar(self, *arguments: str, output: IO[str]) -> None:
        """Run a command of `protostar` in this terminal, its standard output to `output`.

        Raises:
            StackError: it failed; it has said why.
        """
        output.flush()
        command = dying_with_us([_BIN / "protostar", *arguments])
        done = subprocess.run(
            command, env=os.environ | self.environment, cwd=ROOT, stdout=output, check=False
        )
        if done.returncode != 0:
            raise StackError(f"protostar {' '.join(arguments)} failed; the lines above say why")

    @contextmanager
    def worker(self) -> Iterator[Process]:
        """A worker, started with ARQ's own command."""
        worker = Process(
            [_BIN / "python", "-m", "arq", "arq_settings.WorkerSettings"],
            log=self.base / "worker.log",
            env=os.environ | self.environment,
            cwd=ROOT,
        )
        try:
            yield worker
        finally:
            worker.stop(timeout_s=_WORKER_STOP_S)


@contextmanager
def running_parts(corpus: Path) -> Iterator[Parts]:
    """Start the servers on the state of earlier runs; stop them at the end.

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
        redis = stack.enter_context(Redis(base, account))
        postgres = stack.enter_context(Postgres(base, account))
        database = _database_name(corpus)
        if database not in postgres.databases():
            postgres.create_database(database)
        model_server_url = None
        if model is None:
            model_server_url = stack.enter_context(_model_server(base))
            model = local_environment(model_server_url, os.environ)
        environment = {
            "REDIS_URL": redis.url,
            "DATABASE_URL": postgres.url(database),
            "PROTOSTAR_CORPUS_DIR": str(corpus),
            **model,
        }
        yield Parts(environment, model_server_url, base)


def remove_state() -> None:
    """Remove what earlier runs have stored."""
    with _only_one():
        base = base_folder(STATE, server_account())
        for name in ("redis", "postgres"):
            shutil.rmtree(base / name, ignore_errors=True)


@contextmanager
def _only_one() -> Iterator[None]:
    """Hold the lock that one demo at a time can hold; the kernel releases it however we end."""
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
            raise StackError(
                f"a demo is running in this clone already (process {holder}); end that first"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


@contextmanager
def _model_server(base: Path) -> Iterator[str]:
    """A local model server; gives its address."""
    port_file = base / "model-server.port"
    port_file.unlink(missing_ok=True)
    server = Process(
        [_BIN / "python", "-m", "stack.model_server", "--port", "0", "--port-file", port_file],
        log=base / "model-server.log",
        cwd=ROOT,
    )
    try:
        wait_until(
            lambda: port_file.exists() or not server.running, timeout_s=30, what="the model server starts"
        )
        if not server.running:
            raise StackError(f"the local model server ended:\n{server.last_lines()}")
        yield f"http://127.0.0.1:{port_file.read_text().strip()}"
    finally:
        server.stop()


def _database_name(corpus: Path) -> str:
    """A database for each corpus, so that a user's own folder does not displace the sample."""
    if corpus == SAMPLE_CORPUS:
        return "protostar"
    return f"protostar_{hashlib.sha256(os.fsencode(corpus)).hexdigest()[:12]}"
