"""How a command ends: every error is an exit code and one line."""

from __future__ import annotations

import errno

import click

from tiledblend.cli.stopping import INTERRUPTED, Stopped
from tiledblend.errors import InterruptedRun, ResourceError, TiledblendError, one_line, resource_error


def explained(error: BaseException) -> tuple[int, str]:
    """Exit code and one line."""
    if isinstance(error, TiledblendError):
        return error.exit_code, one_line(str(error))
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        verb = context.command_path.partition(" ")[2] if context is not None else ""
        return 2, one_line(f"{verb}: {error.format_message()}" if verb else error.format_message())
    if isinstance(error, (Stopped, KeyboardInterrupt, click.Abort)):
        return InterruptedRun.exit_code, INTERRUPTED
    if isinstance(error, MemoryError):
        return 6, "out of memory; use fewer threads or a smaller --shard"
    if (told := _told_limit(error)) is not None:
        return told.exit_code, one_line(str(told))
    reason = one_line(str(error))
    return 1, f"unexpected {type(error).__name__}{f': {reason}' if reason else ''}; run again with --debug to see where"


_NO_MEMORY = ("can't start new thread", "failed to map segment from shared object")
"""How Python and the dynamic loader say it."""


def _told_limit(error: BaseException | None) -> TiledblendError | None:
    """What a library's error is about if the machine's limits or its disk are behind it somewhere."""
    from tiledblend.bytes.objects import storage_error

    seen = set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, MemoryError) or any(text in str(error) for text in _NO_MEMORY):
            return ResourceError("out of memory or threads; use fewer threads or a smaller --shard")
        if isinstance(error, OSError):
            if (limit := resource_error(error, "cannot go on")) is not None:
                return limit
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM):
                return storage_error(error, "write", error.filename or "the output or a temporary file")
        error = error.__cause__ or error.__context__
    return None
