"""A blend on workers that dask-jobqueue asks SLURM for: run it on a login node or inside a job.

python workflows/slurm_jobqueue.py BASE OVERLAY MASK OUT --jobs 4 --cores 4 --memory 8GiB

Needs `pip install dask-jobqueue`, and a current folder that all nodes share. Ctrl-C or SIGTERM: tiles under way are
stored, the worker jobs leave the queue, and the same line with --resume goes on. Exit codes are those of `tiledblend
blend`: 0 done, 75 interrupted, and so on.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

from dask_jobqueue import SLURMCluster
from distributed import Client
from distributed.security import Security

import tiledblend as tb


def main() -> int:
    given = parse_arguments()
    stop = threading.Event()
    # Not before the import above: dask-jobqueue sets a handler of its own, which ends a program with exit code 0.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    logging.getLogger("distributed").setLevel(logging.ERROR)
    try:
        report = blend(given, stop)
    except tb.TiledblendError as error:
        print(f"slurm_jobqueue: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{report.uri}: {report.tiles} tiles, {report.bytes_written} bytes in {report.seconds:.1f} s")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("base", "overlay", "mask", "out"):
        parser.add_argument(name)
    parser.add_argument("--feather", default="16px")
    parser.add_argument("--jobs", type=int, default=2, help="worker jobs")
    parser.add_argument("--cores", type=int, default=2, help="threads of each")
    parser.add_argument("--memory", default="4GiB", help="of each")
    parser.add_argument("--queue", help="SLURM partition")
    parser.add_argument("--interface", help="network that the nodes share, such as ib0")
    parser.add_argument("--patience", type=float, default=3600, metavar="SECONDS", help="for the first worker to start")
    parser.add_argument("--resume", action="store_true")
    return parser.parse_args()


def blend(given: argparse.Namespace, stop: threading.Event) -> tb.RunReport:
    """Blend OVERLAY into BASE where MASK is set. Raises what `tiledblend.write` raises."""
    overlay = tb.Layer(
        tb.open(given.overlay), mask=tb.open(given.mask, mask=True), feather=tb.Feather.parse(given.feather)
    )
    composite = tb.Composite([tb.Layer(tb.open(given.base)), overlay])
    # What is wrong with the inputs is told before anything is asked of the queue.
    planned = tb.plan(composite)
    if shutil.which("sbatch") is None:
        raise tb.ResourceError("sbatch is not on this machine's PATH; run this where jobs are submitted from")
    refusals = Refusals()
    # Nobody else may enter it; workers read the certificate there.
    with tempfile.TemporaryDirectory(prefix="tiledblend-certificate-", dir=Path.cwd()) as shared:
        try:
            with encrypted_cluster(given, shared) as cluster, Client(cluster) as client:
                cluster.scale(jobs=given.jobs)
                wait_for_a_worker(client, given.patience, stop, refusals)
                return tb.write(
                    composite, given.out, client=client, planned=planned, resume=given.resume, progress=show, stop=stop
                )
        except AssertionError:
            # dask cannot close a cluster of which a worker was never made.
            refusals.tell()
            raise


def encrypted_cluster(given: argparse.Namespace, shared: str) -> SLURMCluster:
    """A cluster whose ports take only whom shows the certificate that is made here for this run (TLS).

    Ports of a scheduler and its workers are open to all accounts of the nodes: without it any of them could run code as
    you. shared: a private folder that all nodes see.
    """
    made, certificate, key = Security.temporary(), Path(shared, "certificate.pem"), Path(shared, "key.pem")
    certificate.write_text(made.tls_worker_cert)
    key.write_text(made.tls_worker_key)
    files = {f"tls_{role}_cert": str(certificate) for role in ("client", "scheduler", "worker")}
    files |= {f"tls_{role}_key": str(key) for role in ("client", "scheduler", "worker")}
    return SLURMCluster(
        queue=given.queue,
        cores=given.cores,
        processes=1,
        memory=given.memory,
        interface=given.interface,
        protocol="tls://",
        security=Security(tls_ca_file=str(certificate), require_encryption=True, **files),
        scheduler_options={"dashboard": False, "interface": given.interface},
        worker_extra_args=["--no-dashboard"],
    )


class Refusals(logging.Handler):
    """What sbatch says when it takes no job: dask-jobqueue asks it in the background, where an error is only logged."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said = ""
        logger = logging.getLogger("tornado.application")
        logger.handlers, logger.propagate = [self], False

    def emit(self, record: logging.LogRecord) -> None:
        lines = str(record.exc_info[1]).split("\n") if record.exc_info else [record.getMessage()]
        self.said = next((line for line in reversed(lines) if "error" in line), lines[0])

    def tell(self) -> None:
        """Raises ResourceError when sbatch has refused a job."""
        if self.said:
            raise tb.ResourceError(f"SLURM takes no worker job: {self.said}") from None


def wait_for_a_worker(client: Client, seconds: float, stop: threading.Event, refusals: Refusals) -> None:
    """Until the queue has let one start. Raises InterruptedRun at a stop, ResourceError when sbatch refuses or the
    patience ends."""
    deadline = time.monotonic() + seconds
    while not client.scheduler_info()["workers"]:
        refusals.tell()
        if stop.wait(0.2):
            raise tb.InterruptedRun("stopped before the first worker; start again")
        if time.monotonic() > deadline:
            raise tb.ResourceError(f"no worker job started in {seconds:g} s; look at `squeue --me`, or say --patience")


def show(event: tb.ProgressEvent) -> None:
    print(f"{event.done_tiles} of {event.tiles} tiles, {event.seconds:.0f} s", file=sys.stderr)


# Worker processes import this file: the guard keeps them from running it again.
if __name__ == "__main__":
    sys.exit(main())
