"""A cluster that is started here: threads of this process, or worker processes of this machine."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from tiledblend.errors import ResourceError
from tiledblend.guard.process import SAFE_PATH, prepare_process
from tiledblend.run.options import ClusterOptions, threads_of
from tiledblend.run.scheduler import dask_reason, given_security
from tiledblend.run.scratch import forget_imports, private_folder

DASHBOARD_PORT = 8787


@contextmanager
def local_cluster(options: ClusterOptions, check: Callable[[], None]) -> Iterator[Any]:
    """A started cluster with files in a private folder; ended at the end.

    Threads of this process open no port. Worker processes and their scheduler take connections on 127.0.0.1 from whom
    has the certificate that was made for this run, or the options' own. Web pages are there with `dashboard` only.
    """
    prepare_process()
    with private_folder(options.local_directory) as folder:
        with _deaf_children() if options.workers else nullcontext():
            started = _started(partial(_cluster, options, folder), check)
        # Nothing of ours is imported from there.
        forget_imports(folder)
        with started as cluster:
            yield cluster


def _cluster(options: ClusterOptions, folder: Path) -> Any:
    import dask.config
    from distributed import Nanny
    from distributed.deploy.spec import SpecCluster
    from distributed.security import Security

    from tiledblend.run.nodes import ProcessWorker, QuietScheduler, QuietWorker, extensions, local_hosts

    port = _dashboard_port() if options.dashboard else None
    settings: dict[str, Any] = {"temporary-directory": str(folder), "distributed.worker.http.routes": []}
    if port is None:
        settings["distributed.scheduler.http.routes"] = []
    else:
        # dask would take a web socket from any page that the user's browser shows.
        origins = "distributed.scheduler.dashboard.bokeh-application.allow_websocket_origin"
        settings[origins] = list(local_hosts(port))
    common: dict[str, Any] = {"protocol": "inproc://", "security": Security(require_encryption=False)}
    node: dict[str, Any] = {"local_directory": str(folder), "nthreads": threads_of(options)}
    if options.workers is None:
        # Nothing leaves the process, whatever dask's configuration says of encryption between hosts. And dask would
        # measure and kill the user's own program: the plan bounds the memory instead.
        made: type[Any] = QuietWorker
        node |= {"memory_limit": 0}
    else:
        made = Nanny
        common = {
            "protocol": "tls://",
            "security": given_security(options) or Security.temporary(),
            "host": "127.0.0.1",
        }
        node |= {"memory_limit": options.memory_limit or 0, "worker_class": ProcessWorker}
    node |= {**common, "silence_logs": logging.CRITICAL, "dashboard": False}
    scheduler = {
        **common,
        "port": 0,
        "dashboard": port is not None,
        "dashboard_address": None if port is None else f"127.0.0.1:{port}",
        "extensions": extensions(steals=dask.config.get("distributed.scheduler.work-stealing")),
    }
    with dask.config.set(settings):
        return SpecCluster(
            scheduler={"cls": QuietScheduler, "options": scheduler},
            workers={number: {"cls": made, "options": node} for number in range(options.workers or 1)},
            security=common["security"],
            silence_logs=logging.CRITICAL,
        )


def _dashboard_port() -> int:
    """dask's usual port of 127.0.0.1, or any free one when that is taken (dask would warn)."""
    import socket

    for wanted in (DASHBOARD_PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", wanted))
            except OSError:
                continue
            port: int = probe.getsockname()[1]
            return port
    raise ResourceError("no port of 127.0.0.1 is free for --dashboard")


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes that threads of this block start do not hear Ctrl-C, not even before they import anything."""
    before = os.environ.get(SAFE_PATH)
    os.environ[SAFE_PATH] = "1"
    # It would unblock the signal in the thread that starts it.
    resource_tracker.ensure_running()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        os.environ.pop(SAFE_PATH)
        if before is not None:
            os.environ[SAFE_PATH] = before


def _started(start: Callable[[], Any], check: Callable[[], None]) -> Any:
    try:
        return start()
    except (OSError, RuntimeError, AssertionError) as error:
        # Workers that were told to end while they started.
        check()
        first: BaseException = error
        while (cause := first.__cause__ or first.__context__) is not None:
            first = cause
        raise ResourceError(
            f"the local dask workers do not start: {dask_reason(first)}; "
            "check `ulimit -n` and `ulimit -u`, memory, and --local-directory"
        ) from error
