"""Copies a folder with the SHA-256 of every file, two threads, each file synced: `copy_hashed.py FROM TO`."""

from __future__ import annotations

import hashlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def copy(source: Path, target: Path) -> str:
    """Copy one file; returns its digest."""
    data = source.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    with target.open("xb", buffering=0) as file:
        file.write(data)
        os.fsync(file.fileno())
    return digest


def main() -> None:
    """Copy, and print how many files."""
    source, target = map(Path, sys.argv[1:])
    files = [path for path in source.rglob("*") if path.is_file()]
    targets = [target / path.relative_to(source) for path in files]
    for folder in {path.parent for path in targets}:
        folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        print(len(set(pool.map(copy, files, targets))))


if __name__ == "__main__":
    main()
