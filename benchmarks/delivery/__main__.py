"""Delivery side by side: `python -m benchmarks.delivery` (see README.md)."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Final, TypeVar

from benchmarks.delivery import parts
from benchmarks.delivery.catalogue import CONTENDERS, PROTOSTAR, Contender
from benchmarks.delivery.parts import percentile
from benchmarks.delivery.peers import peers_python
from benchmarks.delivery.stage import ROOT, Place
from benchmarks.report import Section, figure, verdict, write
from stack.places import server_account, temporary_base_folder
from stack.redis import Redis

T = TypeVar("T")

README: Final = Path(__file__).with_name("README.md")


def _in_turns(
    contenders: Sequence[Contender], rounds: int, measure: Callable[[Contender], T]
) -> dict[Contender, list[T]]:
    """Measure everybody once a round, so that what else the machine does meets all of them."""
    found: dict[Contender, list[T]] = defaultdict(list)
    for number in range(rounds):
        for contender in contenders:
            found[contender].append(measure(contender))
            print(f"  round {number + 1}: {contender.name}: {found[contender][-1]}", flush=True)
    return found


def _rounds(options: argparse.Namespace) -> str:
    return f"medians of {options.rounds} rounds taken in turns"


def delay(place: Place, options: argparse.Namespace) -> Section:
    jobs = 1500 if options.full else 300
    found = _in_turns(CONTENDERS, options.rounds, lambda c: parts.start_delays(place, c, jobs=jobs))
    p50 = {c: median(d.p50 for d in delays) for c, delays in found.items()}
    p99 = {c: median(d.p99 for d in delays) for c, delays in found.items()}
    return Section(
        "delay",
        ("enqueue to start, 50 jobs/s at random moments, 100 slots", "p50 ms", "p99 ms"),
        [(c.name, figure(p50[c]), figure(p99[c])) for c in CONTENDERS],
        [verdict("p50", p50[PROTOSTAR], 5, " ms"), verdict("p99", p99[PROTOSTAR], 25, " ms")],
        _rounds(options),
    )


def rate(place: Place, options: argparse.Namespace) -> Section:
    jobs = 10_000 if options.full else 3000
    drain = _in_turns(CONTENDERS, options.rounds, lambda c: parts.drain_rate(place, c, jobs=jobs))
    busy = _in_turns(CONTENDERS, options.rounds, lambda c: parts.busy_rate(place, c, jobs=jobs))
    drained = {c: median(rate.jobs_a_second for rate in rates) for c, rates in drain.items()}
    worker_us = {c: median(rate.worker_us for rate in rates) for c, rates in drain.items()}
    redis_us = {c: median(rate.redis_us for rate in rates) for c, rates in drain.items()}
    busied = {c: median(rates) for c, rates in busy.items()}
    return Section(
        "rate",
        ("no-op jobs a second, one process", "from a full queue", "while enqueued", "worker us/job", "Redis us/job"),
        [
            (c.name, figure(drained[c]), figure(busied[c]), figure(worker_us[c]), figure(redis_us[c]))
            for c in CONTENDERS
        ],
        [*_rate_verdicts("from a full queue", drained), *_rate_verdicts("while enqueued", busied)],
        _rounds(options),
    )


def _rate_verdicts(what: str, rates: dict[Contender, float]) -> list[str]:
    ours = rates[PROTOSTAR]
    best = max((c for c in rates if c.durable and not c.ours), key=lambda c: rates[c])
    loop = rates[CONTENDERS[-1]]
    return [
        verdict(f"{what}, next to the best durable peer ({best.name})", ours / rates[best], 1.3, " x", at_least=True),
        f"{what}, next to the BRPOP loop, which loses what it was running when it dies: {figure(ours / loop)} x",
    ]


def workers(place: Place, options: argparse.Namespace) -> Section:
    # A chat job waits; of no-op jobs three workers only must not do fewer, because the cores are few.
    kinds = {"no-op jobs, 100 slots each": (9000, 0), "jobs of 50 ms, 10 slots each": (1500, parts.HOLD_MS)}
    rows, verdicts = [], []
    for kind, (jobs, hold_ms) in kinds.items():
        pairs = [parts.rates_by_workers(place, jobs=jobs, hold_ms=hold_ms) for _ in range(options.rounds)]
        one, three = (median(pair[i] for pair in pairs) for i in (0, 1))
        rows.append((kind, figure(one), figure(three), figure(three / one)))
        verdicts.append(verdict(kind, three / one, 1.8 if hold_ms else 1.0, " x", at_least=True))
    return Section(
        "workers", ("jobs a second", "one worker", "three workers", "ratio"), rows, verdicts, _rounds(options)
    )


def idle(place: Place, options: argparse.Namespace) -> Section:
    seconds = 30.0 if options.full else 10.0
    found = _in_turns(CONTENDERS, 1, lambda c: parts.idle_cost(place, c, seconds=seconds))
    costs = {contender: measured[0] for contender, measured in found.items()}
    mine = costs[PROTOSTAR]
    return Section(
        "idle",
        ("100 long jobs running, 20 slots free", "% of a core", "Redis commands/s"),
        [(c.name, figure(costs[c].cpu_percent), figure(costs[c].commands)) for c in CONTENDERS],
        [
            verdict("CPU", mine.cpu_percent, 1, " % of a core"),
            verdict("Redis, with the commands inside scripts", mine.commands, 50, " commands/s"),
        ],
        f"{seconds:g} s each, once",
    )


def kill(place: Place, options: argparse.Namespace) -> Section:
    kills = 50 if options.full else 20
    times_s = parts.restarts_after_kill(place, kills=kills)
    p50_s, p95_s = median(times_s), percentile(times_s, 95)
    return Section(
        "kill",
        ("kill -9 of the worker that runs the job, until its start in another", "p50 s", "p95 s", "longest s"),
        [(f"**protostar**, lease 15 s, {kills} kills", figure(p50_s), figure(p95_s), figure(max(times_s)))],
        [verdict("p95", p95_s, 2, " s")],
        f"{kills} kills, one after the other",
    )


def freeze(place: Place, options: argparse.Namespace) -> Section:
    leases_s = (5.0, 15.0)
    times_s = {
        lease_s: parts.restarts_after_freeze(place, lease_s=lease_s, freezes=5 if options.full else 2)
        for lease_s in leases_s
    }
    return Section(
        "freeze",
        ("a host that stops without closing its connections, until its job's start elsewhere", "median s", "longest s"),
        [(f"**protostar**, lease {s:g} s", figure(median(times_s[s])), figure(max(times_s[s]))) for s in leases_s],
        [verdict(f"lease {s:g} s, the longest", max(times_s[s]), s + 1, " s") for s in leases_s],
        f"{len(times_s[leases_s[0]])} freezes each",
    )


PARTS: Final = {"delay": delay, "rate": rate, "workers": workers, "idle": idle, "kill": kill, "freeze": freeze}


def main() -> None:
    """Measure, print, and write into the README."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.delivery", description="Delivery, side by side.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all without one")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each contender, taken in turns")
    parser.add_argument("--full", action="store_true", help="more jobs, 50 kills: an hour instead of twenty minutes")
    parser.add_argument("--keep", action="store_true", help="print only; leave the README as it is")
    options = parser.parse_args()
    if unknown := set(options.parts) - PARTS.keys():
        parser.error(f"there is no part {', '.join(sorted(unknown))}; the parts are {', '.join(PARTS)}")
    account = server_account()
    with temporary_base_folder(account) as base, Redis(base, account) as server:
        place = Place(server.url, server.pid, base, peers_python(ROOT))
        for name in options.parts or PARTS:
            print(f"{name} ...", flush=True)
            section = PARTS[name](place, options)
            print(section.markdown(), flush=True)
            if not options.keep:
                write(section, README)


if __name__ == "__main__":
    main()
