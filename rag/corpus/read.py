"""Reads a file in bounded memory: its hash, its encoding, and its text in blocks."""

from __future__ import annotations

import codecs
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_BLOCK_BYTES: Final = 1024 * 1024
_BINARY_SHARE: Final = 0.1
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_HANGUL = re.compile("[가-힣]")
_BOMS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class UnreadableFileError(Exception):
    """One file can't be indexed; the message is the reason."""


def storable(text: str) -> str:
    """Replace what PostgreSQL can't store by U+FFFD: NUL, and lone surrogates (which a file name may have)."""
    return _UNSTORABLE.sub("\ufffd", text)


@dataclass(frozen=True, slots=True)
class Content:
    """The content of one file: its hash, its encoding, and its text in blocks.

    The text is the decoded file without its byte order mark, newlines untouched; NUL and lone surrogates are
    U+FFFD. Offsets count the characters (code points) of this text. It is not normalised, so that a chunk is exactly
    the file's characters; titles, headings, search terms and texts to embed are in NFC.
    """

    content_hash: str
    encoding: str
    _location: Path | str
    _data: bytes | None

    def blocks(self) -> Iterator[str]:
        """The text, in order, about a mebibyte at a time.

        Raises:
            UnreadableFileError: the file changed since it was opened.
        """
        digest = hashlib.sha256()
        blocks = iter((self._data,)) if self._data is not None else _read_blocks(self._location)
        try:
            yield from _decode(_hashed(blocks, digest), self.encoding)
        except UnicodeError as error:
            raise UnreadableFileError("changed while it was read; it is indexed next time") from error
        if digest.hexdigest() != self.content_hash:
            raise UnreadableFileError("changed while it was read; it is indexed next time")

    def text(self) -> str:
        """The whole text."""
        return "".join(self.blocks())


def open_content(location: Path | str) -> Content:
    """Hash a file and find its encoding: UTF-8, UTF-16 with a byte order mark, or CP949.

    Raises:
        UnreadableFileError: it can't be read, is not a regular file, or is in none of these encodings.
    """
    digest = hashlib.sha256()
    first = next(_read_blocks(location), b"")
    whole = first if len(first) < _BLOCK_BYTES else None
    encoding = next((name for bom, name in _BOMS if first.startswith(bom)), "utf-8")
    if encoding != "utf-16" and first.count(0) > len(first) * _BINARY_SHARE:
        raise UnreadableFileError("is binary, or UTF-16 without a byte order mark; save it as UTF-8")
    blocks = iter((whole,)) if whole is not None else _read_blocks(location)
    is_text = _decodes(_hashed(blocks, digest), encoding)
    if not is_text and encoding == "utf-8":
        encoding = "cp949"
        blocks = iter((whole,)) if whole is not None else _read_blocks(location)
        is_text = _decodes(blocks, encoding, needs_hangul=True)
    if not is_text:
        raise UnreadableFileError(
            "is in no known encoding (UTF-8, UTF-16 with a byte order mark, CP949); save it as UTF-8"
        )
    return Content(digest.hexdigest(), encoding, location, whole)


def _read_blocks(location: Path | str) -> Iterator[bytes]:
    try:
        # The name may have become a link or a FIFO since the walk: refuse the one, don't wait on the other.
        descriptor = os.open(location, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UnreadableFileError("is not a regular file")
            while block := file.read(_BLOCK_BYTES):
                yield block
    except OSError as error:
        raise UnreadableFileError(f"can't be read ({error.strerror})") from error


def _hashed(blocks: Iterator[bytes], digest: hashlib._Hash) -> Iterator[bytes]:
    for block in blocks:
        digest.update(block)
        yield block


def _decode(blocks: Iterator[bytes], encoding: str) -> Iterator[str]:
    errors = "surrogatepass" if encoding.startswith("utf") else "strict"
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    for block in blocks:
        yield storable(decoder.decode(block))
    yield storable(decoder.decode(b"", True))


def _decodes(blocks: Iterator[bytes], encoding: str, *, needs_hangul: bool = False) -> bool:
    """Whether all of `blocks` is text in `encoding`; reads every block in either case, so that all is hashed."""
    found = not needs_hangul
    try:
        for text in _decode(blocks, encoding):
            found = found or _HANGUL.search(text) is not None
    except UnicodeError:
        for _ in blocks:
            pass
        return False
    return found
