"""Which dask cluster a run uses: an embedded one by default, or one that is already there."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiledblend.errors import ResourceError, UsageError
from tiledblend.process import malloc_environment, prepare_process

if TYPE_CHECKING:
    from distributed import Client

LOOPBACK = "127.0.0.1:0"

SCHEDULER_FILE_SECONDS = 60.0
FIRST_WORKER_SECONDS = 300.0


IGNORE_CTRL_C = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
"""Run by dask in each worker process."""


@dataclass(frozen=True)
class ClusterOptions:
    """Where tasks run. All defaults: one process here, as many threads as CPUs that it may use.

    workers: worker processes here (None: threads of this process). threads_per_worker. memory_limit: bytes per worker,
    or "4GiB".
    local_directory: for dask's files. scheduler: address of a running scheduler, such as tls://host:8786.
    scheduler_file: the JSON file it wrote.
    tls_*: PEM files, all three together. performance_report: HTML file to write.
    """

    workers: int | None = None
    threads_per_worker: int | None = None
    memory_limit: str | int | None = None
    local_directory: str | None = None
    scheduler: str | None = None
    scheduler_file: str | None = None
    tls_ca_file: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    performance_report: str | None = None

    def __post_init__(self) -> None:
        for name in ("workers", "threads_per_worker"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} {value} must be at least 1")
        tls = (self.tls_ca_file, self.tls_cert, self.tls_key)
        if any(tls) and not all(tls):
            raise UsageError("--tls-ca-file, --tls-cert and --tls-key go together; give all three")
        if self.scheduler and self.scheduler_file:
            raise UsageError("--scheduler and --scheduler-file name the cluster twice; give one of them")


def cpu_count() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_memory() -> int:
    """Bytes of memory for this process and its children: of the machine, or less in a container or a SLURM job."""
    import psutil

    limits = [psutil.virtual_memory().total]
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            root, name = ("memory", "memory.limit_in_bytes") if controllers else ("", "memory.max")
            own = Path("/sys/fs/cgroup", root, group.lstrip("/"))
            for folder in (own, *own.parents):
                with suppress(OSError, ValueError):
                    limits.append(int((folder / name).read_text()))
    return min(limits)


def require_open_files(workers: int | None) -> None:
    """Raise this process's limit of open files where it may, or ResourceError if a local cluster cannot fit in it.

    Measured: an embedded cluster has 21 open with three inputs, a driver of 1, 2 and 4 local workers 38, 50 and 71.
    """
    import resource

    needed = 32 + 12 * (workers or 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        remedy = "raise `ulimit -n`" + (" or use fewer --workers" if workers else "")
        raise ResourceError(f"too few open files are allowed: {hard}, a run needs up to {needed}; {remedy}")
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


@contextmanager
def open_client(options: ClusterOptions) -> Iterator[Client]:
    """A client of the chosen cluster, closed at the end; an embedded cluster ends with it.

    Listens on 127.0.0.1 only.
    """
    import dask.config
    from distributed import Client
    from distributed.versions import VersionMismatchWarning

    address = _address(options)
    require_open_files(options.workers if address is None else None)
    if os.environ.get("DASK_LOGGING__DISTRIBUTED") == "critical":
        # dask's defaults set this logger's level apart from the others'
        logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    settings: dict[str, Any] = {
        "distributed.admin.log-format": "%(message)s",
        "distributed.nanny.pre-spawn-environ": malloc_environment(),
    }
    with dask.config.set(settings):
        if address is None:
            with _local_cluster(options) as cluster, Client(cluster, set_as_default=False) as client:
                yield client
            return
        if "scheduler_file" in address:
            _await_file(address["scheduler_file"])
        try:
            with warnings.catch_warnings():
                # `require_same_versions` tells it in one line, and only of what decides pixels
                warnings.simplefilter("ignore", VersionMismatchWarning)
                client = Client(security=_security(options), set_as_default=False, **address)
        except (OSError, TimeoutError, ValueError) as error:
            where = options.scheduler or options.scheduler_file or "the configured scheduler"
            raise ResourceError(
                f"no dask scheduler answers at {where}: {' '.join(str(error).split())[:200]}"
            ) from error
        with client:
            require_same_versions(client)
            yield client


def _await_file(path: str) -> None:
    """Until a scheduler that is being started has written its file; dask itself would wait for ever."""
    deadline = time.monotonic() + SCHEDULER_FILE_SECONDS
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            raise ResourceError(
                f"no dask scheduler has written {path} in {SCHEDULER_FILE_SECONDS:g} s; start one with it"
            )
        time.sleep(0.2)


def require_same_versions(client: Client) -> None:
    """Wait for a worker, and raise ResourceError if packages that decide pixels differ between client and workers."""
    try:
        client.wait_for_workers(1, timeout=FIRST_WORKER_SECONDS)
        theirs: dict[str, dict[str, str]] = client.run(installed_versions)
    except TimeoutError as error:
        raise ResourceError(
            f"the dask cluster has no worker after {FIRST_WORKER_SECONDS:g} s; start some and run again with --resume"
        ) from error
    except ImportError as error:
        raise ResourceError(f"a dask worker lacks a package: {error}; install the client's versions there") from error
    ours = installed_versions()
    for address, found in theirs.items():
        unlike = [
            f"{name} {version} here, {found.get(name)} there"
            for name, version in ours.items()
            if found.get(name) != version
        ]
        if unlike:
            raise ResourceError(f"worker {address} has other packages: {'; '.join(unlike)}; install the same on both")


def installed_versions() -> dict[str, str]:
    """Versions, in this process, of what decides pixels."""
    import platform
    from importlib.metadata import version

    import tiledblend
    from tiledblend.fingerprint import LIBRARIES

    python = ".".join(platform.python_version_tuple()[:2])
    return {"tiledblend": tiledblend.__version__, "python": python} | {name: version(name) for name in LIBRARIES}


def _address(options: ClusterOptions) -> dict[str, Any] | None:
    import dask.config

    if options.scheduler:
        return {"address": options.scheduler}
    if options.scheduler_file:
        return {"scheduler_file": options.scheduler_file}
    if configured := dask.config.get("scheduler-address", None):
        return {"address": configured}
    return None


def _security(options: ClusterOptions) -> Any:
    if not options.tls_ca_file:
        return None
    from distributed.security import Security

    return Security(
        tls_ca_file=options.tls_ca_file,
        tls_client_cert=options.tls_cert,
        tls_client_key=options.tls_key,
        require_encryption=True,
    )


@contextmanager
def _local_cluster(options: ClusterOptions) -> Iterator[Any]:
    from distributed import LocalCluster, Worker

    prepare_process()

    class LoopbackWorker(Worker):  # type: ignore[misc, unused-ignore]
        """A thread of this process has no host, and dask would open its web pages to every network."""

        def start_http_server(
            self, routes: Any, dashboard_address: Any, default_port: Any = 0, ssl_options: Any = None
        ) -> None:
            super().start_http_server(routes, LOOPBACK, default_port, ssl_options)

    threads = options.threads_per_worker or max(1, cpu_count() // (options.workers or 1))
    start = partial(
        LocalCluster,
        n_workers=options.workers or 1,
        threads_per_worker=threads,
        processes=options.workers is not None,
        # In one process dask would measure and kill the user's own program: the plan bounds the memory instead.
        memory_limit=options.memory_limit if options.workers is not None and options.memory_limit else 0,
        dashboard_address=None,
        # Any free port: 8787 may be taken, and dask warns then.
        scheduler_kwargs={"dashboard_address": LOOPBACK},
        worker_class=None if options.workers is not None else LoopbackWorker,
        host="127.0.0.1" if options.workers is not None else None,
        local_directory=options.local_directory,
        # The driver takes Ctrl-C and tells the workers.
        **({"preload": IGNORE_CTRL_C} if options.workers is not None else {}),
        silence_logs=logging.CRITICAL,
    )
    with _started(start) as cluster:
        yield cluster


def _started(start: Callable[[], Any]) -> Any:
    try:
        return start()
    except (OSError, RuntimeError) as error:
        first: BaseException = error
        while (cause := first.__cause__ or first.__context__) is not None:
            first = cause
        raise ResourceError(
            f"the local dask workers do not start: {' '.join(str(first).split())[:200] or type(first).__name__}; "
            "check `ulimit -n` and `ulimit -u`, memory, and --local-directory"
        ) from error
