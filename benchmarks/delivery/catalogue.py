"""Who is measured."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_PACKAGE: Final = "benchmarks.delivery.contenders"


@dataclass(frozen=True, slots=True, eq=False)
class Contender:
    """A queue: how its worker is started and who enqueues for it.

    `durable` is whether a job that a killed worker was running is still there afterwards.
    """

    name: str
    module: str
    worker: tuple[str, ...]
    producer: str = "producer"
    durable: bool = True
    ours: bool = False
    peer: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def producer_path(self) -> str:
        """`module:attribute` of what enqueues."""
        return f"{_PACKAGE}.{self.module}:{self.producer}"

    def python(self, peers_python: Path) -> Path:
        """The interpreter that has what it needs."""
        return peers_python if self.peer else Path(sys.executable)


def _arq(module: str) -> tuple[str, ...]:
    return ("-m", "arq", f"{_PACKAGE}.{module}.WorkerSettings")


def _taskiq(name: str, broker: str, results: str, *, durable: bool) -> Contender:
    command = ("-m", "taskiq", "worker", "--workers", "1", "--max-async-tasks", "{slots}", "--log-level", "WARNING")
    return Contender(
        name,
        "taskiq_broker",
        (*command, f"{_PACKAGE}.taskiq_broker:broker"),
        durable=durable,
        peer=True,
        environment={"DELIVERY_BROKER": broker, "DELIVERY_RESULTS": results},
    )


PROTOSTAR: Final = Contender("**protostar**", "protostar", _arq("protostar"), ours=True)
PROTOSTAR_PLAIN: Final = Contender(
    "**protostar**, ARQ's own producer", "protostar", _arq("protostar"), producer="arqs_producer", ours=True
)
CONTENDERS: Final = (
    PROTOSTAR,
    PROTOSTAR_PLAIN,
    Contender("ARQ, poll_delay 0.5 (default)", "stock_arq", _arq("stock_arq")),
    Contender("ARQ, poll_delay 0.01", "stock_arq", _arq("stock_arq"), environment={"DELIVERY_POLL_DELAY": "0.01"}),
    Contender("SAQ", "saq_queue", ("-m", "saq", "--quiet", f"{_PACKAGE}.saq_queue.settings"), peer=True),
    _taskiq("taskiq-redis stream", "stream", "1", durable=True),
    _taskiq("taskiq-redis stream, no results", "stream", "0", durable=True),
    _taskiq("taskiq-redis list (loses jobs)", "list", "1", durable=False),
    Contender("streaq", "streaq_worker", ("-m", "streaq", "run", f"{_PACKAGE}.streaq_worker:worker"), peer=True),
    Contender("BRPOP loop by hand (loses jobs)", "brpop", ("-m", f"{_PACKAGE}.brpop"), durable=False),
)
