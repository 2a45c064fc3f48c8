#!/usr/bin/env python3
"""Put files into a bucket, below an address; what is there already in the same size is left alone.

python workflows/put.py he.tif ihc.tif mask.tif s3://slides/2026 [--wait 60]

Without files it only asks whether the bucket takes an object. Credentials and endpoint come from the environment
(AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …). --wait: seconds for a store that is still starting; what it refuses is not
asked for longer than a few seconds. Exit codes as of `tiledblend`: 2 usage, 4 a file that is not there, 5 the store.
Needs `pip install 'tiledblend[cloud]'`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from tiledblend import BadInputError, StorageError, TiledblendError
from tiledblend.bytes.buckets import client_of, is_final, is_missing, reason_of, split_url

REFUSED_SECONDS = 5.0
"""A store that is just starting may not know its keys yet; one that has started does not change its mind."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("address", help="such as s3://bucket/folder")
    parser.add_argument("--wait", type=float, default=0, metavar="SECONDS")
    try:
        put_all(parser.parse_args())
    except TiledblendError as error:
        print(f"put: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def put_all(given: argparse.Namespace) -> None:
    """Raises BadInputError for a file that is not there, UsageError for an address, StorageError for a store."""
    if missing := [str(path) for path in given.files if not path.is_file()]:
        raise BadInputError(f"no such file: {', '.join(missing)}")
    bucket, folder = split_url(given.address)
    client = client_of(bucket)
    try:
        wait_until_ready(client, f"{folder}/.ready".lstrip("/"), given.wait)
        for path in given.files:
            key = f"{folder}/{path.name}".lstrip("/")
            print(f"{bucket}/{key}: {put(client, key, path)}")
    except Exception as error:
        # The client's own report is long and shows its settings.
        raise StorageError(f"{given.address}: {reason_of(error, given.address)}") from None


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

    started = time.monotonic()
    while True:
        try:
            obstore.put(client, key, b"1", use_multipart=False)
        except Exception as error:
            if time.monotonic() > started + (min(seconds, REFUSED_SECONDS) if is_final(error) else seconds):
                raise
            time.sleep(0.5)
        else:
            obstore.delete(client, key)
            return


if __name__ == "__main__":
    sys.exit(main())
