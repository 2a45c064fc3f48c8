"""What a process that renders tiles sets once: one thread per library, and memory that stays with the process."""

from __future__ import annotations

import ctypes
import os
from functools import cache

# malloc.h of glibc
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
KEPT_BYTES = 128 << 20
LARGEST_KEPT = 32 << 20

SAFE_PATH = "PYTHONSAFEPATH"
"""Python's variable: the folder that a process starts in is not on its import path."""


def process_environment() -> dict[str, str]:
    """The same choices for processes that are still to be started: there they hold from their first thread on."""
    return {
        "OPENBLAS_NUM_THREADS": "1",
        # A folder of data may hold a file that is called as a module of the standard library.
        SAFE_PATH: "1",
        "MALLOC_MMAP_THRESHOLD_": str(LARGEST_KEPT),
        "MALLOC_TRIM_THRESHOLD_": str(KEPT_BYTES),
        "MALLOC_ARENA_MAX": "1",
    }


@cache
def prepare_process() -> None:
    """One thread for OpenCV, since tiles are what runs in parallel; freed buffers are kept for the next chunk.

    glibc gives large buffers back to the kernel as soon as they are freed, so that every chunk pays for its pages
    again (a third of a run's CPU time); buffers up to LARGEST_KEPT bytes are kept, KEPT_BYTES in all at the most.
    """
    import cv2

    cv2.setNumThreads(1)
    if "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", ()):
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_MMAP_THRESHOLD, LARGEST_KEPT)
    mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
    # Threads come and go: with a heap of its own each would keep what the others could use.
    mallopt(_ARENA_MAX, 1)
