"""A stop is heard within two seconds, whatever a command waits for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import ROOT

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="by signals of Linux")
NOBODY = "127.0.0.1:9"
DEAD_STORE = {
    "AWS_ENDPOINT_URL": f"http://{NOBODY}",
    "AWS_ACCESS_KEY_ID": "abcdefgh",
    "AWS_SECRET_ACCESS_KEY": "abcdefghij",
}


def stopped(folder: Path, *arguments: object, after: float, number: int = signal.SIGTERM) -> tuple[int, float, str]:
    """Exit code, seconds from the signal on, and the last line."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | DEAD_STORE
    command = [sys.executable, "-m", "tiledblend", *map(str, arguments)]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=folder, env=environment, text=True, **pipes)  # type: ignore[call-overload]
    time.sleep(after)
    assert process.poll() is None, process.stderr.read()
    began = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    return process.returncode, time.monotonic() - began, said.splitlines()[-1]


@pytest.mark.parametrize(
    "arguments",
    [
        ("info", "s3://bucket/a.tif"),
        ("info", f"http://{NOBODY}/a.tif"),
        ("plan", "s3://bucket/a.tif"),
        ("verify", "s3://bucket/out.ome.zarr"),
        ("blend", "a.tif", "-o", "s3://bucket/out.ome.zarr"),
        ("clean", "s3://bucket/out.ome.zarr"),
    ],
    ids=" ".join,
)
def test_while_a_dead_store_is_asked_again(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    pytest.importorskip("obstore")
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((64, 64), np.uint8))
    number = signal.SIGINT if arguments[0] == "plan" else signal.SIGTERM
    code, seconds, line = stopped(tmp_path, *arguments, after=3, number=number)
    assert code == 75
    assert seconds < 2
    assert line.startswith("tiledblend: error: ")


def sparse(path: Path, side: int) -> Path:
    """A TIFF of zeros that takes no room."""
    pixels = tifffile.memmap(path, shape=(side, side), dtype=np.uint8)
    pixels[0, 0] = 1
    pixels.flush()
    return path


def test_while_files_are_hashed(tmp_path: Path) -> None:
    large = sparse(tmp_path / "large.tif", 60)
    os.truncate(large, 1 << 36)
    code, seconds, line = stopped(tmp_path, "blend", large, "--deep-fingerprint", "-o", "out.ome.zarr", after=3)
    assert code == 75
    assert seconds < 2
    assert line.endswith("interrupted; if it was writing a result, continue with --resume")


@pytest.mark.parametrize("verb", [("plan",), ("blend", "-o", "out.ome.zarr"), ("seams",)], ids=lambda verb: verb[0])
def test_while_a_mask_is_decided(tmp_path: Path, verb: tuple[str, ...]) -> None:
    base, mask = sparse(tmp_path / "base.tif", 60_000), sparse(tmp_path / "mask.tif", 60_000)
    code, seconds, _ = stopped(tmp_path, *verb, base, base, "--mask", mask, "--feather", "8px", after=3)
    assert code == 75
    assert seconds < 2
