"""A question to what may be frozen, asked in a thread of its own; a stop and a bound are noticed meanwhile."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

T = TypeVar("T")

ANSWER_SECONDS = 10.0
LOOK_SECONDS = 0.2
"""Between two looks for what is waited for; a stop is noticed then."""


def heard(request: Callable[[], T]) -> T:
    """What `request` returns or raises. A signal is heard meanwhile: a store's client waits for minutes in code of its
    own, where the main thread of a process learns nothing."""
    if threading.current_thread() is not threading.main_thread():
        return request()
    return asked(request)


def never() -> None:
    """The check of a wait that nothing interrupts."""


def asked(question: Callable[[], T], check: Callable[[], None] = never, seconds: float = math.inf) -> T:
    """What `question` returns or raises. It asks a cluster or a store, and may wait for ever where that is frozen.

    check: called a few times a second meanwhile; may raise. Raises TimeoutError after `seconds`.
    """
    answer: Future[T] = Future()

    def ask() -> None:
        try:
            answer.set_result(question())
        except BaseException as error:
            answer.set_exception(error)

    deadline = time.monotonic() + seconds
    threading.Thread(target=ask, name="asked", daemon=True).start()
    while not wait([answer], LOOK_SECONDS).done:
        check()
        if time.monotonic() > deadline:
            raise TimeoutError(f"no answer in {seconds:g} s")
    return answer.result()
