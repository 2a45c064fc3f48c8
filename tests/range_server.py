"""A web server of a folder that answers byte ranges, as storage servers do and http.server does not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote

from object_stores import serving


@contextmanager
def range_server(folder: Path) -> Iterator[str]:
    """Yields the address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = folder / unquote(self.path.lstrip("/"))
            if not path.is_file():
                self.send_response_only(404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data = path.read_bytes()
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            first, last = (int(wanted[1]), int(wanted[2])) if wanted else (0, len(data) - 1)
            part = data[first : last + 1]
            self.send_response_only(206 if wanted else 200)
            if wanted:
                self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(part)))
            self.send_header("Last-Modified", formatdate(path.stat().st_mtime, usegmt=True))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(part)

        do_HEAD = do_GET  # noqa: N815 - the server's own name

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with serving(Handler) as address:
        yield address
