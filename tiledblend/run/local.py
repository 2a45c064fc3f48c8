"""A cluster that is started here: threads of this process, or worker processes of this machine."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from multiprocessing import resource_tracker
from typing import Any

from tiledblend.errors import ResourceError
from tiledblend.guard.process import prepare_process
from tiledblend.run.options import ClusterOptions, threads_of
from tiledblend.run.scheduler import dask_reason

LOOPBACK = "127.0.0.1:0"
DASHBOARD_PORT = 8787

IGNORE_CTRL_C = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
"""Run by dask in each worker process."""


@contextmanager
def local_cluster(options: ClusterOptions, check: Callable[[], None]) -> Iterator[Any]:
    import dask.config
    from distributed import LocalCluster, Worker
    from distributed.scheduler import DEFAULT_EXTENSIONS
    from distributed.security import Security
    from distributed.spans import SpansSchedulerExtension

    prepare_process()

    class LoopbackWorker(Worker):  # type: ignore[misc, unused-ignore]
        """A thread of this process has no host, and dask would open its web pages to every network."""

        def start_http_server(
            self, routes: Any, dashboard_address: Any, default_port: Any = 0, ssl_options: Any = None
        ) -> None:
            super().start_http_server(routes, LOOPBACK, default_port, ssl_options)

    class ForgetfulSpans(SpansSchedulerExtension):  # type: ignore[misc, unused-ignore]
        """dask notes for ever how each task was submitted, and nobody asks for it."""

        def observe_tasks(self, tss: Any, code: Any, span_metadata: Any) -> Any:
            return super().observe_tasks(tss, code, {"collections": []})

    threads = threads_of(options)
    steals = dask.config.get("distributed.scheduler.work-stealing")
    extensions = {name: made for name, made in DEFAULT_EXTENSIONS.items() if steals or name != "stealing"}
    how: dict[str, Any] = {
        "threads_per_worker": threads,
        "dashboard_address": _dashboard_address() if options.dashboard else None,
        # Health and metrics pages without the dashboard.
        "scheduler_kwargs": {
            "extensions": {**extensions, "spans": ForgetfulSpans},
            **({} if options.dashboard else {"dashboard_address": LOOPBACK}),
        },
        "local_directory": options.local_directory,
        "silence_logs": logging.CRITICAL,
    }
    if options.workers is None:
        # Nothing leaves the process, whatever dask's configuration says of encryption between hosts. And dask would
        # measure and kill the user's own program: the plan bounds the memory instead.
        inside = Security(require_encryption=False)
        how |= {"processes": False, "n_workers": 1, "worker_class": LoopbackWorker, "memory_limit": 0}
        how |= {"protocol": "inproc://", "security": inside}
    else:
        # The driver takes Ctrl-C and tells the workers.
        how |= {"processes": True, "n_workers": options.workers, "host": "127.0.0.1", "preload": IGNORE_CTRL_C}
        how |= {"memory_limit": options.memory_limit or 0}
    folders = set[str]()
    try:
        with _deaf_children() if options.workers else nullcontext():
            started = _started(partial(LocalCluster, **how), check)
        with started as cluster:
            if options.workers:
                folders |= {worker.local_directory for worker in cluster.workers.values()}
            yield cluster
    finally:
        _purge_scratch(folders)


def _purge_scratch(folders: Iterable[str]) -> None:
    """Remove what workers that were killed left in dask's folders: dask looks only when it starts another one there."""
    from distributed.diskutils import WorkSpace

    for folder in folders:
        with suppress(OSError):
            WorkSpace(folder).new_work_dir(prefix="purge-").release()


def _dashboard_address() -> str:
    """dask's usual port of 127.0.0.1, or any free one when that is taken (dask would warn)."""
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", DASHBOARD_PORT))
        except OSError:
            return LOOPBACK
    return f"127.0.0.1:{DASHBOARD_PORT}"


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes that threads of this block start do not hear Ctrl-C, not even before their preload is run."""
    # It would unblock the signal in the thread that starts it.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
