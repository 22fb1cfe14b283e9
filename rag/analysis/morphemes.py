"""Morphemes of Korean words as index terms beside the bigrams, by Kiwi, the extra `kiwi`.

A noun is the same whatever particle follows it, and a verb whatever its ending: 걸려요, 걸리면 and 걸린 are all 걸리다.
"""

from __future__ import annotations

import importlib.util
import re
import threading
from functools import cache
from importlib.metadata import version as version_of
from typing import Any, Final

from protostar_client.normalization import normalize

_PREFIX: Final = "/"  # no other term begins so
_LONGEST: Final = 40
_TAGS: Final = frozenset({"NNG", "NNP", "NR", "SH", "XR", "VV", "VA", "VV-I", "VV-R", "VA-I", "VA-R"})
_LONG_RUN: Final = re.compile(r"\S{64}")
"""Kiwi's time grows with the square of a run without a space."""
_one_at_a_time = threading.Lock()


class MissingAnalyserError(Exception):
    """Kiwi is asked for, but not installed; the message says what to do."""

    def __init__(self) -> None:
        super().__init__(
            "PROTOSTAR_MORPHEMES=kiwi needs the package kiwipiepy; install the extra protostar[kiwi], or unset it"
        )


def is_installed() -> bool:
    """Whether the analyser is here."""
    return importlib.util.find_spec("kiwipiepy") is not None


def version() -> str:
    """What tells the terms of one version of the analyser from those of another.

    Raises:
        MissingAnalyserError: it is not installed.
    """
    if not is_installed():
        raise MissingAnalyserError
    return "kiwi-" + ".".join(version_of("kiwipiepy").split(".")[:2])


def morphemes(text: str) -> list[str]:
    """The morphemes of a text that carry meaning, in order, with repetitions.

    The first call of a process takes two seconds and 200 to 500 MB.

    Raises:
        MissingAnalyserError: it is not installed.
    """
    analyser = _analyser()
    text = _LONG_RUN.sub(r"\g<0> ", normalize("NFKC", text))
    with _one_at_a_time:
        tokens = analyser.tokenize(text)
    return [_PREFIX + token.form[:_LONGEST] for token in tokens if token.tag in _TAGS]


@cache
def _analyser() -> Any:
    if not is_installed():
        raise MissingAnalyserError
    from kiwipiepy import Kiwi

    return Kiwi(num_workers=1)
