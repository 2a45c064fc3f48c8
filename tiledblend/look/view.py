"""A page on this machine to look at a result, or at what blend would make: tiles over HTTP, on 127.0.0.1 only.

The page and all that it needs come from the package; every address in it is relative, so that it works through an SSH
tunnel. Who may ask: programs of this machine and pages served here. Other sites' pages are refused by the Host header
(DNS rebinding) and by what browsers say of a request's origin.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPServerRequest
from tornado.iostream import IOStream
from tornado.web import Application, HTTPError, RequestHandler

from tiledblend.containers.omezarr.documents import default_channels
from tiledblend.errors import ResourceError, TiledblendError, UsageError
from tiledblend.look.tiles import TILE, Channel, Gallery
from tiledblend.sources.base import Alpha

HOST = "127.0.0.1"
DEFAULT_PORT = 8421
LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")
MOST_WAITING = 64
"""Tiles that are asked for and not yet begun; further ones are told to come back."""
MOST_CONNECTIONS = 512
IDLE_SECONDS = 120
"""After which a connection that asks nothing is closed: a browser opens another one."""
_FILES = {
    "": ("index.html", "text/html; charset=utf-8"),
    "viewer.css": ("viewer.css", "text/css; charset=utf-8"),
    "viewer.js": ("viewer.js", "text/javascript; charset=utf-8"),
    "openseadragon.min.js": ("openseadragon.min.js", "text/javascript; charset=utf-8"),
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def is_local_name(host: str | None) -> bool:
    """True for a Host header that names this machine by itself: another name may be a page's that rebinds its DNS.

    >>> is_local_name("localhost:8421"), is_local_name("[::1]:80"), is_local_name("evil.example:8421")
    (True, True, False)
    """
    given = (host or "").lower()
    name = given[: given.index("]") + 1] if "]" in given else given.partition(":")[0]
    return name in LOCAL_NAMES


class _Handler(RequestHandler):
    """GET only (tornado answers 405 to the rest), from this machine's pages only."""

    def prepare(self) -> None:
        site = self.request.headers.get("Sec-Fetch-Site", "none")
        followed = self.request.headers.get("Sec-Fetch-Mode") == "navigate"
        if site not in ("none", "same-origin") and not followed:
            raise HTTPError(403, reason="asked for by another site's page")

    def set_default_headers(self) -> None:
        self.set_header("Server", "tiledblend")
        self.set_header("Content-Security-Policy", _POLICY)
        self.set_header("Cross-Origin-Resource-Policy", "same-origin")
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "no-store")

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """One line of text."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        line = str(error) if isinstance(error, TiledblendError) else self._reason
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(" ".join(line.split()) + "\n")

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """Errors of ours are told in the answer; tornado logs the others."""
        if not isinstance(value, TiledblendError):
            super().log_exception(typ, value, tb)


class _Elsewhere(RequestHandler):
    """The answer to what is meant for another host."""

    def prepare(self) -> None:
        self.set_status(403, "this page answers to localhost and 127.0.0.1 only")
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish("this page answers to localhost and 127.0.0.1 only\n")


class LocalApplication(Application):
    """Answers what is meant for this machine. A request may name its host in its first line, too, as to a proxy."""

    def find_handler(self, request: HTTPServerRequest, **keywords: Any) -> Any:
        """tornado's: what answers the request."""
        if not request.path.startswith("/"):
            meant = urlsplit(request.path)
            request.headers.add("Host", meant.netloc or request.path)
            request.path = meant.path if meant.netloc and meant.path else "/"
        hosts = request.headers.get_list("Host")
        if not hosts or not all(map(is_local_name, hosts)):
            return self.get_handler_delegate(request, _Elsewhere)
        return super().find_handler(request, **keywords)


class LocalServer(HTTPServer):
    """Turns away at once whom it could only keep waiting: a process holds so many open files and no more."""

    def handle_stream(self, stream: IOStream, address: Any) -> None:
        """tornado's: a connection that was accepted."""
        if len(self._connections) < most_connections():
            super().handle_stream(stream, address)
            return
        stream.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        stream.close()


def most_connections() -> int:
    """Half of the open files that this process may have; the rest is for what it shows."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST_CONNECTIONS if limit == resource.RLIM_INFINITY else min(MOST_CONNECTIONS, max(1, limit // 2))


class _File(_Handler):
    def get(self, name: str) -> None:
        if name not in _FILES:
            raise HTTPError(404, reason="no such page")
        path, kind = _FILES[name]
        self.set_header("Content-Type", kind)
        self.write(files("tiledblend.look").joinpath("viewer", path).read_bytes())


class _Work:
    """Threads that render, and how much may wait for them."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tiles")
        self._waiting = threading.Semaphore(MOST_WAITING + threads)

    async def run(self, work: Callable[[], Any]) -> Any:
        if not self._waiting.acquire(blocking=False):
            raise HTTPError(503, reason="too many tiles are asked for at once; ask again")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._waiting.release()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class _Scene(_Handler):
    def initialize(self, gallery: Gallery, work: _Work, session: str) -> None:
        self.gallery, self.work, self.session = gallery, work, session

    async def get(self) -> None:
        described = await self.work.run(lambda: describe(self.gallery))
        self.set_header("Content-Type", "application/json")
        self.write(json.dumps(described | {"session": self.session}))


class _Tile(_Handler):
    def initialize(self, gallery: Gallery, work: _Work) -> None:
        self.gallery, self.work = gallery, work
        self._gone = False

    def on_connection_close(self) -> None:
        self._gone = True

    async def get(self, view: str, level: str, row: str, column: str) -> None:
        text, overlap = self.get_query_argument("c", None), self.get_query_argument("o", "0")
        try:
            channels = None if text is None else parse_channels(text)
            place = int(level), int(row), int(column)
            px = int(overlap) if overlap.isdecimal() else -1
            # Who zoomed on has hung up: nobody waits for this tile.
            data = await self.work.run(lambda: b"" if self._gone else self.gallery.tile(view, *place, channels, px))
        except UsageError as error:
            raise HTTPError(404, reason=_one_line(error)) from error
        except TiledblendError as error:
            self.set_status(500)
            self.write_error(500, exc_info=(type(error), error, None))
            return
        self.set_header("Content-Type", "image/png")
        # The address holds the session: another run never meets this one's tiles.
        self.set_header("Cache-Control", "private, max-age=86400")
        self.write(data)


def _one_line(error: BaseException) -> str:
    # A status line is Latin-1.
    return " ".join(str(error).split()).encode("latin-1", "replace").decode("latin-1")[:200]


def parse_channels(text: str) -> list[Channel]:
    """Channels to draw, as the page writes them: index,RRGGBB,low,high with semicolons between; may be empty.

    >>> parse_channels("0,FF0000,0,255")
    [Channel(index=0, colour='FF0000', low=0.0, high=255.0)]
    """
    channels = []
    for part in filter(None, text[:8192].split(";")):
        try:
            index, colour, low, high = part.split(",")
            channels.append(Channel(int(index), colour, float(low), float(high)))
        except UsageError:
            raise
        except ValueError:
            raise UsageError(f"channel {part!r} is not of the form index,RRGGBB,low,high") from None
    return channels


def describe(gallery: Gallery) -> dict[str, Any]:
    """What the page needs to know, JSON types only. Reads the coarsest level when there are channels to stretch."""
    source = gallery.source
    unnamed, _ = default_channels(source.channels, is_rgb=source.is_rgb)
    names: Mapping[int, str] = dict(enumerate(source.info.channel_names))
    has_range = source.dtype.kind == "u"
    full = float(2 ** (8 * source.dtype.itemsize) - 1) if has_range else None
    return {
        "title": gallery.title,
        "note": gallery.note,
        "shape": list(gallery.shape),
        "levels": gallery.levels,
        "tile": TILE,
        "dtype": source.dtype.name,
        "pixel_size_um": None if source.pixel_size_um is None else list(source.pixel_size_um),
        "views": [
            {"id": v.id, "name": v.name, "kind": v.kind, "transparent": v.source.alpha is not Alpha.NONE}
            for v in gallery.views
        ],
        "edges": [{"id": view.id, "name": view.name, "colour": view.colour} for view in gallery.edges],
        "channels": [
            {
                "index": c.index,
                "name": names.get(c.index) or unnamed[c.index],
                "colour": c.colour,
                "low": c.low,
                "high": c.high,
                "full": full,
            }
            for c in (gallery.channels() if gallery.has_channels else ())
        ],
    }


def application(gallery: Gallery, work: _Work) -> Application:
    """The page's answers."""
    session = secrets.token_hex(8)
    shared = {"gallery": gallery, "work": work}
    return LocalApplication(
        [
            (r"/scene\.json", _Scene, {**shared, "session": session}),
            (r"/tile/([a-z0-9-]{1,24})/(\d{1,2})/(\d{1,8})/(\d{1,8})\.png", _Tile, shared),
            (r"/(.*)", _File),
        ],
        log_function=lambda handler: None,
    )


def serve(gallery: Gallery, *, port: int | None, threads: int, ready: Callable[[str], None]) -> None:
    """Serve the page until Ctrl-C or SIGTERM, in the main thread.

    port: None takes DEFAULT_PORT or, if that is taken, any free one; 0 a free one.

    ready: called with the page's address once it answers. Raises ResourceError when the port is taken.
    """
    with bound(port, DEFAULT_PORT) as listening:
        listening.setblocking(False)
        asyncio.run(_serve(gallery, listening, threads, ready))


def bound(port: int | None, usual: int) -> socket.socket:
    """A socket that listens on 127.0.0.1; port None: the usual one, or any. Raises ResourceError when it is taken."""
    try:
        return socket.create_server((HOST, usual if port is None else port))
    except OSError as error:
        if port is None:
            return socket.create_server((HOST, 0))
        raise ResourceError(f"port {port} of {HOST}: {error.strerror or error}; choose another --port") from error


async def _serve(gallery: Gallery, listening: socket.socket, threads: int, ready: Callable[[str], None]) -> None:
    work = _Work(threads)
    limits = {"max_body_size": 0, "max_header_size": 32_768, "idle_connection_timeout": IDLE_SECONDS}
    server = LocalServer(application(gallery, work), **limits)
    server.add_socket(listening)
    try:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        ready(f"http://{HOST}:{listening.getsockname()[1]}/")
        await stop.wait()
    finally:
        server.stop()
        await server.close_all_connections()
        work.close()
