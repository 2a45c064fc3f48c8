"""A proxy before an object store that counts what passes and, by a seed, does what stores and networks do on bad days.

Plain asyncio, HTTP/1.1 with kept connections, on 127.0.0.1 only; it ends with its `with` block.
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

STATUS_FAULTS = ("503", "500", "429")
FAULTS = (*STATUS_FAULTS, "stall", "stall in body", "reset", "truncate", "drop answer")
"""stall: no answer. reset: the connection is reset before the request is passed on. truncate: half of the body comes.
drop answer: the store does what was asked and the answer is lost."""
_CODES = {"503": "SlowDown", "500": "InternalError", "429": "TooManyRequests"}
_LIMIT = 1 << 20
MULTIPART = re.compile(r"[?&](uploads|uploadId)\b")


@dataclass(frozen=True)
class Passed:
    """A request that a client made. sent, received: bytes of the bodies. status: 0 where no answer was given."""

    method: str
    path: str
    status: int
    sent: int
    received: int
    fault: str | None = None


@dataclass
class StoreProxy:
    """upstream: endpoint of the store. fault: what happens to a request, with probability `rate` ("any": one of all).

    begins_after: number of requests before the first fault. expires_after: number of requests after which the
    credentials have expired (403). latency: seconds before each answer. Its counts are read when no client is running.
    """

    upstream: str
    fault: str | None = None
    rate: float = 0.0
    seed: int = 0
    begins_after: int = 0
    expires_after: int | None = None
    latency: float = 0.0
    passed: list[Passed] = field(default_factory=list)
    endpoint: str = ""

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def counts(self) -> Counter[str]:
        """Requests by method."""
        return Counter(request.method for request in self.passed)

    def faults(self) -> int:
        """How many requests something was done to."""
        return sum(request.fault is not None for request in self.passed)

    def multipart(self) -> list[Passed]:
        """Requests that belong to multipart uploads."""
        return [request for request in self.passed if MULTIPART.search(request.path)]

    @contextmanager
    def running(self) -> Iterator[str]:
        """Yields the endpoint."""
        ready = threading.Event()
        loop = asyncio.new_event_loop()
        stop = asyncio.Event()
        thread = threading.Thread(target=loop.run_until_complete, args=(self._serve(ready, stop),))
        thread.start()
        ready.wait(10)
        try:
            yield self.endpoint
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join()
            loop.close()

    async def _serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        connections: set[asyncio.Task[None]] = set()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            connections.add(task)
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await _Connection(self, reader, writer).run()
            writer.close()
            connections.discard(task)

        server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=_LIMIT)
        self.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready.set()
        await stop.wait()
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    def choose(self, method: str) -> str | None:
        """What happens to the next request."""
        if self.expires_after is not None and len(self.passed) >= self.expires_after:
            return "expired"
        if self.fault is None or len(self.passed) < self.begins_after:
            return None
        fault = self._random.choice(FAULTS) if self.fault == "any" else self.fault
        if fault == "drop answer" and method not in ("PUT", "POST", "DELETE"):
            return None
        if fault in ("truncate", "stall in body") and method != "GET":
            return None
        return fault if self._random.random() < self.rate else None


class _Connection:
    """One client's connection and, once it is needed, the one to the store that goes with it."""

    def __init__(self, proxy: StoreProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.proxy, self.reader, self.writer = proxy, reader, writer
        self._upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def run(self) -> None:
        try:
            while await self._one():
                pass
        finally:
            if self._upstream is not None:
                self._upstream[1].close()

    async def _one(self) -> bool:
        """Handle one request; False when the connection is over."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        method, path, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
        body = await self.reader.readexactly(int(_header(head, b"content-length") or 0))
        fault = self.proxy.choose(method)
        place = len(self.proxy.passed)
        self.proxy.passed.append(Passed(method, path, 0, len(body), 0, fault))

        def note(status: int, received: int) -> None:
            self.proxy.passed[place] = Passed(method, path, status, len(body), received, fault)

        if self.proxy.latency:
            await asyncio.sleep(self.proxy.latency)
        if fault in STATUS_FAULTS or fault == "expired":
            return await self._refuse(fault, method, note)
        if fault == "reset":
            _reset(self.writer)
            return False
        if fault == "stall":
            await self.reader.read(1)  # until the client gives up
            return False
        answer, data = await self._ask(head, body, method)
        if fault == "drop answer":
            _reset(self.writer)
            return False
        status = int(answer.split(b" ", 2)[1])
        if fault in ("truncate", "stall in body") and data:
            self.writer.write(answer + data[: len(data) // 2])
            await self.writer.drain()
            note(status, len(data) // 2)
            if fault == "stall in body":
                await self.reader.read(1)
            return False
        self.writer.write(answer + data)
        await self.writer.drain()
        note(status, len(data))
        return True

    async def _refuse(self, fault: str, method: str, note: Callable[[int, int], None]) -> bool:
        code, status = ("ExpiredToken", "403") if fault == "expired" else (_CODES[fault], fault)
        text = b"" if method == "HEAD" else f"<Error><Code>{code}</Code></Error>".encode()
        self.writer.write(b"HTTP/1.1 %s no\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(text), text))
        await self.writer.drain()
        note(int(status), len(text))
        return True

    async def _ask(self, head: bytes, body: bytes, method: str) -> tuple[bytes, bytes]:
        """(head, body) of the store's answer, the body of known length."""
        for attempt in range(2):
            if self._upstream is None:
                where = urlsplit(self.proxy.upstream)
                self._upstream = await asyncio.open_connection(where.hostname, where.port, limit=_LIMIT)
            reader, writer = self._upstream
            try:
                writer.write(head + body)
                await writer.drain()
                answer = await reader.readuntil(b"\r\n\r\n")
                while answer.split(b" ", 2)[1] == b"100":
                    answer = await reader.readuntil(b"\r\n\r\n")
                break
            except (OSError, asyncio.IncompleteReadError):
                # The store has closed a kept connection.
                writer.close()
                self._upstream = None
                if attempt:
                    raise
        if b"chunked" in (_header(answer, b"transfer-encoding") or b""):
            data = await _chunks(reader)
            answer = re.sub(rb"(?i)\r\ntransfer-encoding:[^\r]*", b"", answer)
            return answer[:-2] + b"Content-Length: %d\r\n\r\n" % len(data), data
        status = int(answer.split(b" ", 2)[1])
        length = 0 if method == "HEAD" or status in (204, 304) else int(_header(answer, b"content-length") or 0)
        return answer, await reader.readexactly(length)


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    parts = []
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    await reader.readuntil(b"\r\n")
    return b"".join(parts)


def _header(head: bytes, name: bytes) -> bytes | None:
    found = re.search(rb"(?i)\r\n" + name + rb":[ \t]*([^\r]*)", head)
    return found[1] if found else None


def _reset(writer: asyncio.StreamWriter) -> None:
    """End the connection by RST."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
