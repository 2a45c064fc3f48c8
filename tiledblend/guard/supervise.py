"""The command under a parent that outlives it: a crash of a decoder becomes one line and an exit code.

The parent is forked off before anything is imported, so it costs a millisecond and no memory of its own worth telling.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from tiledblend.guard.crash import Death, end_with_parent, share_notes

FORWARDED = (signal.SIGINT, signal.SIGTERM)
_FROM_KERNEL = 0x80


def supervised(command: Callable[[], None]) -> None:
    """Run a program's `main` in a forked child and exit as it does; tell it if the child crashes.

    Runs it right here where that is not possible: elsewhere than on Linux, and under a debugger or profiler.
    """
    if not sys.platform.startswith("linux") or sys.gettrace() or sys.getprofile():
        command()
        return
    notes, parent = share_notes(), os.getpid()
    watched = {*FORWARDED, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    child = os.fork()
    if child == 0:
        end_with_parent(parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        command()
        return
    code = _wait(child, watched)
    death = Death(code, notes.read() if code < 0 else ())
    if code >= 0:
        os._exit(code)
    _end_as(death)


def _wait(child: int, watched: set[signal.Signals]) -> int:
    """The child's exit code or minus its signal; signals that are sent to this process alone are passed on to it."""
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        info = signal.sigwaitinfo(watched)
        # A terminal's Ctrl-C reaches the whole process group, the child too.
        if info.si_signo in FORWARDED and info.si_code != _FROM_KERNEL:
            os.kill(child, info.si_signo)


def _end_as(death: Death) -> NoReturn:
    """Tell a death by a signal, and exit."""
    if death.is_crash and not death.notes:
        code, line = _unnoted_crash(death)
        _say(line)
        os._exit(code)
    if death.is_crash:
        _say(_crash_line(death))
        os._exit(4)
    if death.code == -signal.SIGKILL:
        _say(
            "the process was killed (SIGKILL): out of memory, most likely; use fewer threads or a smaller --shard, "
            "then run again with --resume"
        )
        os._exit(6)
    signal.signal(-death.code, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {-death.code})
    os.kill(os.getpid(), -death.code)
    os._exit(128 - death.code)


def _crash_line(death: Death) -> str:
    """The region that crashes a decoder again, or all that were being decoded."""
    from tiledblend.errors import decoder_crash
    from tiledblend.guard.suspect import death_by_read

    guilty = death.notes
    if len(guilty) > 1:
        again = ((note, death_by_read(note.again)) for note in death.notes)
        guilty = tuple(note for note, end in again if end is not None and end.is_crash) or guilty
    return decoder_crash(" or ".join(note.what for note in guilty), death.signal_name)


def _unnoted_crash(death: Death) -> tuple[int, str]:
    """(exit code, line) of a crash outside of decoding: libraries that get no memory may end that way."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        return (
            6,
            f"out of memory: `ulimit -v` allows {limit / 1e6:,.0f} MB of addresses ({death.signal_name}); raise it",
        )
    return 1, f"a library crashed ({death.signal_name}) while nothing was being decoded; run again with --resume"


def _say(line: str) -> None:
    from tiledblend.bytes.buckets import redacted
    from tiledblend.errors import one_line

    os.write(2, f"tiledblend: error: {redacted(one_line(line))}\n".encode())
