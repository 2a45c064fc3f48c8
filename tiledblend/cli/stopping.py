"""Ctrl-C and SIGTERM: what a signal does outside a run, and inside one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from types import FrameType

import click

from tiledblend.cli.state import IF_WRITING, advised, can_resume
from tiledblend.errors import InterruptedRun

INTERRUPTED = f"interrupted{IF_WRITING}"
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """Ctrl-C or SIGTERM outside a run. Not KeyboardInterrupt: click prints an empty line for that."""


class _Echo:
    """One Ctrl-C may arrive twice: from the terminal or a process group, and passed on by the parent process."""

    seconds = 0.3

    def __init__(self) -> None:
        self._last = float("-inf")

    def is_echo(self) -> bool:
        """True for a signal right after another one."""
        now = time.monotonic()
        is_echo, self._last = now < self._last + self.seconds, now
        return is_echo


_ECHO = _Echo()


PATIENCE_SECONDS = 0.8
"""From a signal to its being heard, and from then to the end of what does not look for it. Both are below 2 s."""


class Stop(Event):
    """The wish to end a run in order. is_heard: whoever makes tiles has looked at it since."""

    is_heard = False

    def is_set(self) -> bool:
        """As of every event."""
        self.is_heard = super().is_set()
        return self.is_heard


def stop_when_asked() -> None:
    """From now on a signal ends the command with one line, at once or soon."""

    def stop(number: int, frame: FrameType | None) -> None:
        if not _ECHO.is_echo():
            _end_soon()
            raise Stopped

    for number in SIGNALS:
        signal.signal(number, stop)


def end_when_asked(code: int) -> None:
    """All is done and said: a signal hurries the interpreter's end and adds no traceback to it."""
    for number in (*SIGNALS, signal.SIGALRM):
        signal.signal(number, lambda *_: os._exit(code))


def _end_soon() -> None:
    """End the process if what is under way (threads that read or hash, a store that does not answer) goes on."""

    def end(number: int, frame: FrameType | None) -> None:
        click.echo(f"tiledblend: error: {advised(INTERRUPTED, can_resume())}", err=True)
        os._exit(InterruptedRun.exit_code)

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE_SECONDS)


def ignore_signals() -> None:
    """Nothing stops what is left to do."""
    for number in (*SIGNALS, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def told_interruption(path: str) -> Iterator[None]:
    """A second Ctrl-C as one line with what to do."""
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedRun(f"{path}: interrupted; continue with --resume") from None


@contextmanager
def stoppable() -> Iterator[Event]:
    """The first Ctrl-C or SIGTERM sets the event, so that tiles in flight are waited for; the second ends us.

    Where nobody looks at the event the first one ends us, too: a run also opens, hashes and commits.
    """
    stop = Stop()
    at_once = advised("stopped at once; continue with --resume", can_resume())

    def ask(number: int, frame: FrameType | None) -> None:
        if _ECHO.is_echo():
            return
        if stop.is_set():
            # A dead run is resumed like a stopped one; leaving in order would wait for the threads.
            click.echo(f"tiledblend: error: {at_once}", err=True)
            os._exit(InterruptedRun.exit_code)
        stop.set()
        signal.signal(signal.SIGALRM, unheard)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE_SECONDS)
        click.echo("tiledblend: stopping; waiting for the tiles in flight (once more: at once)", err=True)

    def unheard(number: int, frame: FrameType | None) -> None:
        if not stop.is_heard:
            _end_soon()
            raise Stopped

    before = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
