"""What a job costs on an object store: requests, bytes and time against the least possible and against local disk.

    python benchmarks/generate.py FOLDER --size 32768
    AWS_ENDPOINT_URL=… AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=… python benchmarks/cloud_cost.py FOLDER s3://BUCKET/cost

Counts: bucket to bucket through a proxy, against the least: one PUT for each planned object and document, and the bytes
of every tile that a local run reads, once. Times: the command's wall time and processor seconds on local disk and
bucket to bucket, by turns, medians; those runs pass no proxy. `--only` takes one of the two.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "faults"))

from store_proxy import StoreProxy

import tiledblend as tb
from tiledblend.bytes import ranges as stored_bytes
from tiledblend.bytes.objects import ObjectStore, open_store
from tiledblend.run.options import ClusterOptions

NAMES = ("base.tif", "overlay.tif", "mask.tif")
FEATHER = 16


def blend(verb: str, folder: str, out: str, **variables: str) -> dict[str, Any]:
    """The command's own report, with "cpu_seconds" of its process."""
    base, overlay, mask = (f"{folder}/{name}" for name in NAMES)
    flags = ["--mask", mask, "--feather", f"{FEATHER}px", "-o", out, "--json", *(["--exact"] if verb == "plan" else [])]
    before = _child_seconds()
    done = subprocess.run(
        [sys.executable, "-m", "tiledblend", verb, base, overlay, *flags],
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        check=True,
    )
    report: dict[str, Any] = json.loads(done.stdout)
    return {**report, "cpu_seconds": _child_seconds() - before}


def _child_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def least_read(folder: Path, out: str) -> int:
    """Bytes of all the ranges that a local run reads, each once."""
    seen: set[tuple[str, int, int]] = set()
    read = stored_bytes.LocalFile.pread

    def noted(file: stored_bytes.LocalFile, offset: int, size: int) -> bytes:
        seen.add((file.uri, offset, size))
        return read(file, offset, size)

    stored_bytes.LocalFile.pread = noted  # type: ignore[method-assign]
    try:
        base, overlay, mask = (tb.open(folder / name) for name in NAMES)
        layers = [tb.Layer(base), tb.Layer(overlay, mask=mask, feather=tb.Feather.px(FEATHER))]
        tb.write(tb.Composite(layers), out, cluster=ClusterOptions())
    finally:
        stored_bytes.LocalFile.pread = read  # type: ignore[method-assign]
    return sum(size for _, _, size in seen)


def count(folder: Path, bucket: ObjectStore) -> dict[str, Any]:
    """Requests and bytes of one run, what `plan` said, and the least."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        least = least_read(folder, f"{scratch}/least.ome.zarr")
    out = f"{bucket.uri}/{uuid.uuid4().hex[:8]}.ome.zarr"
    planned = blend("plan", bucket.uri, out)
    proxy = StoreProxy(os.environ["AWS_ENDPOINT_URL"])
    with proxy.running() as endpoint:
        done = blend("blend", bucket.uri, out, AWS_ENDPOINT_URL=endpoint)
    received = sum(request.received for request in proxy.passed if request.method == "GET")
    sent = sum(request.sent for request in proxy.passed if request.method == "PUT")
    least_put = planned["objects"] + planned["levels"] + 2
    return {
        "pixels": done["pixels"],
        "requests": dict(proxy.counts()),
        "planned": planned["requests"],
        "least_put": least_put,
        "bytes_sent": sent,
        "least_sent": done["bytes_written"],
        "bytes_received": received,
        "least_received": least,
        "ratio": {
            "put": proxy.counts()["PUT"] / least_put,
            "sent": sent / done["bytes_written"],
            "received": received / least,
        },
    }


def take_times(folder: Path, bucket: ObjectStore, runs: int) -> dict[str, Any]:
    """Medians of wall and processor seconds, and their ratios."""
    taken: dict[str, list[dict[str, Any]]] = {"local": [], "bucket": []}
    for _ in range(runs):
        name = f"{uuid.uuid4().hex[:8]}.ome.zarr"
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            taken["local"].append(blend("blend", str(folder), f"{scratch}/{name}"))
        taken["bucket"].append(blend("blend", bucket.uri, f"{bucket.uri}/{name}"))
        for key, _ in list(bucket.list(name)):
            bucket.delete(key)
    result: dict[str, Any] = {"runs": runs}
    for kind in ("seconds", "cpu_seconds"):
        result[kind] = {where: statistics.median(run[kind] for run in reports) for where, reports in taken.items()}
        result[kind]["ratio"] = result[kind]["bucket"] / result[kind]["local"]
    return result


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("prefix", help="where slides and results go, such as s3://bucket/cost")
    parser.add_argument("--runs", type=int, default=3, help="of each kind that is timed")
    parser.add_argument("--only", choices=("counts", "times"))
    arguments = parser.parse_args()
    bucket = open_store(arguments.prefix)
    for name in NAMES:
        bucket.put(name, (arguments.folder / name).read_bytes())
    result = {} if arguments.only == "times" else {"counts": count(arguments.folder, bucket)}
    if arguments.only != "counts":
        result["times"] = take_times(arguments.folder, bucket, arguments.runs)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
