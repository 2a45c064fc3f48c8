"""Driver and workers have the same packages, of those that decide pixels."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from tiledblend.bytes.waiting import ANSWER_SECONDS, asked, never
from tiledblend.errors import InterruptedRun, ResourceError

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)

FIRST_WORKER_SECONDS = 300.0
LACKING_SECONDS = 30.0
PAUSED_SECONDS = 20.0
MOST_ASKED = 16


def require_same_versions(client: Client, check: Callable[[], None] = never) -> None:
    """Wait for a worker, and raise ResourceError if packages that decide pixels differ between client and workers.

    A worker that lacks one is left out of a run (`Workforce`); ResourceError when no other comes for LACKING_SECONDS.
    check: called while a worker is waited for; may raise. InterruptedRun when the scheduler is lost meanwhile.
    """
    told: set[str] = set()
    try:
        _wait_for_a_worker(client, check)
        deadline = time.monotonic() + LACKING_SECONDS
        while lacking(found := probed(client, None, check)):
            if time.monotonic() > deadline:
                raise none_is_able(found)
            if not told:
                log.warning("waiting up to %g s for a dask worker that has tiledblend", LACKING_SECONDS)
            tell_lacking(found, told)
            time.sleep(1)
            check()
    except OSError as error:
        raise InterruptedRun("the dask scheduler was lost before the first tile; continue with --resume") from error
    for address, worker in found.items():
        if worker.lacks is None:
            require_versions(installed_versions(), worker.versions, address)


@dataclass(frozen=True)
class Probed:
    """What a worker says of itself. lacks: why it cannot do our tasks, None where it can. pause: the share of its
    memory limit at which dask lets it begin no more tasks, 1 where it never does."""

    versions: dict[str, str]
    lacks: str | None
    pause: float


def probed(client: Client, addresses: list[str] | None, check: Callable[[], None] = never) -> dict[str, Probed]:
    """By address, what workers say (None: all of them). Who does not answer in time, or dies meanwhile, is not in it.

    Nothing of this package is sent: a worker that lacks it would end over our first task, and with it what others have
    there.
    """

    def ask(some: list[str] | None) -> dict[str, Any]:
        send = partial(client.run, _probe(), list(installed_versions()), workers=some, on_error="return")
        answers: dict[str, Any] = asked(send, check, ANSWER_SECONDS)
        return answers

    try:
        answers = ask(addresses)
    except TimeoutError:
        # Somebody is frozen, and shall not hide the others.
        answers = {}
        everybody = addresses if addresses is not None else list(client.scheduler_info(n_workers=-1)["workers"])
        with ThreadPoolExecutor(min(len(everybody), MOST_ASKED) or 1) as pool:
            for future in [pool.submit(ask, [address]) for address in everybody]:
                with suppress(TimeoutError):
                    answers |= future.result()
    return {address: Probed(**answer) for address, answer in answers.items() if isinstance(answer, dict)}


def _probe() -> Callable[..., dict[str, Any]]:
    def probe(names: list[str], dask_worker: Any) -> dict[str, Any]:
        # A function within a function travels as its code: nothing here may name this module.
        import platform
        from importlib.metadata import PackageNotFoundError, version

        found, lacks = {"python": ".".join(platform.python_version_tuple()[:2])}, None
        for name in names:
            try:
                if name == "tiledblend":
                    import tiledblend

                    found[name] = tiledblend.__version__
                elif name != "python":
                    found[name] = version(name)
            except (ImportError, PackageNotFoundError):
                lacks = lacks or f"no package {name}"
        pause = getattr(getattr(dask_worker, "memory_manager", None), "memory_pause_fraction", False)
        return {"versions": found, "lacks": lacks, "pause": float(pause or 1)}

    return probe


def lacking(found: Mapping[str, Probed]) -> bool:
    """True when there are workers and each lacks a package of ours."""
    return bool(found) and all(worker.lacks for worker in found.values())


def tell_lacking(found: Mapping[str, Probed], told: set[str]) -> None:
    """A line for each worker that is left out, once; `told` grows."""
    for address, worker in found.items():
        if worker.lacks and address not in told:
            told.add(address)
            log.warning("dask worker %s is left out: it has %s", address, worker.lacks)


def none_is_able(found: Mapping[str, Probed]) -> ResourceError:
    """What to say when workers are there and none can do our tasks."""
    address, worker = next(iter(found.items()))
    nor = ", nor has another" if len(found) > 1 else ""
    return ResourceError(f"dask worker {address} has {worker.lacks}{nor}; install the client's versions there")


def all_are_paused(addresses: Iterable[str]) -> ResourceError:
    """What to say when no worker may begin a task, for a while already."""
    return ResourceError(
        f"every dask worker is paused, {min(addresses)} for {PAUSED_SECONDS:g} s: its memory is at dask's limit; give"
        " workers more memory or fewer threads and continue with --resume"
    )


def _wait_for_a_worker(client: Client, check: Callable[[], None]) -> None:
    started, is_told = time.monotonic(), False
    deadline, working = started + FIRST_WORKER_SECONDS, started
    while True:
        try:
            asked(lambda: client.wait_for_workers(1, timeout=1), check, FIRST_WORKER_SECONDS)
            return
        except TimeoutError as error:
            # dask does not count paused ones.
            there = asked(lambda: client.scheduler_info(n_workers=-1), check)["workers"]
            working = working if there else time.monotonic()
            if time.monotonic() > working + PAUSED_SECONDS:
                raise all_are_paused(there) from None
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
