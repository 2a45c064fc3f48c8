"""dask's scheduler and workers as a cluster of ours has them: without web pages, or with one that checks who is meant.

Imports distributed, so that worker processes find these classes by name; nobody else imports this module at its top.
"""

from __future__ import annotations

import signal
from collections.abc import Collection
from typing import Any

from distributed import Scheduler, Worker
from distributed.scheduler import DEFAULT_EXTENSIONS
from distributed.spans import SpansSchedulerExtension
from tornado.httputil import HTTPMessageDelegate, HTTPServerRequest
from tornado.routing import Router
from tornado.web import Application, ErrorHandler


class QuietWorker(Worker):  # type: ignore[misc, unused-ignore]
    """A worker without web pages: dask would open them to every network for a thread of this process."""

    def start_http_server(self, *_: Any, **__: Any) -> None:
        """Nothing."""


class ProcessWorker(QuietWorker):
    """The same as a process of its own. The driver takes Ctrl-C and tells its workers."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        super().__init__(*arguments, **keywords)


class QuietScheduler(Scheduler):  # type: ignore[misc, unused-ignore]
    """A scheduler whose pages are there only where a dashboard is wanted, for who asks by this machine's own name."""

    def start_http_server(
        self, routes: Any, dashboard_address: Any, default_port: Any = 0, ssl_options: Any = None
    ) -> None:
        """The dashboard on its address of 127.0.0.1, or nothing."""
        if dashboard_address is None:
            return
        super().start_http_server(routes, dashboard_address, default_port, ssl_options)
        hosts = local_hosts(self.services["dashboard"].port)
        self.http_server.request_callback = _OfThisMachine(self.http_application, hosts)


def local_hosts(port: int) -> tuple[str, str]:
    """What a browser on this machine sends as Host. Another name leads here only by somebody's DNS."""
    return f"127.0.0.1:{port}", f"localhost:{port}"


class _OfThisMachine(Router):
    """403 for every request that was meant for another host."""

    def __init__(self, application: Application, hosts: Collection[str]) -> None:
        self._application, self._hosts = application, hosts

    def find_handler(self, request: HTTPServerRequest, **keywords: Any) -> HTTPMessageDelegate | None:
        """tornado's: what answers the request."""
        if request.host in self._hosts:
            return self._application.find_handler(request, **keywords)
        return self._application.get_handler_delegate(request, ErrorHandler, {"status_code": 403})


class ForgetfulSpans(SpansSchedulerExtension):  # type: ignore[misc, unused-ignore]
    """dask notes for ever how each task was submitted, and nobody asks for it."""

    def observe_tasks(self, tss: Any, code: Any, span_metadata: Any) -> Any:
        """dask's, without the code."""
        return super().observe_tasks(tss, code, {"collections": []})


def extensions(*, steals: bool) -> dict[str, Any]:
    """Of a scheduler here. steals: with dask's work stealing."""
    kept = {name: made for name, made in DEFAULT_EXTENSIONS.items() if steals or name != "stealing"}
    return kept | {"spans": ForgetfulSpans}
