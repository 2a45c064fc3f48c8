"""A result over HTTP for the time of looking: files by ranges, for web viewers in this machine's browser.

On 127.0.0.1 only, under a path that nobody can guess: a viewer's page from elsewhere may read what its user gave it the
address of, and no other page can. Nothing but the result is served, no hidden file, and no way out of it.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import signal
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from tornado.web import Application, HTTPError, StaticFileHandler

from tiledblend.bytes.buckets import scheme_of
from tiledblend.errors import BadInputError, UsageError
from tiledblend.look.view import HOST, LocalApplication, LocalServer, bound

DEFAULT_PORT = 8422


class _Files(StaticFileHandler):
    """GET, HEAD and ranges by tornado; what may be asked for is decided here."""

    def initialize(self, path: str, *args: Any, **keywords: Any) -> None:
        """path: of the result, a folder or a file."""
        super().initialize(os.path.dirname(path), *args, **keywords)
        self._result = os.path.realpath(path)

    def set_default_headers(self) -> None:
        """Any page may read it that knows the address."""
        self.set_header("Server", "tiledblend")
        self.set_header("Access-Control-Allow-Origin", "*")
        self.set_header("Access-Control-Allow-Methods", "GET, HEAD, OPTIONS")
        self.set_header("Access-Control-Allow-Headers", "Range, If-None-Match, Cache-Control")
        self.set_header("Access-Control-Expose-Headers", "Content-Length, Content-Range, Accept-Ranges, ETag")
        self.set_header("Access-Control-Allow-Private-Network", "true")
        self.set_header("Cross-Origin-Resource-Policy", "cross-origin")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "no-cache")

    def options(self, path: str) -> None:
        """What a browser asks before it asks."""
        self.set_status(204)

    def parse_url_path(self, url_path: str) -> str:
        """The file below the result's folder that an address names."""
        if any(part.startswith(".") or not part for part in url_path.split("/")) or "\0" in url_path:
            raise HTTPError(404, reason="no such file")
        return super().parse_url_path(url_path)

    def validate_absolute_path(self, root: str, absolute_path: str) -> str | None:
        """The path, where it is a file of the result, links followed."""
        real = os.path.realpath(absolute_path)
        if not (real == self._result or real.startswith(self._result + os.sep)) or not os.path.isfile(real):
            raise HTTPError(404, reason="no such file")
        return absolute_path

    @classmethod
    def get_content_version(cls, abspath: str) -> str:
        """By time and size: a hash would read gigabytes for a range of a kilobyte."""
        found = os.stat(abspath)
        return f"{found.st_mtime_ns:x}-{found.st_size:x}"

    def get_content_type(self) -> str:
        """JSON where viewers want it so."""
        return "application/json" if self.path.endswith((".json", ".zattrs")) else "application/octet-stream"

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """One line of text."""
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(f"{self._reason}\n")


def serve_result(result: str, *, port: int | None, ready: Callable[[str], None]) -> None:
    """Serve a result's files until Ctrl-C or SIGTERM, in the main thread.

    result: a local path. port: None takes DEFAULT_PORT or, if that is taken, any free one; 0 a free one. ready: called
    with the result's address once it answers. Raises BadInputError, UsageError, ResourceError when the port is taken.
    """
    if scheme_of(result):
        raise UsageError(f"{result}: is an address already; serve is for a result on this machine's disks")
    path = os.path.abspath(os.path.expanduser(result)).rstrip("/")
    if not os.path.exists(path):
        raise BadInputError(f"{result}: no such file")
    token, name = secrets.token_urlsafe(9), os.path.basename(path)
    routes = [(rf"/{re.escape(token)}/({re.escape(quote(name))}(?:/.*)?)", _Files, {"path": path})]
    with bound(port, DEFAULT_PORT) as listening:
        listening.setblocking(False)
        made = LocalApplication(routes, log_function=lambda handler: None)
        asyncio.run(_serve(made, listening, lambda base: ready(f"{base}{token}/{quote(name)}")))


async def _serve(made: Application, listening: socket.socket, ready: Callable[[str], None]) -> None:
    server = LocalServer(made, max_body_size=0, max_header_size=32_768)
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
