"""What the tests of workflows/ need on every platform: our programs by their names, and a result's objects."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from conftest import ROOT

from tiledblend.bytes.objects import DirectoryStore

WORKFLOWS = ROOT / "workflows"


def own_programs(folder: Path) -> dict[str, str]:
    """An environment in which `tiledblend`, `dask` and `python` are this test's own."""
    (folder / "bin").mkdir()
    program = folder / "bin" / "tiledblend"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tiledblend "$@"\n')
    program.chmod(0o755)
    path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}


def objects_below(path: Path) -> dict[str, bytes | None]:
    """All but the root document, which keeps the job with its output's path."""
    store = DirectoryStore(path)
    return {key: store.get(key) for key, _ in store.list() if key != "zarr.json"}
