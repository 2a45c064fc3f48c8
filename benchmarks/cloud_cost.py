"""What a job costs on an object store: requests, bytes and time against the least possible and against local disk.

    python benchmarks/generate.py FOLDER --size 16384
    AWS_ENDPOINT_URL=… AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=… python benchmarks/cloud_cost.py FOLDER s3://BUCKET/cost

Runs the command line on local disk, bucket to bucket, and bucket to bucket through a proxy that counts. The
least: one PUT for each planned object and document, and the bytes of every tile that a local run reads, once.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "faults"))

from store_proxy import StoreProxy

import tiledblend as tb
from tiledblend.cluster import ClusterOptions
from tiledblend.sources import bytes as stored_bytes
from tiledblend.store.objects import open_store

NAMES = ("base.tif", "overlay.tif", "mask.tif")
FEATHER = 16


def blend(verb: str, folder: str, out: str, **variables: str) -> dict[str, Any]:
    """The command's own report."""
    base, overlay, mask = (f"{folder}/{name}" for name in NAMES)
    flags = ["--mask", mask, "--feather", f"{FEATHER}px", "-o", out, "--json", *(["--exact"] if verb == "plan" else [])]
    done = subprocess.run(
        [sys.executable, "-m", "tiledblend", verb, base, overlay, *flags],
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        check=True,
    )
    report: dict[str, Any] = json.loads(done.stdout)
    return report


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


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("prefix", help="where slides and results go, such as s3://bucket/cost: a new one each time")
    arguments = parser.parse_args()
    bucket = open_store(arguments.prefix)
    for name in NAMES:
        bucket.put(name, (arguments.folder / name).read_bytes())
    scratch = tempfile.mkdtemp(dir=arguments.folder)
    try:
        least = least_read(arguments.folder, f"{scratch}/least.ome.zarr")
        local = blend("blend", str(arguments.folder), f"{scratch}/local.ome.zarr")
    finally:
        shutil.rmtree(scratch)
    direct = blend("blend", bucket.uri, f"{bucket.uri}/direct.ome.zarr")
    planned = blend("plan", bucket.uri, f"{bucket.uri}/counted.ome.zarr")
    proxy = StoreProxy(os.environ["AWS_ENDPOINT_URL"])
    with proxy.running() as endpoint:
        counted = blend("blend", bucket.uri, f"{bucket.uri}/counted.ome.zarr", AWS_ENDPOINT_URL=endpoint)
    received = sum(request.received for request in proxy.passed if request.method == "GET")
    sent = sum(request.sent for request in proxy.passed if request.method == "PUT")
    result = {
        "pixels": counted["pixels"],
        "requests": dict(proxy.counts()),
        "planned": planned["requests"],
        "least_put": planned["objects"] + planned["levels"] + 2,
        "bytes_sent": sent,
        "least_sent": counted["bytes_written"],
        "bytes_received": received,
        "least_received": least,
        "seconds": {"local": local["seconds"], "bucket": direct["seconds"]},
        "ratio": {
            "put": proxy.counts()["PUT"] / (planned["objects"] + planned["levels"] + 2),
            "sent": sent / counted["bytes_written"],
            "received": received / least,
            "seconds": direct["seconds"] / local["seconds"],
        },
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
