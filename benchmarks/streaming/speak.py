"""Plays a worker's flusher: every 10 ms it appends the tokens that fell due, as one write for all answers.

Run with a Redis URL, tokens a second, seconds, and answers as job ids on standard input.
A token's text is the moment it was appended, in nanoseconds of the system's monotonic clock.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Final

import redis
from protostar_client import keys

FLUSH_S: Final = 0.010


def main() -> None:
    """Speak every answer to its end."""
    url, rate, seconds = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
    job_ids = sys.stdin.read().split()
    with redis.Redis.from_url(url) as server:
        server.ping()
        total = int(rate * seconds)
        said = dict.fromkeys(job_ids, 0)
        start_s = time.monotonic()
        while min(said.values()) < total:
            elapsed_s = time.monotonic() - start_s
            pipe = server.pipeline(transaction=False)
            for number, job_id in enumerate(job_ids):
                # Answers are out of step with each other, as they are in life.
                due = min(total, int((elapsed_s - number / len(job_ids) / rate) * rate))
                for seq in range(said[job_id] + 1, due + 1):
                    pipe.xadd(keys.events(job_id), {"data": _data(job_id, seq, is_last=seq == total)}, id=f"1-{seq}")
                    said[job_id] = seq
            pipe.execute()
            time.sleep(FLUSH_S)


def _data(job_id: str, seq: int, *, is_last: bool) -> str:
    said = {"type": "done", "message_id": 1, "finish_reason": "stop"} if is_last else {"type": "delta"}
    data = {"v": 1, "job_id": job_id, "attempt": 1, "seq": seq, "text": str(time.monotonic_ns()), **said}
    return json.dumps(data, separators=(",", ":"))


if __name__ == "__main__":
    main()
