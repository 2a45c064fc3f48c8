"""A blend on workers that dask-jobqueue asks SLURM for: run it on a login node or inside a job.

python workflows/slurm_jobqueue.py BASE OVERLAY MASK OUT --jobs 4 --cores 4 --memory 8GiB

Needs `pip install dask-jobqueue`. Interrupted: the same line with --resume.
"""

from __future__ import annotations

import argparse

from dask_jobqueue import SLURMCluster
from distributed import Client

import tiledblend as tb


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("base", "overlay", "mask", "out"):
        parser.add_argument(name)
    parser.add_argument("--feather", default="16px")
    parser.add_argument("--jobs", type=int, default=2, help="worker jobs")
    parser.add_argument("--cores", type=int, default=2, help="threads of each")
    parser.add_argument("--memory", default="4GiB", help="of each")
    parser.add_argument("--queue", help="SLURM partition")
    parser.add_argument("--interface", help="network that the nodes share, such as ib0")
    parser.add_argument("--resume", action="store_true")
    given = parser.parse_args()

    layers = [
        tb.Layer(tb.open(given.base)),
        tb.Layer(tb.open(given.overlay), mask=tb.open(given.mask), feather=tb.Feather.parse(given.feather)),
    ]
    cluster = SLURMCluster(
        queue=given.queue,
        cores=given.cores,
        processes=1,
        memory=given.memory,
        interface=given.interface,
        scheduler_options={"dashboard": False, "interface": given.interface},
        worker_extra_args=["--no-dashboard"],
    )
    with cluster, Client(cluster) as client:
        cluster.scale(jobs=given.jobs)
        client.wait_for_workers(1)
        report = tb.write(tb.Composite(layers), given.out, client=client, resume=given.resume)
    print(f"{report.uri}: {report.tiles} tiles, {report.bytes_written} bytes in {report.seconds:.1f} s")


if __name__ == "__main__":
    main()
