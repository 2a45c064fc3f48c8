"""One driver at a time: a lock made of create-only objects, one per generation.

Whoever creates `lock.000007` holds the seventh generation until there is an eighth. Nothing is ever replaced, so the
lock works on file systems and buckets alike; a driver that was stopped and wakes up sees the newer generation.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tiledblend.bytes.objects import ObjectStore
from tiledblend.errors import RefusedError

_held_here: set[str] = set()


@dataclass(frozen=True)
class Holder:
    """Who holds a lock. machine: boot id and process namespace, in which `pid` and `started` mean something."""

    token: str
    host: str
    machine: str
    pid: int
    started: str
    time: float

    @classmethod
    def this_process(cls) -> Holder:
        """A new holder in this process."""
        pid = os.getpid()
        return cls(uuid.uuid4().hex, socket.gethostname(), _machine(), pid, _start_time(pid), time.time())

    @property
    def alive(self) -> bool | None:
        """True or False where this process can tell, None for another machine's."""
        if self.machine != _machine():
            return None
        if self.pid == os.getpid() and self.started == _start_time(self.pid):
            return self.token in _held_here
        return _start_time(self.pid) == self.started if self.started else _exists(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Lock:
    """A held generation of the lock under `prefix` (such as "lock.") in `store`."""

    def __init__(self, store: ObjectStore, prefix: str, generation: int, holder: Holder) -> None:
        self.store, self.prefix, self.generation, self.holder = store, prefix, generation, holder

    @classmethod
    def acquire(cls, store: ObjectStore, prefix: str = "lock.", *, attempts: int = 100) -> Lock:
        """Take the next generation. Raises RefusedError if the present holder may still be working on this machine.

        A holder on another machine cannot be asked: who calls this has the user's word that it is gone.
        """
        for _ in range(attempts):
            generation = _latest(store, prefix)
            refuse_living(store, prefix, generation)
            holder = Holder.this_process()
            lock = cls(store, prefix, generation + 1, holder)
            _held_here.add(holder.token)
            with lock.forgotten_on_failure():
                if store.put_new(_key(prefix, generation + 1), json.dumps(asdict(holder)).encode()):
                    return lock
            lock.forget()
        raise RefusedError(f"{store.uri}: other runs keep taking the lock; stop them, then run again with --resume")

    def check(self) -> None:
        """Raise RefusedError if another driver has taken a newer generation."""
        # One look at the next name instead of a listing: generations have no gaps.
        if self.store.size(_key(self.prefix, self.generation + 1)) is not None:
            newer = _read(self.store, _key(self.prefix, self.generation + 1))
            raise RefusedError(f"{self.store.uri}: taken over by {newer or 'another run'}; this run stops")
        if self.store.size(_key(self.prefix, self.generation)) is None:
            raise RefusedError(
                f"{self.store.uri}: the ledger is gone: finished or cleaned by another run; this run stops"
            )

    def release(self) -> None:
        """Give the lock up; the next driver needs not ask whether this one lives."""
        if self.holder.token in _held_here:
            _held_here.discard(self.holder.token)
            self.store.put_new(_key(self.prefix, self.generation) + ".released", b"")

    def forget(self) -> None:
        """Give the lock up when its objects are removed anyway, or when nothing was done under it."""
        _held_here.discard(self.holder.token)

    @contextmanager
    def forgotten_on_failure(self) -> Iterator[None]:
        """If the block fails, this process may try again: its lock is not taken for a living driver's."""
        try:
            yield
        except BaseException:
            self.forget()
            raise


def refuse_living(store: ObjectStore, prefix: str, generation: int | None = None) -> None:
    """Raise RefusedError if the holder of the latest generation is a living process of this machine."""
    generation = _latest(store, prefix) if generation is None else generation
    key = _key(prefix, generation)
    if generation and store.size(key + ".released") is None:
        holder = _read(store, key)
        if holder and holder.alive:
            raise RefusedError(f"{store.uri}: {holder} is writing this output; wait for it or stop it, then --resume")


def _key(prefix: str, generation: int) -> str:
    return f"{prefix}{generation:06d}"


def _latest(store: ObjectStore, prefix: str) -> int:
    names = (key.removeprefix(prefix).split(".")[0] for key, _ in store.list(prefix))
    return max((int(name) for name in names if name.isdecimal()), default=0)


def _read(store: ObjectStore, key: str) -> Holder | None:
    try:
        document: dict[str, Any] = json.loads(store.get(key) or b"")
        return Holder(**document)
    except (ValueError, TypeError):
        return None


def _machine() -> str:
    """Boot id and process namespace: equal only where process numbers mean the same."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"host {socket.gethostname()}"


def _start_time(pid: int) -> str:
    """When a process started, in clock ticks since boot; "" if it does not exist, is dead, or cannot be told."""
    with suppress(OSError, IndexError):
        # The command in parentheses may hold spaces: count the fields after it.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in ("Z", "X") else fields[19]
    return ""


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
