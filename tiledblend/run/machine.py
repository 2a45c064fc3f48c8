"""What this machine, container or job gives a process: CPUs, memory, addresses, open files."""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import product
from pathlib import Path

from tiledblend.errors import ResourceError

THREADS_BYTES = 160_000_000
"""Addresses of what a cluster starts in a process: a dozen threads and their stacks, and what it imports then."""


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


def require_open_files(workers: int, threads: int) -> None:
    """Raise this process's limit of open files where it may, or ResourceError if a local cluster cannot fit in it.

    workers: processes (0: threads of this one). threads: of each.

    Its worker processes have the same limit. Measured: an embedded cluster has 21 open with three inputs, a driver of
    1, 2 and 4 local workers 38, 50 and 71; a tile in the making has one of each of its levels (four by default).
    """
    import resource

    needed = 32 + 12 * workers + 4 * threads
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        remedy = "raise `ulimit -n`" + (" or use fewer --workers" if workers else "")
        raise ResourceError(f"too few open files are allowed: {hard}, a run needs up to {needed}; {remedy}")
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
