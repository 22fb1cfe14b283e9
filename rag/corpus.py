"""Walk a folder of Markdown safely and read its files in bounded memory."""

from __future__ import annotations

import codecs
import hashlib
import os
import re
import stat
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

SUFFIXES: Final = (".md", ".markdown", ".mdx")
MAX_FILE_BYTES: Final = 64 * 1024 * 1024
IGNORED: Final = (".*", "node_modules", "__pycache__")

_BLOCK_BYTES: Final = 1024 * 1024
_BINARY_SHARE: Final = 0.1
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_HANGUL = re.compile("[가-힣]")
_BOMS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class CorpusError(Exception):
    """The corpus folder can't be used; the message says why and what to do. Nothing was changed."""


class UnreadableFileError(Exception):
    """One file can't be indexed; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A file that was not indexed, by its path inside the corpus folder, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A regular Markdown file. `path` is relative, POSIX, NFC; `stamp` changes whenever the file does."""

    path: str
    location: Path
    size_bytes: int
    stamp: str
    changed_ns: int


@dataclass(slots=True)
class Walk:
    """What a folder holds. `unproved` are folders (relative, `""` is the root) that may hide files."""

    files: list[SourceFile] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    unproved: list[str] = field(default_factory=list)

    def proves_absence(self, path: str) -> bool:
        """Whether the walk looked where `path` would be, so that not having met it means that it is gone."""
        parents = {str(parent) for parent in Path(path).parents}
        return not any((folder or ".") in parents for folder in self.unproved)


def walk(root: Path, *, max_file_bytes: int = MAX_FILE_BYTES, ignore: tuple[str, ...] = IGNORED) -> Walk:
    """List the Markdown files under `root`, in the order of their paths.

    Symbolic links are not followed. A name or a relative path that matches one of the `ignore` patterns is
    left out. A Markdown name that is no regular file, or is over `max_file_bytes`, is a failure.

    Raises:
        CorpusError: `root` is missing, unreadable, no folder, or empty.
    """
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise CorpusError(f"the corpus folder {root} {what}; set PROTOSTAR_CORPUS_DIR to a folder of Markdown files")
    found = Walk()
    seen: set[str] = set()
    pending = [""]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(root / folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            if not folder:
                raise CorpusError(f"the corpus folder {root} can't be read ({error.strerror}); allow it") from error
            found.unproved.append(_stored_path(folder))
            continue
        if not entries:
            # It may be where a disk is to be mounted, so it proves nothing about what was in it.
            found.unproved.append(_stored_path(folder))
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if any(fnmatch(entry.name, pattern) or fnmatch(path, pattern) for pattern in ignore):
                continue
            if _is_folder(entry):
                pending.append(path)
            elif entry.name.lower().endswith(SUFFIXES):
                _take(found, seen, entry, path, max_file_bytes)
    if "" in found.unproved:
        raise CorpusError(f"the corpus folder {root} is empty; put Markdown files into it, or mount its disk")
    found.files.sort(key=lambda file: file.path)
    return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def _stored_path(path: str) -> str:
    # A name that is not UTF-8 holds surrogates, which no database takes.
    return unicodedata.normalize("NFC", _UNSTORABLE.sub("\ufffd", path))


def _take(found: Walk, seen: set[str], entry: os.DirEntry[str], path: str, max_file_bytes: int) -> None:
    stored = _stored_path(path)
    if stored in seen:
        found.failures.append(Failure(stored, "another file has the same name in another Unicode form; rename one"))
        return
    seen.add(stored)
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError as error:
        found.failures.append(Failure(stored, f"can't be read ({error.strerror})"))
        return
    reason = _refusal(status, max_file_bytes)
    if reason:
        found.failures.append(Failure(stored, reason))
        return
    stamp = f"{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}:{status.st_ino}"
    changed_ns = max(status.st_mtime_ns, status.st_ctime_ns)
    found.files.append(SourceFile(stored, Path(entry.path), status.st_size, stamp, changed_ns))


def _refusal(status: os.stat_result, max_file_bytes: int) -> str:
    if stat.S_ISLNK(status.st_mode):
        return "is a symbolic link; put the file itself into the folder"
    if not stat.S_ISREG(status.st_mode):
        return "is no regular file"
    if status.st_size > max_file_bytes:
        return f"has {status.st_size} bytes, over the limit of {max_file_bytes}; split it"
    return ""


@dataclass(frozen=True, slots=True)
class Content:
    """The content of one file: what it is, and its text in blocks.

    The text is the decoded file without its byte order mark, newlines untouched; NUL and lone surrogates, which
    no database takes, are U+FFFD. Offsets count the characters (code points) of this text.
    """

    content_hash: str
    encoding: str
    _location: Path
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


def open_content(location: Path) -> Content:
    """Hash a file and find its encoding: UTF-8, UTF-16 with a byte order mark, or CP949.

    Raises:
        UnreadableFileError: it can't be read, is no regular file, or is in none of these encodings.
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


def _read_blocks(location: Path) -> Iterator[bytes]:
    try:
        # The name may have become a link or a FIFO since the walk: refuse the one, don't wait on the other.
        descriptor = os.open(location, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UnreadableFileError("is no regular file")
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
        yield _UNSTORABLE.sub("\ufffd", decoder.decode(block))
    yield _UNSTORABLE.sub("\ufffd", decoder.decode(b"", True))


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
