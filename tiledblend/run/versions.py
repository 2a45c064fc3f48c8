"""Driver and workers have the same packages, of those that decide pixels."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from tiledblend.bytes.waiting import ANSWER_SECONDS, asked, never
from tiledblend.errors import InterruptedRun, ResourceError

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)

FIRST_WORKER_SECONDS = 300.0


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
