"""Put on PYTHONPATH by tests/test_crash.py: LZW data that decode to CRASHING bytes end the process, as a broken decoder
would. Python imports it at the start of every process, of workers too."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Any

import imagecodecs

MARK = bytes([77]) * 4096
HOW = {
    "null": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),  # as the kernel does when memory is short
}
decode = imagecodecs.lzw_decode


def crashing(data: Any, *arguments: Any, **options: Any) -> Any:
    """The real decoder, unless the pixels are a whole tile of 77."""
    decoded = decode(data, *arguments, **options)
    if MARK in bytes(decoded):
        HOW[os.environ["CRASH_BY"]]()
    return decoded


if "CRASH_BY" in os.environ:
    crashing.__module__ = decode.__module__  # newer tifffile takes codecs of this package only
    imagecodecs.lzw_decode = crashing
