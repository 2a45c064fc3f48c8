"""Where tasks run, as the flags say it: checked when it is made."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiledblend.errors import RefusedError, UsageError
from tiledblend.run.machine import cpu_count, machine_memory

log = logging.getLogger(__name__)

MORE_MEMORY = "more memory (of the machine, container, job, `ulimit -v` or --memory-limit)"
"""What makes `memory_here` larger, for errors."""
LARGER_LIMIT = "a larger --memory-limit"
"""The same of a worker that has a limit of its own."""

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

    def configured_scheduler(self) -> str | None:
        """The scheduler that dask's configuration names; None where something of a cluster here is given."""
        configured = dask_config().get("scheduler-address", None)
        if configured and self.local:
            log.warning("%s: a cluster here, not the configured scheduler %s", flag_of(self.local[0]), configured)
            return None
        return str(configured) if configured else None

    def memory_here(self) -> int:
        """Bytes for tiles in threads of this process: `machine_memory`, or less where `memory_limit` says so."""
        limit = 0 if self.workers else self._memory_limit_bytes()
        return min(machine_memory(), limit) if limit else machine_memory()

    def memory_of_each(self) -> tuple[int | None, str]:
        """(bytes for each process that renders here, what would allow more). None: a running scheduler's workers say it
        themselves."""
        if self.scheduler or self.scheduler_file or self.configured_scheduler():
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


def threads_of(options: ClusterOptions) -> int:
    """Of each worker of a cluster here."""
    return options.threads_per_worker or max(1, cpu_count() // (options.workers or 1))


def dask_config() -> Any:
    """The module `dask.config`. Raises UsageError for a configuration file that dask cannot read."""
    try:
        import dask.config
    except ValueError as error:
        raise UsageError(" ".join(str(error).split())) from error
    return dask.config
