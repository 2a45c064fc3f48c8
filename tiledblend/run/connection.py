"""A run's client: found again when its scheduler was lost, and watched for who works."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from tiledblend.bytes.waiting import ANSWER_SECONDS, asked, never
from tiledblend.errors import InterruptedRun, ResourceError, UsageError
from tiledblend.run.cluster import open_client
from tiledblend.run.options import ClusterOptions
from tiledblend.run.scheduler import RunningScheduler, running_scheduler
from tiledblend.run.versions import (
    LACKING_SECONDS,
    PAUSED_SECONDS,
    Probed,
    all_are_paused,
    lacking,
    none_is_able,
    probed,
    require_same_versions,
    tell_lacking,
)

if TYPE_CHECKING:
    from distributed import Client, Future

log = logging.getLogger(__name__)

RECONNECT_SECONDS = 180.0
NO_WORKER_SECONDS = 300.0
WORKERS_SECONDS = 5.0
LAST_TASKS_SECONDS = 60.0
TASKS_PER_THREAD = 3
SILENT_SECONDS = 60.0
"""Until a worker is asked again that did not say what it has."""
MOST_NAMED = 64


class SchedulerLost(Exception):  # noqa: N818 - an event that the run deals with
    """The tasks in flight are void: the scheduler, or the way to it, has gone."""


class Connection:
    """A client of a cluster, exchanged for a new one when the scheduler was lost."""

    def __init__(self, client: Client, scheduler: RunningScheduler | None = None, *, is_ours: bool = False) -> None:
        self.client, self._scheduler, self.is_ours = client, scheduler, is_ours
        self._replaced: list[Client] = []

    def restore(self, check: Callable[[], None]) -> None:
        """Return when the scheduler answers again; `check` may end the waiting by an exception.

        dask's own client tries for a while first; a client that was given to us is never exchanged. Raises
        InterruptedRun after RECONNECT_SECONDS, or at once where nothing can come back.
        """
        lost = time.monotonic()
        deadline = lost + RECONNECT_SECONDS
        if self.client.status != "running":
            log.warning("the dask scheduler was lost; trying to reach it for up to %g s", RECONNECT_SECONDS)
        while not self._is_back(check):
            check()
            if time.monotonic() > deadline or not self._may_come_back():
                raise InterruptedRun("the dask scheduler was lost and does not answer; continue with --resume")
            time.sleep(0.2)
        log.warning("the dask scheduler answers again after %.0f s; going on", time.monotonic() - lost)

    def close(self) -> None:
        """Close the clients that were made here after the first."""
        for client in self._replaced:
            with suppress(Exception):
                client.close(timeout=2)

    def _may_come_back(self) -> bool:
        return self._scheduler is not None or self.client.status not in ("closed", "closing")

    def _is_back(self, check: Callable[[], None]) -> bool:
        if self.client.status == "running":
            return True
        if self._scheduler is None or self.client.status != "closed":
            return False
        try:
            self.client = self._scheduler.client(5, check)
        except (ResourceError, UsageError):
            return False
        self._replaced.append(self.client)
        return True


@contextmanager
def connect(
    options: ClusterOptions, client: Client | None = None, check: Callable[[], None] = never
) -> Iterator[Connection]:
    """The connection of a run: to the cluster of a given client, else to the one that the options say.

    check: called while a scheduler or a first worker is waited for; may raise.
    """
    with ExitStack() as stack:
        if client is not None:
            _require_usable(client)
            require_same_versions(client, check)
            connection = Connection(client)
        else:
            scheduler = running_scheduler(options)
            opened = stack.enter_context(open_client(options, check))
            connection = Connection(opened, scheduler, is_ours=scheduler is None)
        stack.callback(connection.close)
        if options.performance_report:
            stack.enter_context(_reported(connection, options.performance_report))
        yield connection


def _require_usable(client: Any) -> None:
    from distributed import Client

    if not isinstance(client, Client):
        raise UsageError(f"client is a {type(client).__name__}; give a distributed.Client, as of cluster.get_client()")
    if client.asynchronous:
        raise UsageError("client is asynchronous; give one that was made with asynchronous=False")
    if client.status != "running":
        raise UsageError(f"client is {client.status}, not connected to a scheduler")


@contextmanager
def _reported(connection: Connection, path: str) -> Iterator[None]:
    from distributed import performance_report

    client, report = connection.client, performance_report(filename=path)
    with client.as_current():
        report.__enter__()
    yield
    if connection.client is not client or client.status != "running":
        log.warning("%s: not written, because the scheduler was lost", path)
        return
    with client.as_current():
        report.__exit__(None, None, None)


class HandOutAgain(Exception):  # noqa: N818 - an event that the run deals with
    """Tasks in flight lie where nobody will begin them: they are to be withdrawn and handed out once more."""


class WorkersGone(HandOutAgain):
    """Because all workers that they may go to have gone; others are there."""


class Workforce:
    """The workers of a cluster, as they come and go during a run; who of them may have our tasks.

    require: called with dask's description of the workers that may, by address, whenever there are new ones; `pause` is
    in it (see `Probed`). check: called while the scheduler is asked; may raise. are_ours: started for this run, so they
    have all that it needs.
    """

    def __init__(
        self,
        client: Client,
        require: Callable[[dict[str, Any]], None],
        check: Callable[[], None] = never,
        *,
        are_ours: bool = False,
    ) -> None:
        self._client, self._require, self._check, self._are_ours = client, require, check, are_ours
        self._known: dict[str, Probed] = {}
        self._silent: dict[str, float] = {}
        self._paused: dict[str, float] = {}
        self._set_aside: set[str] = set()
        self._handed: set[frozenset[str]] = set()
        self._able: frozenset[str] = frozenset()
        self._threads = 0
        self._looked = self._last_seen = float("-inf")

    def window(self) -> int:
        """How many tasks may be in flight. Looks at the cluster every few seconds.

        Raises SchedulerLost, HandOutAgain, ResourceError when no worker can go on, InterruptedRun when there was none
        for NO_WORKER_SECONDS, and what `require` raises.
        """
        if self._client.status != "running":
            raise SchedulerLost
        if time.monotonic() > self._looked + WORKERS_SECONDS:
            self._look()
        return max(1, self._threads) * TASKS_PER_THREAD

    def named(self) -> dict[str, Any]:
        """For `Client.submit`: the workers that a task may go to, where they must be named.

        Not those that were started for this run, and not the many of a large cluster that are all alike: a list per
        task has its cost.
        """
        alike = len(self._able) > MOST_NAMED and len(self._able) == len(self._known)
        if not self._able or alike or self._are_ours:
            return {}
        self._handed.add(self._able)
        return {"workers": sorted(self._able)}

    def _look(self) -> None:
        now = self._looked = time.monotonic()
        try:
            workers = self._ask(now)
        except OSError as error:
            raise SchedulerLost from error
        able = {address: worker for address, worker in workers.items() if self._is_able(address)}
        if able.keys() - self._able:
            self._require({address: {**worker, "pause": self._pause(address)} for address, worker in able.items()})
        moved = self._look_for_paused(able, now)
        self._able = frozenset(able.keys() - self._set_aside)
        self._threads = sum(workers[address]["nthreads"] for address in self._able)
        if self._able or self._last_seen == float("-inf"):
            self._last_seen = now
        if now > self._last_seen + LACKING_SECONDS and lacking(self._known):
            raise none_is_able(self._known)
        if now > self._last_seen + NO_WORKER_SECONDS:
            raise InterruptedRun(
                f"the dask cluster has had no worker for {NO_WORKER_SECONDS:g} s; start some and continue with --resume"
            )
        # Where all that a task may go to have gone, others that came for them will not get it.
        gone = bool(self._able) and any(not able.keys() & handed for handed in self._handed)
        if gone or moved:
            self._handed.clear()
            raise WorkersGone if gone else HandOutAgain

    def _ask(self, now: float) -> dict[str, Any]:
        """dask's description of all workers, by address, and what the new ones have."""
        workers: dict[str, Any] = asked(lambda: self._client.scheduler_info(n_workers=-1), self._check)["workers"]
        silent = {address for address, asked_at in self._silent.items() if now < asked_at + SILENT_SECONDS}
        self._probe([address for address in workers if address not in self._known.keys() | silent], now)
        self._known = {address: found for address, found in self._known.items() if address in workers}
        return workers

    def _probe(self, new: list[str], now: float) -> None:
        here = [address for address in new if self._are_ours]
        self._known |= {address: Probed({}, None, 1.0) for address in here}
        elsewhere = [address for address in new if address not in here]
        if not elsewhere:
            return
        answers = probed(self._client, elsewhere, self._check)
        tell_lacking(answers, set())
        self._known |= answers
        self._silent = self._silent | dict.fromkeys(elsewhere, now)

    def _is_able(self, address: str) -> bool:
        found = self._known.get(address)
        return found is not None and found.lacks is None

    def _pause(self, address: str) -> float:
        return self._known[address].pause

    def _look_for_paused(self, able: dict[str, Any], now: float) -> bool:
        """Notes who is paused for too long; True when somebody is newly set aside, whose tasks shall go elsewhere.

        Raises ResourceError when nobody else is left.
        """
        paused = {address for address, worker in able.items() if worker.get("status") == "paused"}
        self._paused = {address: self._paused.get(address, now) for address in paused}
        for address in sorted(self._set_aside - paused):
            log.warning("dask worker %s works again", address)
        too_long = {address for address, since in self._paused.items() if now > since + PAUSED_SECONDS}
        new, self._set_aside = too_long - self._set_aside, too_long
        if able and too_long >= able.keys():
            raise all_are_paused(too_long)
        for address in sorted(new):
            log.warning(
                "dask worker %s has been paused for %g s, its memory is at dask's limit: its tiles go to others",
                address,
                PAUSED_SECONDS,
            )
        return bool(new)


def withdraw(client: Client, running: set[Future[Any]]) -> None:
    """Cancel the tasks that no worker has begun and wait for the others, so that nothing writes after we return.

    The scheduler forgets a cancelled task at once, while its thread goes on: the workers are asked. An embedded worker
    that is closed meanwhile waits half a minute for threads that want to leave its pool (they want the lock that it
    holds), and does not wait for those that have left.
    """
    if client.status != "running":
        # The scheduler has cancelled what was ours.
        return
    deadline, keys = time.monotonic() + LAST_TASKS_SECONDS, {future.key for future in running}
    try:
        begun = _begun(client) & keys
        waiting = [future for future in running if future.key not in begun and not future.done()]
        asked(lambda: client.cancel(waiting, force=True), seconds=ANSWER_SECONDS)
        # One of those may have begun just before it was cancelled.
        while time.monotonic() < deadline and _begun(client) & keys:
            time.sleep(0.05)
        while time.monotonic() < deadline and any(not future.done() for future in running if future.key in begun):
            time.sleep(0.01)
    except Exception:
        # The scheduler may be what was lost: the first error is the one to tell.
        return


def _begun(client: Client) -> set[str]:
    """Keys of the tasks that the workers' threads are at, cancelled ones too; none of workers that do not answer."""
    try:
        answers = asked(lambda: client.run(_keys_of_threads, on_error="ignore"), seconds=ANSWER_SECONDS)
    except Exception:
        return set()
    return {key for keys in answers.values() for key in keys}


def _keys_of_threads(dask_worker: Any) -> list[str]:
    state = dask_worker.state
    return [str(task.key) for task in (*state.executing, *state.long_running)]
