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

from tiledblend.cli.state import advised, can_resume
from tiledblend.errors import InterruptedRun

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


def stop_when_asked() -> None:
    """From now on a signal ends the command with one line."""

    def stop(number: int, frame: FrameType | None) -> None:
        if not _ECHO.is_echo():
            raise Stopped

    for number in SIGNALS:
        signal.signal(number, stop)


def end_when_asked(code: int) -> None:
    """All is done and said: a signal hurries the interpreter's end and adds no traceback to it."""
    for number in SIGNALS:
        signal.signal(number, lambda *_: os._exit(code))


def ignore_signals() -> None:
    """Nothing stops what is left to do."""
    for number in SIGNALS:
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
    """The first Ctrl-C or SIGTERM sets the event, so that tiles in flight are waited for; the second ends us."""
    stop = Event()
    at_once = advised("stopped at once; continue with --resume", can_resume())

    def ask(number: int, frame: FrameType | None) -> None:
        if _ECHO.is_echo():
            return
        if stop.is_set():
            # A dead run is resumed like a stopped one; leaving in order would wait for the threads.
            click.echo(f"tiledblend: error: {at_once}", err=True)
            os._exit(InterruptedRun.exit_code)
        stop.set()
        click.echo("tiledblend: stopping; waiting for the tiles in flight (once more: at once)", err=True)

    before = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
