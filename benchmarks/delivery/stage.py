"""One measurement's stage: an empty Redis, a board, workers of one contender, and a producer."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import redis
from protostar_client import keys

from benchmarks.delivery.board import BOARD_VARIABLE, Board
from benchmarks.delivery.catalogue import Contender
from stack.processes import Process, wait_until

ROOT: Final = Path(__file__).resolve().parents[2]
DEADLINE_S: Final = 120.0
_TICKS_A_SECOND: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Place:
    """What all measurements of a run share."""

    redis_url: str
    redis_pid: int
    folder: Path
    peers_python: Path


@dataclass(slots=True)
class Stage:
    """Workers of `contender` on an empty Redis; made by `on_stage`."""

    place: Place
    contender: Contender
    board: Board
    redis: redis.Redis
    environment: dict[str, str]
    workers: list[Process] = field(default_factory=list)
    _reserved: int = 0

    def start_worker(self) -> Process:
        """A worker that has run a job, or, where others serve already, has signed on (ours alone)."""
        alone, signed_on = not self.workers, self._signed_on()
        slots = self.environment["DELIVERY_SLOTS"]
        worker = Process(
            [
                self.contender.python(self.place.peers_python),
                *(argument.format(slots=slots) for argument in self.contender.worker),
            ],
            log=self.place.folder / f"worker-{len(self.workers)}.log",
            env=self.environment,
            cwd=ROOT,
        )
        self.workers.append(worker)
        if alone:
            first = self.produce(1)
            self._wait(lambda: bool(self.board[first].starts), "serves")
        else:
            self._wait(lambda: bool(self._signed_on() - signed_on), "signs on")
        return worker

    def _signed_on(self) -> set[bytes]:
        return cast(set[bytes], self.redis.smembers(keys.OWNERS))

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        try:
            wait_until(condition, timeout_s=DEADLINE_S, what=f"{self.contender.name} {what}")
        except Exception as error:
            error.add_note("\n".join(worker.last_lines(20) for worker in self.workers))
            raise

    def reserve(self, count: int) -> int:
        """Numbers for so many jobs; returns the first."""
        self._reserved += count
        return self._reserved - count

    def producer(self, count: int, *, rate: float = 0, hold_ms: int = 0) -> tuple[int, subprocess.Popen[bytes]]:
        """A process that enqueues jobs; returns the first one's number and the process."""
        first = self.reserve(count)
        python = self.contender.python(self.place.peers_python)
        command = [python, "-m", "benchmarks.delivery.produce", self.contender.producer_path, first, count, rate]
        arguments = [str(argument) for argument in [*command, hold_ms]]
        return first, subprocess.Popen(arguments, env=self.environment, cwd=ROOT)

    def produce(self, count: int, *, rate: float = 0, hold_ms: int = 0) -> int:
        """Enqueue jobs; returns the first one's number once all are enqueued."""
        first, process = self.producer(count, rate=rate, hold_ms=hold_ms)
        if process.wait() != 0:
            raise RuntimeError(f"{self.contender.name}'s producer failed; its error is above")
        return first

    def wait_for_starts(self, first: int, count: int) -> None:
        """Wait until all these jobs have started."""
        numbers = iter(range(first, first + count))
        number = next(numbers)

        def started() -> bool:
            nonlocal number
            while self.board[number].starts:
                number = next(numbers, -1)
                if number < 0:
                    return True
            return False

        self._wait(started, f"starts {count} jobs")

    def freeze(self) -> None:
        """Stop the clock of all workers."""
        for worker in self.workers:
            _signal(worker, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let all workers go on."""
        for worker in self.workers:
            _signal(worker, signal.SIGCONT)

    def kill(self, worker: Process) -> None:
        """As a kill -9."""
        _signal(worker, signal.SIGKILL)
        worker.kill()
        self.workers.remove(worker)

    def cpu_s(self) -> float:
        """Processor seconds that the workers have used so far."""
        groups = {worker.pid for worker in self.workers}
        return sum(seconds for group, seconds in _cpu_by_group() if group in groups)

    def redis_cpu_s(self) -> float:
        """Processor seconds that Redis has used so far."""
        return sum(seconds for group, seconds in _cpu_by_group() if group == self.place.redis_pid)

    def commands(self) -> int:
        """Commands that Redis has run so far, with those inside scripts."""
        return int(cast(dict[str, Any], self.redis.info("stats"))["total_commands_processed"])

    def calls(self) -> dict[str, int]:
        """The same, by command."""
        stats = cast(dict[str, Any], self.redis.info("commandstats"))
        return {name.removeprefix("cmdstat_"): int(entry["calls"]) for name, entry in stats.items()}


@contextmanager
def on_stage(place: Place, contender: Contender, *, rows: int, slots: int = 100, **environment: str) -> Iterator[Stage]:
    """A stage with room for `rows` jobs (plus warm-up); its workers are killed at the end."""
    client = redis.Redis.from_url(place.redis_url)
    client.flushall()
    path = place.folder / "board"
    board = Board.create(path, rows + 100)
    settings = {"REDIS_URL": place.redis_url, BOARD_VARIABLE: str(path), "DELIVERY_SLOTS": str(slots)}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DELIVERY_", "PROTOSTAR_"))}
    stage = Stage(place, contender, board, client, {**inherited, **settings, **contender.environment, **environment})
    try:
        yield stage
    finally:
        for worker in list(stage.workers):
            stage.kill(worker)
        client.close()


def _signal(worker: Process, number: signal.Signals) -> None:
    try:
        os.killpg(worker.pid, number)
    except ProcessLookupError:
        return


def _cpu_by_group() -> Iterator[tuple[int, float]]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        yield int(fields[2]), (int(fields[11]) + int(fields[12])) / _TICKS_A_SECOND
