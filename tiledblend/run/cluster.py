"""Which dask cluster a run uses: an embedded one by default, or one that is already there."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tiledblend.errors import InterruptedRun, RefusedError, ResourceError, UsageError
from tiledblend.guard.process import prepare_process, process_environment

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)

T = TypeVar("T")

LOOPBACK = "127.0.0.1:0"
DASHBOARD_PORT = 8787

SCHEDULER_FILE_SECONDS = 60.0
FIRST_WORKER_SECONDS = 300.0
ANSWER_SECONDS = 10.0
LOOK_SECONDS = 0.2
"""Between two looks for what is waited for; a stop is noticed then."""
THREADS_BYTES = 160_000_000
"""Addresses of what a cluster starts in a process: a dozen threads and their stacks, and what it imports then."""

MORE_MEMORY = "more memory (of the machine, container, job, `ulimit -v` or --memory-limit)"
"""What makes `memory_here` larger, for errors."""
LARGER_LIMIT = "a larger --memory-limit"
"""The same of a worker that has a limit of its own."""

IGNORE_CTRL_C = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
"""Run by dask in each worker process."""

UNWATCHED = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.low-level-log-length": 100,
}
"""Of a cluster here that nobody looks at: what dask's pages would show is not sampled or kept."""

_CONFIGURED = threading.Lock()

_OF_A_LOCAL_CLUSTER = ("workers", "threads_per_worker", "memory_limit", "local_directory", "dashboard")


@dataclass(frozen=True)
class ClusterOptions:
    """Where tasks run. All defaults: one process here, as many threads as CPUs that it may use.

    workers: worker processes here (None: threads of this process). threads_per_worker. memory_limit: bytes per worker,
    or "4GiB"; of a run in this process, what its memory is planned by. local_directory: for dask's files. dashboard:
    dask's web page on 127.0.0.1. scheduler: address of a running scheduler, such as tls://host:8786. scheduler_file:
    the JSON file it wrote. Without these two, what dask's own configuration says (`DASK_SCHEDULER_ADDRESS`), unless
    something of a cluster here is given.
    tls_*: PEM files, all three together; without them, dask's own configuration. performance_report: HTML file to
    write.
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
    dashboard: bool = False

    def __post_init__(self) -> None:
        for name in ("workers", "threads_per_worker"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise UsageError(f"{flag_of(name)} {value!r} must be a whole number, at least 1")
        self._memory_limit_bytes()  # refuses what is no size
        self._require_whole_tls()
        for name in ("scheduler", "scheduler_file"):
            if getattr(self, name) == "":
                raise UsageError(f"{flag_of(name)} is empty; name a scheduler, or leave it out for a cluster here")
        if self.scheduler and self.scheduler_file:
            raise UsageError("--scheduler and --scheduler-file name the cluster twice; give one of them")
        if (self.scheduler or self.scheduler_file) and self.local:
            raise UsageError(
                f"{flag_of(self.local[0])} is for a cluster that is started here; a running scheduler has its workers"
                " already"
            )
        if (self.dashboard or self.performance_report) and not _has_bokeh():
            flag = "--dashboard" if self.dashboard else "--performance-report"
            raise UsageError(f"{flag} needs the dashboard extra: pip install 'tiledblend[dashboard]'")
        if self.performance_report and os.path.exists(self.performance_report):
            raise RefusedError(f"{self.performance_report}: exists; name a new file for --performance-report")

    @property
    def local(self) -> list[str]:
        """Names of the given options that only a cluster of this process has."""
        return [name for name in _OF_A_LOCAL_CLUSTER if getattr(self, name)]

    def memory_here(self) -> int:
        """Bytes for tiles in threads of this process: `machine_memory`, or less where `memory_limit` says so."""
        limit = 0 if self.workers else self._memory_limit_bytes()
        return min(machine_memory(), limit) if limit else machine_memory()

    def memory_of_each(self) -> tuple[int | None, str]:
        """(bytes for each process that renders here, what would allow more). None: a running scheduler's workers say it
        themselves."""
        if running_scheduler(self) is not None:
            return None, ""
        if self.workers and (limit := self._memory_limit_bytes()):
            return limit, LARGER_LIMIT
        workers = self.workers or 1
        return self.memory_here() // workers, ("fewer --workers, " if workers > 1 else "") + MORE_MEMORY

    def _memory_limit_bytes(self) -> int:
        """0: none of our own (dask has meanings for "auto" and 0)."""
        if self.memory_limit is None or self.memory_limit == "auto":
            return 0
        dask_config()
        from dask.utils import parse_bytes

        try:
            size: int = parse_bytes(self.memory_limit)
        except (ValueError, TypeError, AttributeError):
            size = -1
        if size < 0:
            raise UsageError(f"--memory-limit {self.memory_limit!r} is not understood; give a size such as 4GiB")
        return size

    def _require_whole_tls(self) -> None:
        given = {name: getattr(self, name) for name in ("tls_ca_file", "tls_cert", "tls_key")}
        if any(given.values()) and not all(given.values()):
            raise UsageError("--tls-ca-file, --tls-cert and --tls-key go together; give all three")
        for name, path in given.items():
            if path and not os.access(path, os.R_OK):
                raise UsageError(f"{flag_of(name)} {path}: there is no such file, or it may not be read")
        if self.tls_ca_file and self.tls_cert and self.tls_key:
            _require_pem(self.tls_ca_file, self.tls_cert, self.tls_key)


def _require_pem(ca_file: str, cert: str, key: str) -> None:
    """Raises UsageError for files that hold no certificate or key, or not of one another: dask would blame the
    scheduler."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(ca_file)
    except OSError as error:
        raise UsageError(f"--tls-ca-file {ca_file}: holds no certificate in PEM form ({_reason(error)})") from None
    if b"ENCRYPTED" in Path(key).read_bytes():
        # OpenSSL would ask for the password here and once more when it connects.
        return
    try:
        context.load_cert_chain(cert, key)
    except OSError as error:
        raise UsageError(
            f"--tls-cert {cert} and --tls-key {key}: not a certificate in PEM form and its key ({_reason(error)})"
        ) from None


def _reason(error: OSError) -> str:
    return getattr(error, "reason", None) or error.strerror or type(error).__name__


def flag_of(name: str) -> str:
    """An option as the command line calls it."""
    return f"--{name.replace('_', '-')}"


def _has_bokeh() -> bool:
    from importlib.util import find_spec

    return find_spec("bokeh") is not None


def cpu_count() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_memory() -> int:
    """Bytes of memory for this process and its children: of the machine, or less in a container or a SLURM job."""
    import psutil

    return min([psutil.virtual_memory().total, *_addressable(), *group_limits()])


def group_limits(listing: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Bytes that the control groups of this process and those around them allow; [] without any limit.

    listing, mounted: as cgroups(7) has them. A container sees its own group as the root of `mounted`, whatever its name
    in `listing`.
    """
    limits = list[int]()
    with suppress(OSError, ValueError):
        for line in listing.read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            # Above memory.high nothing is killed, but everything waits for the kernel to find memory.
            names = ["memory.limit_in_bytes"] if controllers else ["memory.max", "memory.high"]
            own = mounted / ("memory" if controllers else "") / group.lstrip("/")
            for folder, name in product((own, *own.parents), names):
                with suppress(OSError, ValueError):
                    limits.append(int((folder / name).read_text()))
    return limits


def _addressable() -> list[int]:
    """Bytes that `ulimit -v` leaves for memory: it counts what is mapped, most of which is never used; [] without."""
    import resource

    import psutil

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return []
    used = psutil.Process().memory_info()
    return [max(0, limit - (used.vms - used.rss))]


def require_addresses() -> None:
    """Raise ResourceError if `ulimit -v` leaves no room for a cluster's threads: dask would wait for one for ever."""
    import resource

    import psutil

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    used = psutil.Process().memory_info().vms
    if limit != resource.RLIM_INFINITY and limit < used + THREADS_BYTES:
        needed = (used + THREADS_BYTES) / 1e6
        raise ResourceError(
            f"`ulimit -v` allows {limit / 1e6:,.0f} MB of addresses, and a run needs {needed:,.0f} MB before its first "
            "tile; raise it, or limit memory by a control group (systemd-run, SLURM, a container)"
        )


def require_open_files(options: ClusterOptions) -> None:
    """Raise this process's limit of open files where it may, or ResourceError if a local cluster cannot fit in it.

    Its worker processes have the same limit. Measured: an embedded cluster has 21 open with three inputs, a driver of
    1, 2 and 4 local workers 38, 50 and 71; a tile in the making has one of each of its levels (four by default).
    """
    import resource

    workers = options.workers or 0
    needed = 32 + 12 * workers + 4 * threads_of(options)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        remedy = "raise `ulimit -n`" + (" or use fewer --workers" if workers else "")
        raise ResourceError(f"too few open files are allowed: {hard}, a run needs up to {needed}; {remedy}")
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def threads_of(options: ClusterOptions) -> int:
    """Of each worker of a cluster here."""
    return options.threads_per_worker or max(1, cpu_count() // (options.workers or 1))


def forget_task_names() -> None:
    """Clear the names of this process's last tasks: dask keeps 100,000 to see what is before their first "-"."""
    from dask.utils import key_split

    key_split.cache_clear()


def dask_config() -> Any:
    """The module `dask.config`. Raises UsageError for a configuration file that dask cannot read."""
    try:
        import dask.config
    except ValueError as error:
        raise UsageError(" ".join(str(error).split())) from error
    return dask.config


def never() -> None:
    """The check of a wait that nothing interrupts."""


def asked(question: Callable[[], T], check: Callable[[], None] = never, seconds: float = math.inf) -> T:
    """What `question` returns or raises. It asks a cluster, and would wait for ever for one that is frozen.

    check: called a few times a second meanwhile; may raise. Raises TimeoutError after `seconds`.
    """
    answer: Future[T] = Future()

    def ask() -> None:
        try:
            answer.set_result(question())
        except BaseException as error:
            answer.set_exception(error)

    deadline = time.monotonic() + seconds
    threading.Thread(target=ask, name="ask-cluster", daemon=True).start()
    while not wait([answer], LOOK_SECONDS).done:
        check()
        if time.monotonic() > deadline:
            raise TimeoutError(f"no answer in {seconds:g} s")
    return answer.result()


@contextmanager
def open_client(options: ClusterOptions, check: Callable[[], None] = never) -> Iterator[Client]:
    """A client of the chosen cluster, closed at the end; an embedded cluster ends with it.

    An embedded cluster listens on 127.0.0.1 only. check: called while a running one is waited for, and when one here
    does not start; may raise.
    """
    scheduler = running_scheduler(options)
    if scheduler is None:
        require_open_files(options)
    require_addresses()
    if os.environ.get("DASK_LOGGING__DISTRIBUTED") == "critical":
        # Its import sets this logger's level apart from the others': a lost link is told in our own words.
        import distributed  # noqa: F401

        logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    if scheduler is not None:
        with scheduler.client(check=check) as client:
            require_same_versions(client, check)
            yield client
        return
    import dask.config
    from distributed import Client

    settings: dict[str, Any] = {
        "distributed.admin.log-format": "%(message)s",
        "distributed.nanny.pre-spawn-environ": process_environment(),
        **({} if options.dashboard or options.performance_report else UNWATCHED),
    }
    with ExitStack() as stack:
        # The configuration is the process's, and a cluster reads it when it starts. Held longer, or by two threads at
        # once, it would be another's, and what the last one puts back would be the first one's.
        with _CONFIGURED, dask.config.set(settings):
            cluster = stack.enter_context(_local_cluster(options, check))
            client = stack.enter_context(Client(cluster, set_as_default=False))
        if options.dashboard:
            log.warning("dashboard: %s", client.dashboard_link)
        yield client


@dataclass(frozen=True)
class RunningScheduler:
    """A scheduler that somebody else has started. address: or None for the one that `file` names."""

    options: ClusterOptions
    address: str | None
    file: str | None

    def __str__(self) -> str:
        return str(self.address or self.file)

    def client(self, seconds: float | None = None, check: Callable[[], None] = never) -> Client:
        """A new client. seconds: to wait for an answer (None: as dask's configuration says). check: may end the wait.

        Raises ResourceError when nobody answers or the answer is a refusal, UsageError for missing certificates.
        """
        import dask.config
        from dask.utils import parse_timedelta
        from distributed import Client
        from distributed.versions import VersionMismatchWarning

        address = self.address or _address_in(str(self.file), check)
        security = _security(self.options, address)
        settings = {"distributed.admin.log-format": "%(message)s"}
        with dask.config.set(settings), warnings.catch_warnings():
            # `require_same_versions` tells it in one line, and only of what decides pixels
            warnings.simplefilter("ignore", VersionMismatchWarning)
            try:
                timeout = parse_timedelta(seconds or dask.config.get("distributed.comm.timeouts.connect"))
                make = partial(Client, address, security=security, set_as_default=False, timeout=timeout)
                # What takes the connection and then says nothing is beyond dask's own patience.
                return asked(make, check, timeout + ANSWER_SECONDS)
            except (OSError, ValueError, KeyError, TypeError, RuntimeError, MemoryError, AssertionError) as error:
                check()
                reason = _dask_reason(error)
                raise ResourceError(
                    f"no dask scheduler answers at {self}: {reason}; check that it runs, its address, and on both sides"
                    " the same use of TLS"
                ) from error


def running_scheduler(options: ClusterOptions) -> RunningScheduler | None:
    """The scheduler that the options or dask's configuration name; None for a cluster of this process."""
    if options.scheduler or options.scheduler_file:
        return RunningScheduler(options, options.scheduler, options.scheduler_file)
    configured = dask_config().get("scheduler-address", None)
    if configured and options.local:
        log.warning("%s: a cluster here, not the configured scheduler %s", flag_of(options.local[0]), configured)
        return None
    return RunningScheduler(options, str(configured), None) if configured else None


def _dask_reason(error: BaseException) -> str:
    """Why dask does not start or connect, on one line."""
    if isinstance(error, MemoryError):
        # The first bytes of another kind of server, read as a length, are more than any memory.
        return "what answers there is no dask scheduler"
    if isinstance(error, AssertionError) and "Timeout too low" in str(error):
        return "dask's configuration distributed.comm.timeouts.tcp is too low; give it 12s or more"
    return " ".join(str(error).split())[:200] or type(error).__name__


def _address_in(path: str, check: Callable[[], None]) -> str:
    """The address in a scheduler's file, waiting for one that is still to be written: jobs may start both together."""
    deadline, is_told = time.monotonic() + SCHEDULER_FILE_SECONDS, False
    while True:
        content = _content(path)
        # The file of a scheduler that is just writing it breaks off somewhere.
        with suppress(ValueError):
            return _stated_address(json.loads(content), path)
        if time.monotonic() > deadline:
            found = "is not the file of a dask scheduler" if content else "was written by no dask scheduler"
            raise ResourceError(f"{path} {found} in {SCHEDULER_FILE_SECONDS:g} s; start one with --scheduler-file")
        if not is_told:
            log.warning("waiting up to %g s for a dask scheduler to write %s", SCHEDULER_FILE_SECONDS, path)
            is_told = True
        time.sleep(LOOK_SECONDS)
        check()


def _content(path: str) -> bytes:
    """Of a file that may not be there yet."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise UsageError(f"--scheduler-file {path}: cannot be read: {error.strerror}") from error


def _stated_address(document: Any, path: str) -> str:
    address = document.get("address") if isinstance(document, dict) else None
    if not isinstance(address, str) or not address:
        raise ResourceError(f"{path} is not the file of a dask scheduler: it names no address")
    return address


def require_same_versions(client: Client, check: Callable[[], None] = never) -> None:
    """Wait for a worker, and raise ResourceError if packages that decide pixels differ between client and workers.

    check: called while a worker is waited for; may raise. InterruptedRun when the scheduler is lost meanwhile.
    """
    try:
        _wait_for_a_worker(client, check)
        try:
            ask = partial(client.run, installed_versions, on_error="return")
            theirs: dict[str, Any] = asked(ask, check, ANSWER_SECONDS)
        except TimeoutError:
            # Somebody is frozen. Every task asks again.
            return
    except OSError as error:
        raise InterruptedRun("the dask scheduler was lost before the first tile; continue with --resume") from error
    for address, found in theirs.items():
        if isinstance(found, ImportError):
            raise ResourceError(f"dask worker {address} lacks a package: {found}; install the client's versions there")
        if not isinstance(found, Exception):  # else it died just now: who comes in its place is asked by its first task
            require_versions(installed_versions(), found, address)


def _wait_for_a_worker(client: Client, check: Callable[[], None]) -> None:
    deadline, is_told = time.monotonic() + FIRST_WORKER_SECONDS, False
    while True:
        try:
            asked(lambda: client.wait_for_workers(1, timeout=1), check, FIRST_WORKER_SECONDS)
            return
        except TimeoutError as error:
            if time.monotonic() > deadline:
                raise ResourceError(
                    f"the dask cluster has no worker after {FIRST_WORKER_SECONDS:g} s; start some and run again with"
                    " --resume"
                ) from error
            if not is_told:
                log.warning("waiting up to %g s for a worker of the dask cluster", FIRST_WORKER_SECONDS)
                is_told = True


def require_versions(ours: dict[str, str], theirs: dict[str, str], worker: str) -> None:
    """Raise ResourceError if packages that decide pixels differ between the driver (`ours`) and a worker."""
    unlike = [
        f"{name} {version} here, {theirs.get(name)} there"
        for name, version in ours.items()
        if theirs.get(name) != version
    ]
    if unlike:
        raise ResourceError(f"worker {worker} has other packages: {'; '.join(unlike)}; install the same on both")


@lru_cache
def installed_versions() -> dict[str, str]:
    """Versions, in this process, of what decides pixels."""
    import platform
    from importlib.metadata import version

    import tiledblend
    from tiledblend.describe.fingerprint import LIBRARIES

    python = ".".join(platform.python_version_tuple()[:2])
    return {"tiledblend": tiledblend.__version__, "python": python} | {name: version(name) for name in LIBRARIES}


def _security(options: ClusterOptions, address: str) -> Any:
    """Certificates: those given, else dask's own configuration (None)."""
    import dask.config

    if options.tls_ca_file:
        from distributed.security import Security

        return Security(
            tls_ca_file=options.tls_ca_file,
            tls_client_cert=options.tls_cert,
            tls_client_key=options.tls_key,
            require_encryption=True,
        )
    configured = ("distributed.comm.tls.ca-file", "distributed.client.security-loader")
    if address.startswith("tls://") and not any(dask.config.get(name, None) for name in configured):
        raise UsageError(
            f"{address} wants certificates; give --tls-ca-file, --tls-cert and --tls-key, or name them in dask's"
            " configuration (distributed.comm.tls)"
        )
    return None


@contextmanager
def _local_cluster(options: ClusterOptions, check: Callable[[], None]) -> Iterator[Any]:
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
            f"the local dask workers do not start: {_dask_reason(first)}; "
            "check `ulimit -n` and `ulimit -u`, memory, and --local-directory"
        ) from error
