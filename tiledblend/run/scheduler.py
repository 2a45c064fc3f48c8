"""A dask scheduler that somebody else has started: found, and asked for a client."""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiledblend.bytes.waiting import ANSWER_SECONDS, LOOK_SECONDS, asked, never
from tiledblend.errors import ResourceError, UsageError
from tiledblend.run.options import ClusterOptions

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)

SCHEDULER_FILE_SECONDS = 60.0


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
                reason = dask_reason(error)
                raise ResourceError(
                    f"no dask scheduler answers at {self}: {reason}; check that it runs, its address, and on both sides"
                    " the same use of TLS"
                ) from error


def running_scheduler(options: ClusterOptions) -> RunningScheduler | None:
    """The scheduler that the options or dask's configuration name; None for a cluster of this process."""
    if options.scheduler or options.scheduler_file:
        return RunningScheduler(options, options.scheduler, options.scheduler_file)
    configured = options.configured_scheduler()
    return RunningScheduler(options, configured, None) if configured else None


def dask_reason(error: BaseException) -> str:
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


def given_security(options: ClusterOptions) -> Any:
    """The certificate that the options name, for whatever part we have in a cluster; None without."""
    if not options.tls_ca_file:
        return None
    from distributed.security import Security

    files = {
        f"tls_{role}_{what}": path
        for role in ("client", "scheduler", "worker")
        for what, path in (("cert", options.tls_cert), ("key", options.tls_key))
    }
    return Security(tls_ca_file=options.tls_ca_file, require_encryption=True, **files)


def _security(options: ClusterOptions, address: str) -> Any:
    """Certificates: those given, else dask's own configuration (None)."""
    import dask.config

    if (given := given_security(options)) is not None:
        return given
    configured = ("distributed.comm.tls.ca-file", "distributed.client.security-loader")
    if address.startswith("tls://") and not any(dask.config.get(name, None) for name in configured):
        raise UsageError(
            f"{address} wants certificates; give --tls-ca-file, --tls-cert and --tls-key, or name them in dask's"
            " configuration (distributed.comm.tls)"
        )
    return None
