"""What was being decoded when a process died: notes in memory that its parent shares, and children that are watched.

A decoder of C that meets damaged bytes can end its process on the spot. Python is not asked then; a parent is.
"""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

SLOTS = 64
SLOT_BYTES = 4096
CRASHES = tuple(
    getattr(signal, name) for name in ("SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGABRT", "SIGSYS", "SIGTRAP")
)
"""Signals of a process that has broken, rather than been ended by somebody."""
_LENGTHS = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class Note:
    """What one thread was decoding. what: for people. again: pickled (source, region, level) that does it once more, or
    nothing."""

    what: str
    again: bytes


@dataclass(frozen=True, slots=True)
class Death:
    """How a watched child ended. code: its exit code, or minus the signal. notes: what it was decoding then."""

    code: int
    notes: tuple[Note, ...]

    @property
    def is_crash(self) -> bool:
        """True for a signal that a process brings upon itself."""
        return -self.code in CRASHES

    @property
    def signal_name(self) -> str:
        """Such as SIGSEGV; the number of one without a name."""
        try:
            return signal.Signals(-self.code).name
        except ValueError:
            return f"signal {-self.code}"


class Notes:
    """Slots for what threads are doing, in memory that survives a child."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, SLOTS * SLOT_BYTES)
        self._local = threading.local()
        self._free = deque(range(SLOTS))

    @contextmanager
    def noted(self, what: str, again: bytes) -> Iterator[None]:
        """Note what this thread does in the block: a copy of a few hundred bytes. Inside another note: instead of it.

        A block beyond SLOTS at once is not noted.
        """
        slot, is_inner = getattr(self._local, "slot", None), True
        if slot is None and self._free:
            with suppress(IndexError):
                slot, is_inner = self._free.popleft(), False
        if slot is None:
            yield
            return
        self._local.slot = slot
        self._write(slot, what, again)
        try:
            yield
        finally:
            self._memory[slot * SLOT_BYTES : slot * SLOT_BYTES + _LENGTHS.size] = bytes(_LENGTHS.size)
            if not is_inner:
                self._local.slot = None
                self._free.append(slot)

    def _write(self, slot: int, what: str, again: bytes) -> None:
        text = what.encode("utf-8", "replace")[: SLOT_BYTES // 2]
        if len(text) + len(again) + _LENGTHS.size > SLOT_BYTES:
            again = b""
        record = _LENGTHS.pack(len(text), len(again)) + text + again
        self._memory[slot * SLOT_BYTES : slot * SLOT_BYTES + len(record)] = record

    def read(self) -> tuple[Note, ...]:
        """What is noted, of all threads."""
        return tuple(self._slots())

    def _slots(self) -> Iterator[Note]:
        for start in range(0, SLOTS * SLOT_BYTES, SLOT_BYTES):
            text, again = _LENGTHS.unpack_from(self._memory, start)
            if text:
                at = start + _LENGTHS.size
                yield Note(self._memory[at : at + text].decode("utf-8", "replace"), self._memory[at + text :][:again])


_NOTES: Notes | None = None


def share_notes() -> Notes:
    """Notes for the children that are forked from now on. They replace earlier ones in this process."""
    global _NOTES
    _NOTES = Notes()
    return _NOTES


@contextmanager
def decoding(source: Any, region: Any, level: int) -> Iterator[None]:
    """Note, while the block runs, that a region of a source is being decoded; nothing where nobody watches."""
    notes = _NOTES
    if notes is None:
        yield
        return
    with notes.noted(f"{source.name}: level {level}, region {region}", _again(source, region, level)):
        yield


def _again(source: Any, region: Any, level: int) -> bytes:
    """The pickle of a read; empty for sources that are not opened by name."""
    own = source.__dict__.get("_pickled_by_name")
    if own is None:
        # Sources in memory would pickle their pixels.
        own = pickle.dumps(source) if source.is_opened_by_name else b""
        source.__dict__["_pickled_by_name"] = own
    return pickle.dumps((own, region, level)) if own else b""


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent, `parent`, is gone (prctl(2), PR_SET_PDEATHSIG)."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def tried(action: Callable[[], Any]) -> Death:
    """How a forked child ends that runs `action`: 0 if it returns, 1 if it raises. For processes of one thread."""
    notes, parent = share_notes(), os.getpid()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            end_with_parent(parent)
            action()
            code = 0
        finally:
            os._exit(code)
    return Death(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), notes.read())
