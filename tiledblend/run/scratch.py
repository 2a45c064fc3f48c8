"""A new folder of this process alone for dask's files: in dask's usual one may lie what is anybody's, and it is put on
the import path."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tiledblend.errors import RefusedError, StorageError

PREFIX = "tiledblend-"
_HELD = "held"
"""In such a folder: a file that is locked while its process lives."""


@contextmanager
def private_folder(given: str | None = None) -> Iterator[Path]:
    """A folder that nobody else may enter, made anew and removed at the end.

    given: where to make it, instead of where dask's configuration or the system has temporary files. Raises
    RefusedError where somebody else could put another one in its place, StorageError where it cannot be made.
    """
    import dask.config

    parent = os.path.abspath(given or dask.config.get("temporary-directory", None) or tempfile.gettempdir())
    what = "--local-directory " if given else ""
    try:
        os.makedirs(parent, mode=0o700, exist_ok=True)
        if given:
            _require_stable(parent)
        _remove_abandoned(parent)
        folder = tempfile.mkdtemp(prefix=PREFIX, dir=parent)
        held = _hold(folder)
    except OSError as error:
        raise StorageError(
            f"{what}{parent}: no folder for dask's files can be made in it: {error.strerror}; "
            f"{'name another' if given else 'name one with --local-directory'}"
        ) from error
    try:
        found = os.lstat(folder)
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise RefusedError(
                f"{what}{parent}: others may enter a folder that is made in it (mode {stat.filemode(found.st_mode)}); "
                "name one on another file system with --local-directory"
            )
        yield Path(folder)
    finally:
        forget_imports(folder)
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def forget_imports(folder: str | Path) -> None:
    """Take what dask has put on this process's import path off it."""
    sys.path[:] = [path for path in sys.path if not Path(path).is_relative_to(folder)]


def _require_stable(parent: str) -> None:
    """Raise RefusedError where another account may rename what we make here, and put its own in the place."""
    found = os.stat(parent)
    is_ours = found.st_uid in (0, os.geteuid())
    may_others_write = found.st_mode & stat.S_IWOTH or (found.st_mode & stat.S_IWGRP and not _is_own_group(found))
    if is_ours and (found.st_mode & stat.S_ISVTX or not may_others_write):
        return
    whose = "others may write in it" if is_ours else "it belongs to another account"
    raise RefusedError(
        f"--local-directory {parent}: {whose} ({stat.filemode(found.st_mode)}, owner {found.st_uid}), and dask runs "
        "what lies in its folder; make one of your own (mkdir -m 700) and name that"
    )


def _is_own_group(found: os.stat_result) -> bool:
    """True for the group that many systems give each user, with nobody else in it."""
    import grp
    import pwd

    with suppress(KeyError):
        group, user = grp.getgrgid(found.st_gid), pwd.getpwuid(os.geteuid())
        return found.st_gid == user.pw_gid and group.gr_name == user.pw_name and not set(group.gr_mem) - {user.pw_name}
    return False


def _hold(folder: str) -> int:
    """The descriptor of the folder's lock, which is there under its name only once it is locked."""
    made = os.path.join(folder, f".{_HELD}")
    held = os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    with suppress(OSError):
        # Without locks of the file system nobody removes it for us, either.
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(made, os.path.join(folder, _HELD))
    return held


def _remove_abandoned(parent: str) -> None:
    """Remove our own folders of processes that were killed."""
    with suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            if entry.name.startswith(PREFIX):
                with suppress(OSError):
                    _remove_if_abandoned(entry)


def _remove_if_abandoned(entry: os.DirEntry[str]) -> None:
    found = entry.stat(follow_symlinks=False)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) != 0o700:
        return
    held = os.open(os.path.join(entry.path, _HELD), os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(entry.path, ignore_errors=True)
    finally:
        os.close(held)
