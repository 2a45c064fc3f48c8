"""The calling thread's own event loop, and what a fork must not do to it."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading

import pytest
from conftest import ROOT

from tiledblend.sources.zarr.inline_loop import run_inline


async def _woken_by_a_thread() -> bool:
    """What a request's answer does: another thread sets the result and wakes the loop."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[bool] = loop.create_future()
    # A deaf loop looks again only when it has something to do itself.
    loop.call_later(5, lambda: future.done() or future.set_result(False))
    threading.Timer(0.05, lambda: loop.call_soon_threadsafe(lambda: future.done() or future.set_result(True))).start()
    started = loop.time()
    return await future and loop.time() - started < 4


async def _nothing() -> None:
    return None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is of Unix")
def test_a_forked_child_leaves_the_loop_of_its_parent_alone() -> None:
    """The two share the kernel's epoll: closing the inherited loop in the child would deafen the parent's."""
    assert run_inline(_woken_by_a_thread)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            run_inline(_nothing)  # replaces the inherited loop
            gc.collect()
            status = 0 if run_inline(_woken_by_a_thread) else 1
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert run_inline(_woken_by_a_thread)


def test_a_failed_read_leaves_no_tasks(caplog: pytest.LogCaptureFixture) -> None:
    """They would go on in the thread's next read, and asyncio would speak of them at the end."""
    went_on: list[int] = []

    async def slow() -> None:
        await asyncio.sleep(0.01)
        went_on.append(1)

    async def failing() -> None:
        waiting = [asyncio.ensure_future(slow()) for _ in range(3)]
        await asyncio.sleep(0)
        raise ValueError(len(waiting))

    with pytest.raises(ValueError, match="3"):
        run_inline(failing)
    run_inline(lambda: asyncio.sleep(0.05))
    gc.collect()
    assert not went_on
    assert "pending" not in caplog.text


def test_a_failed_read_leaves_no_open_loop_behind_its_thread() -> None:
    """Its traceback may live on, in a circle that only the collector ends: the loop closes with its thread."""
    loops: list[asyncio.AbstractEventLoop] = []
    kept: list[ValueError] = []

    async def failing() -> None:
        loops.append(asyncio.get_running_loop())
        raise ValueError("no such chunk")

    def read() -> None:
        try:
            run_inline(failing)
        except ValueError as error:
            kept.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    assert kept[0].__traceback__ is not None
    assert loops[0].is_closed()


def test_a_program_ends_without_a_word_in_development_mode() -> None:
    program = (
        "import asyncio; from tiledblend.sources.zarr.inline_loop import run_inline; "
        "run_inline(lambda: asyncio.sleep(0))"
    )
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", program]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
