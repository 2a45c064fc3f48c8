"""Running zarr's coroutines in the calling thread."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class _InlineExecutor(ThreadPoolExecutor):
    """Runs what it is given at once, in the caller's thread; starts none."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


class _OwnedLoop:
    """An event loop that is closed when its thread, and so this object, ends."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.loop = asyncio.new_event_loop()
        self.loop.set_default_executor(_InlineExecutor(max_workers=1))

    def __del__(self) -> None:
        if not self.loop.is_running():
            self.loop.close()


_THREAD = threading.local()
_INHERITED: list[_OwnedLoop] = []
"""Loops of the process that this one was forked from. They share its epoll and its wake-up socket: one that is used or
closed here, be it by the collector, would deafen the parent's."""


def _loop() -> asyncio.AbstractEventLoop:
    """The calling thread's own loop.

    No frame keeps its owner: one that a failed read's traceback holds would leave the loop to the collector, which
    closes its sockets in any order, with a warning, instead of at the thread's end.
    """
    owned: _OwnedLoop | None = getattr(_THREAD, "owned", None)
    if owned is not None and owned.process != os.getpid():
        _INHERITED.append(owned)
        owned = None
    if owned is None:
        owned = _THREAD.owned = _OwnedLoop()
    return owned.loop


@atexit.register
def _end() -> None:
    """Close the main thread's loop while there still is an interpreter.

    Python 3.13 in its development mode needs one to close it.
    """
    owned: _OwnedLoop | None = getattr(_THREAD, "owned", None)
    if owned is not None and owned.process == os.getpid():
        del _THREAD.owned


def _run(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    loop = _loop()
    try:
        return loop.run_until_complete(make())
    except BaseException:
        _cancel_rest(loop)
        raise


def _cancel_rest(loop: asyncio.AbstractEventLoop) -> None:
    """End what a failed read has left behind: the next one would go on with it."""
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    loop.run_until_complete(asyncio.wait(left) if left else asyncio.sleep(0))


def run_inline(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Result of the coroutine, run with its file reads and decoding in this very thread.

    zarr-python's own synchronous calls send everything through one event loop and a pool of as many threads as it
    likes, shared by the process. A worker's thread is already the unit of concurrency here, so its reads stay in it:
    nothing is shared, nothing global is configured. Under a running event loop (a notebook) a fresh thread does it.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _run(make)
    with ThreadPoolExecutor(max_workers=1) as aside:
        return aside.submit(_run, make).result()
