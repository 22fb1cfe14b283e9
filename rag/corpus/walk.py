"""Walks a folder of Markdown files, and tells which indexed files are certainly gone."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import translate
from pathlib import Path, PurePosixPath
from typing import Final

from rag.corpus.read import storable

SUFFIXES: Final = (".md", ".markdown", ".mdx")
MAX_FILE_BYTES: Final = 64 * 1024 * 1024
IGNORED: Final = (".*", "node_modules", "__pycache__", "lost+found")


class CorpusError(Exception):
    """The corpus folder can't be used; the message says why and what to do. Nothing was changed."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A file that was not indexed: its path inside the corpus folder, and the reason."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A regular Markdown file. `path` is relative, POSIX, NFC; `stamp` changes whenever the file does."""

    path: str
    location: str
    size_bytes: int
    stamp: str
    changed_ns: int


@dataclass(slots=True)
class Walk:
    """The content of a corpus folder, by relative paths; `""` is the root.

    `unread` are unreadable folders, `links` are links to folders. `folders` hold Markdown or folders, `empty` do not;
    both map a path to the folder's identity: its device and inode.
    """

    files: list[SourceFile] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    folders: dict[str, str] = field(default_factory=dict)
    empty: dict[str, str] = field(default_factory=dict)

    @property
    def unseen(self) -> list[str]:
        """The folders in which no file was seen, for any reason."""
        return [*self.unread, *self.links, *self.empty]

    def unproved(self, known: Mapping[str, str], paths: Iterable[str]) -> list[str]:
        """The folders that may hide some of the files with these paths.

        An empty folder may be a mount point without its disk. It proves that its files are gone only if it is the same
        folder that held them: `known` has the identities of those folders.
        """
        doubtful = [path for path in self.unseen if path not in self.empty or known.get(path) != self.empty[path]]
        held = {str(parent) for path in paths for parent in PurePosixPath(path).parents} if doubtful else ()
        return sorted(folder for folder in doubtful if folder in held)

    def absent(self, paths: Iterable[str], unproved: Collection[str]) -> list[str]:
        """The paths whose files are certainly gone: those that are missing outside of the `unproved` folders."""
        present = {file.path for file in self.files} | {failure.path for failure in self.failures}
        return [path for path in paths if path not in present and not is_inside(path, unproved)]


def is_inside(path: str, folders: Collection[str]) -> bool:
    """Whether a file's path is in one of `folders`, at any depth."""
    return any(str(parent) in folders for parent in PurePosixPath(path).parents)


def walk(root: Path, *, max_file_bytes: int = MAX_FILE_BYTES, ignore: tuple[str, ...] = IGNORED) -> Walk:
    """List the Markdown files under `root`, in the order of their paths.

    Symbolic links are not followed. A name or a relative path that matches one of the `ignore` patterns is
    left out. A Markdown name that is not a regular file, or is over `max_file_bytes`, is a failure.

    Raises:
        CorpusError: `root` is missing, unreadable, no folder, or without a folder or Markdown that is not ignored.
    """
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise CorpusError(f"the corpus folder {root} {what}; set PROTOSTAR_CORPUS_DIR to a folder of Markdown files")
    found = _Walker(root, max_file_bytes, _matcher(ignore))
    pending = [""]
    while pending:
        folder = pending.pop()
        try:
            pending += found.look_into(folder)
        except OSError as error:
            if not folder:
                raise CorpusError(f"the corpus folder {root} can't be read ({error.strerror}); allow it") from error
            found.walk.unread.append(_stored_path(folder))
    if "" in found.walk.empty:
        remedy = "put Markdown files into it, or mount its disk"
        raise CorpusError(f"the corpus folder {root} is empty, or holds no Markdown files; {remedy}")
    found.walk.files.sort(key=lambda file: file.path)
    return found.walk


def _matcher(patterns: Iterable[str]) -> Callable[[str], object]:
    """Make a function that tells whether a name or a path matches one of `patterns`."""
    return re.compile("|".join(translate(pattern.rstrip("/")) for pattern in patterns) or r"(?!)").match


class _Walker:
    """A walk in progress."""

    def __init__(self, root: Path, max_file_bytes: int, ignored: Callable[[str], object]) -> None:
        self.walk = Walk()
        self._root = root
        self._max_file_bytes = max_file_bytes
        self._ignored = ignored
        self._seen: set[str] = set()

    def look_into(self, folder: str) -> list[str]:
        """Add the files of one folder; returns the paths of the folders in it.

        Raises:
            OSError: the folder can't be read; no file was added.
        """
        # One descriptor for identity and listing, so that a rename or a mount in between changes nothing.
        no_link = os.O_NOFOLLOW if folder else 0
        descriptor = os.open(self._root / folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | no_link)
        try:
            identity = os.fstat(descriptor)
            with os.scandir(descriptor) as scan:
                entries = sorted((self._path(folder, entry), entry) for entry in scan)
            entries = [(path, entry) for path, entry in entries if not self._is_ignored(path, entry.name)]
            folders = [path for path, entry in entries if _is_folder(entry)]
            links = [path for path, entry in entries if _is_link_to_folder(entry)]
            files = [(path, entry) for path, entry in entries if _is_markdown(entry)]
            held = self.walk.folders if folders or links or files else self.walk.empty
            held[_stored_path(folder)] = f"{identity.st_dev}:{identity.st_ino}"
            self.walk.links += map(_stored_path, links)
            for path, entry in files:
                self._take(path, entry)
            return folders
        finally:
            os.close(descriptor)

    def _path(self, folder: str, entry: os.DirEntry[str]) -> str:
        return f"{folder}/{entry.name}" if folder else entry.name

    def _is_ignored(self, path: str, name: str) -> bool:
        return bool(self._ignored(name) or self._ignored(path))

    def _take(self, path: str, entry: os.DirEntry[str]) -> None:
        stored = _stored_path(path)
        if stored in self._seen:
            self._fail(stored, "another file has the same name in another Unicode form; rename one")
            return
        self._seen.add(stored)
        try:
            status = entry.stat(follow_symlinks=False)
        except OSError as error:
            self._fail(stored, f"can't be read ({error.strerror})")
            return
        if reason := _refusal(status, self._max_file_bytes):
            self._fail(stored, reason)
            return
        changed_ns = max(status.st_mtime_ns, status.st_ctime_ns)
        self.walk.files.append(SourceFile(stored, f"{self._root}/{path}", status.st_size, _stamp(status), changed_ns))

    def _fail(self, path: str, reason: str) -> None:
        self.walk.failures.append(Failure(path, reason))


def is_as_walked(file: SourceFile) -> bool:
    """Whether the file is still the one that a walk found, possibly in another process."""
    try:
        status = os.lstat(file.location)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and _stamp(status) == file.stamp


def _stamp(status: os.stat_result) -> str:
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}:{status.st_ino}"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def _is_markdown(entry: os.DirEntry[str]) -> bool:
    return not _is_folder(entry) and entry.name.lower().endswith(SUFFIXES)


def _is_link_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_symlink() and entry.is_dir() and not _is_markdown(entry)
    except OSError:
        return False


def _stored_path(path: str) -> str:
    if path.isascii():
        return path
    # A name that is not UTF-8 holds surrogates, which no database takes.
    return unicodedata.normalize("NFC", storable(path))


def _refusal(status: os.stat_result, max_file_bytes: int) -> str:
    if stat.S_ISLNK(status.st_mode):
        return "is a symbolic link; put the file itself into the folder"
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file"
    if status.st_size > max_file_bytes:
        return f"has {status.st_size} bytes, over the limit of {max_file_bytes}; raise PROTOSTAR_MAX_FILE_MB"
    return ""
