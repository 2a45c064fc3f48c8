"""The client of a run's cluster: an embedded one by default, or one that is already there."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from tiledblend.bytes.waiting import never
from tiledblend.guard.process import process_environment
from tiledblend.run.local import local_cluster
from tiledblend.run.machine import require_addresses, require_open_files
from tiledblend.run.options import ClusterOptions, threads_of
from tiledblend.run.scheduler import running_scheduler
from tiledblend.run.versions import require_same_versions

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)

UNWATCHED = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.low-level-log-length": 100,
}
"""Of a cluster here that nobody looks at: what dask's pages would show is not sampled or kept."""

_CONFIGURED = threading.Lock()


@contextmanager
def open_client(options: ClusterOptions, check: Callable[[], None] = never) -> Iterator[Client]:
    """A client of the chosen cluster, closed at the end; an embedded cluster ends with it.

    An embedded cluster listens on 127.0.0.1 only. check: called while a running one is waited for, and when one here
    does not start; may raise.
    """
    scheduler = running_scheduler(options)
    if scheduler is None:
        require_open_files(options.workers or 0, threads_of(options))
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
        # Of workers here the plan bounds the memory; paused ones would wait for what is never given back.
        **dict.fromkeys(("distributed.worker.memory.target", "distributed.worker.memory.spill"), False),
        "distributed.worker.memory.pause": False,
        **({} if options.dashboard or options.performance_report else UNWATCHED),
    }
    with ExitStack() as stack:
        # The configuration is the process's, and a cluster reads it when it starts. Held longer, or by two threads at
        # once, it would be another's, and what the last one puts back would be the first one's.
        with _CONFIGURED, dask.config.set(settings):
            cluster = stack.enter_context(local_cluster(options, check))
            client = stack.enter_context(Client(cluster, set_as_default=False))
        if options.dashboard:
            log.warning("dashboard: %s", client.dashboard_link)
        yield client


def forget_task_names() -> None:
    """Clear the names of this process's last tasks: dask keeps 100,000 to see what is before their first "-"."""
    from dask.utils import key_split

    key_split.cache_clear()
