#!/usr/bin/env python3
"""Put files into a bucket, below an address; what is there already in the same size is left alone.

python workflows/put.py he.tif ihc.tif mask.tif s3://slides/2026 [--wait 60]

Without files it only asks whether the bucket takes an object. Credentials and endpoint come from the environment
(AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …). --wait: seconds for a store that is still starting. Needs
`pip install 'tiledblend[cloud]'`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from tiledblend import TiledblendError
from tiledblend.bytes.buckets import client_of, is_missing, reason_of, split_url


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("address", help="such as s3://bucket/folder")
    parser.add_argument("--wait", type=float, default=0, metavar="SECONDS")
    given = parser.parse_args()
    if missing := [str(path) for path in given.files if not path.is_file()]:
        parser.error(f"no such file: {', '.join(missing)}")
    try:
        bucket, folder = split_url(given.address)
        client = client_of(bucket)
    except TiledblendError as error:
        sys.exit(f"put: {error}")
    try:
        wait_until_ready(client, f"{folder}/.ready".lstrip("/"), given.wait)
        for path in given.files:
            key = f"{folder}/{path.name}".lstrip("/")
            print(f"{bucket}/{key}: {put(client, key, path)}")
    except Exception as error:
        # The client's own report is long and shows its settings.
        sys.exit(f"put: {given.address}: {reason_of(error, given.address)}")


def put(client: Any, key: str, path: Path) -> str:
    """Upload a file, in parts when it is large; says what was done."""
    import obstore

    size = path.stat().st_size
    try:
        if obstore.head(client, key)["size"] == size:
            return "is there already"
    except FileNotFoundError as error:
        if not is_missing(error):
            raise
    obstore.put(client, key, path)
    return f"{size:,} bytes"


def wait_until_ready(client: Any, key: str, seconds: float) -> None:
    """Until the bucket takes an object: many stores answer before they can store."""
    import obstore

    deadline = time.monotonic() + seconds
    while True:
        try:
            obstore.put(client, key, b"1", use_multipart=False)
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            obstore.delete(client, key)
            return


if __name__ == "__main__":
    main()
