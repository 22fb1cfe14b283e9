"""The counters of Prometheus. Nothing here is called for each token of an answer: see `PIECES`.

Every label has few values: functions and models are those the settings name, outcomes and codes are our own words.
"""

from __future__ import annotations

import time
from typing import Final, Literal

from prometheus_client import Counter, Histogram
from protostar_client.contract import Usage

from tasks.engine.claim import Claim

_SHORT_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_LONG_S: Final = (0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 8, 13, 20, 30, 60, 120, 300)
_A_SECOND: Final = (1, 2, 5, 10, 20, 30, 40, 50, 75, 100, 150, 200, 300, 500, 1000)
_TOKENS: Final = (128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072, 262_144)

Step = Literal["retrieve", "prompt", "store"]

ATTEMPTS: Final = Counter(
    "protostar_attempts", "Attempts at jobs that ended, by how they did.", ["function", "outcome"]
)
ATTEMPT_SECONDS: Final = Histogram(
    "protostar_attempt_seconds", "How long attempts took.", ["function"], buckets=_LONG_S
)
TAKEOVERS: Final = Counter("protostar_takeovers", "Jobs that this worker took back from workers that were gone.")
DEAD_LETTERS: Final = Counter(
    "protostar_dead_letters", "Jobs that were given up and kept, by the error's code.", ["code"]
)

FIRST_TOKEN_SECONDS: Final = Histogram(
    "protostar_first_token_seconds",
    "From when a question was due, as a rule enqueued, to the first token of its answer.",
    ["model"],
    buckets=_LONG_S,
)
ANSWER_TOKENS_PER_SECOND: Final = Histogram(
    "protostar_answer_tokens_per_second",
    "The pace of whole answers after their first token.",
    ["model"],
    buckets=_A_SECOND,
)
PIECES: Final = Counter(
    "protostar_streamed_pieces", "Pieces of answers that were passed on as they came, as a rule one token each."
)

STEP_SECONDS: Final[dict[Step, Histogram]] = {
    "retrieve": Histogram("protostar_retrieval_seconds", "How long finding the passages took.", buckets=_SHORT_S),
    "prompt": Histogram("protostar_prompt_seconds", "How long making a prompt took.", buckets=_SHORT_S),
    "store": Histogram("protostar_store_seconds", "How long committing an answer took.", buckets=_SHORT_S),
}
PROMPT_TOKENS: Final = Histogram(
    "protostar_prompt_tokens", "Sizes of the prompts of answers, as counted before they were sent.", buckets=_TOKENS
)

INPUT_TOKENS: Final = Counter("protostar_input_tokens", "Tokens of prompts, as billed or estimated.", ["model"])
OUTPUT_TOKENS: Final = Counter("protostar_output_tokens", "Tokens of answers, as billed or estimated.", ["model"])
COST: Final = Counter("protostar_cost", "What providers said requests cost, in their currency.", ["model"])
MODEL_ERRORS: Final = Counter("protostar_model_errors", "Requests to models that failed, by code.", ["model", "code"])
GATE_WAITS: Final = Counter(
    "protostar_gate_waits", "Times a job was sent back to wait for a model that was limited or down.", ["reason"]
)


def attempt_ended(function: str, outcome: str, seconds: float) -> None:
    """Count an attempt; `function` is empty where the worker does not know it, `outcome` may end with a detail."""
    function = function or "unknown"
    ATTEMPTS.labels(function, outcome.partition(": ")[0]).inc()
    ATTEMPT_SECONDS.labels(function).observe(seconds)


def first_token(model: str, claim: Claim) -> float:
    """Note the first token of an answer; returns the moment, for `answered`."""
    if claim.rank_ms > 0:
        FIRST_TOKEN_SECONDS.labels(model).observe(max(0.0, (claim.now_ms - claim.rank_ms) / 1000))
    return time.monotonic()


def answered(model: str, output_tokens: int, *, began_s: float) -> None:
    """Observe the pace of a whole answer whose first token came at `began_s`; a single token has no pace."""
    seconds = time.monotonic() - began_s
    if began_s and seconds > 0 and output_tokens > 1:
        ANSWER_TOKENS_PER_SECOND.labels(model).observe((output_tokens - 1) / seconds)


def spent(model: str, usage: Usage) -> None:
    """Count the usage of a request. `model` is the name in the settings: a provider may report any name."""
    INPUT_TOKENS.labels(model).inc(usage.input_tokens)
    OUTPUT_TOKENS.labels(model).inc(usage.output_tokens)
    if usage.cost is not None:
        COST.labels(model).inc(usage.cost)
