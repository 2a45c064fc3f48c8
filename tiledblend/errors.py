"""Exceptions of tiledblend, one class per exit code of the command line.

Every message is one line: what was given, where (source, level, region), what to do.
"""

from __future__ import annotations

import errno
import re
import unicodedata

LONGEST_MESSAGE = 1200


class TiledblendError(Exception):
    """Base of all errors that tiledblend raises on purpose; `exit_code` is the command line's.

    The message is made one line of printable characters: a damaged file's own words (a name, a tag, a colour space)
    may be of any length, and hold line breaks, terminal commands or half a character.
    """

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """A text in one printable line of at most `LONGEST_MESSAGE` characters, its middle left out when it is longer.

    >>> one_line("no such file:\\n a\\x1b[2J.tif ")
    'no such file: a�[2J.tif'
    """
    line = printable(re.sub(r"\s*[\r\n]+\s*", " ", text).strip())
    if len(line) > LONGEST_MESSAGE:
        half = LONGEST_MESSAGE // 2 - 2
        line = f"{line[:half]} … {line[-half:]}"
    return line


def printable(text: str) -> str:
    """A text of several lines in which terminal commands and half characters, of a file's own names, are replaced.

    >>> printable("size\\n  a\x1b[2J.tif")
    'size\\n  a�[2J.tif'
    """
    if text.isprintable():
        return text
    return "".join(c if c == "\n" or c.isprintable() or unicodedata.category(c) == "Zs" else "\ufffd" for c in text)


class UsageError(TiledblendError, ValueError):
    """An argument is wrong in itself: a negative sigma, a shard that is no multiple of the chunk."""

    exit_code = 2


class RefusedError(TiledblendError):
    """Doing it would touch something of the user's, or end what is not whole: the output exists, a resume does not
    match, parts are missing."""

    exit_code = 3


class BadInputError(TiledblendError):
    """A source cannot be opened, decoded, or used in this place."""

    exit_code = 4


def decoder_crash(where: str, signal_name: str) -> str:
    """The message of a decoder that ended its process. where: what was being decoded."""
    return (
        f"{where}: its decoder crashed ({signal_name}): the file is damaged, or the library at fault; restore it, then "
        "run again with --resume"
    )


class StorageError(TiledblendError):
    """Writing or reading the result failed: disk full, no permission, object store refused."""

    exit_code = 5


class ResourceError(TiledblendError):
    """The run does not fit the machine: memory, file handles, lost workers or scheduler."""

    exit_code = 6


_LIMITS = {
    errno.EMFILE: "too many open files; raise `ulimit -n` or use fewer threads, then run again with --resume",
    errno.ENFILE: "too many open files on this machine; close some programs, then run again with --resume",
    errno.ENOMEM: "out of memory; use fewer threads or a smaller --shard, then run again with --resume",
    errno.EAGAIN: "no more processes or threads may be started; raise `ulimit -u` or use fewer --workers",
}


def resource_error(error: OSError, where: str) -> ResourceError | None:
    """The one-line error of a system call that failed because the machine or its limits are too small, else None."""
    limit = _LIMITS.get(error.errno or 0)
    return ResourceError(f"{where}: {limit}") if limit else None


class VerificationError(TiledblendError):
    """A stored result is not what its manifest says."""

    exit_code = 7


class InterruptedRun(TiledblendError):  # noqa: N818 - named after what it is: not an error of anyone's
    """The run was stopped (Ctrl-C, SIGTERM) and can be resumed."""

    exit_code = 75
