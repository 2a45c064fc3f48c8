"""What dask can compute, `write` writes: lazy arrays of our own, closures, a script's functions, open files."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import tifffile
import zarr
from distributed import Client

import tiledblend as tb
from tiledblend.errors import ResourceError
from tiledblend.run.cluster import open_client

RGB = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
OVER = 255 - RGB
MASK = np.zeros((300, 400), np.uint8)
MASK[60:200, 90:310] = 255
OUTPUT = tb.OutputSpec(chunk=64, shard=128)


@pytest.fixture(scope="module")
def processes() -> Iterator[Client]:
    with open_client(tb.ClusterOptions(workers=2, threads_per_worker=1)) as client:
        yield client


def composite(base: Any, over: Any, mask: Any = MASK) -> tb.Composite:
    return tb.Composite(
        [
            tb.Layer(tb.from_array(base, axes="yxc", name="base")),
            tb.Layer(
                tb.from_array(over, axes="yxc", name="over"),
                mask=tb.from_array(mask, axes="yx", mask=True),
                feather=tb.Feather.px(4),
            ),
        ]
    )


EXPECTED = tb.to_array(composite(RGB, OVER))


def stored(path: Path) -> Any:
    return np.moveaxis(zarr.open_array(str(path / "0"), mode="r")[:], 0, 2)


def lazy(array: Any) -> da.Array:
    return da.from_array(array, chunks=(128, 128, -1)[: array.ndim])


@pytest.mark.parametrize("with_client", [False, True], ids=["embedded", "processes"])
def test_our_own_lazy_arrays(tmp_path: Path, processes: Client, with_client: bool) -> None:
    client = processes if with_client else None
    whole = tb.to_dask(composite(RGB, OVER), chunk=128)
    again = tb.Composite([tb.Layer(tb.from_array(whole, axes="cyx"))])
    tb.write(again, tmp_path / "a.ome.zarr", output=OUTPUT, client=client)
    np.testing.assert_array_equal(stored(tmp_path / "a.ome.zarr"), EXPECTED)

    weight = tb.feather(lazy(MASK), sigma=4)
    mixed = tb.blend(lazy(RGB), lazy(OVER), weight, axes="yxc")
    tb.write(
        tb.Composite([tb.Layer(tb.from_array(mixed, axes="yxc"))]),
        tmp_path / "b.ome.zarr",
        output=OUTPUT,
        client=client,
    )
    np.testing.assert_array_equal(stored(tmp_path / "b.ome.zarr"), EXPECTED)

    masked = composite(RGB, OVER, tb.feather(lazy(MASK), sigma=4))
    tb.write(masked, tmp_path / "c.ome.zarr", output=OUTPUT, client=client)
    np.testing.assert_array_equal(stored(tmp_path / "c.ome.zarr"), tb.to_array(masked))


def test_closures_and_lambdas_go_to_other_processes(tmp_path: Path, processes: Client) -> None:
    offset = np.uint8(255)

    def inverted(block: Any) -> Any:
        return offset - block

    for name, function in (("closure", inverted), ("lambda", lambda block: np.uint8(255) - block)):
        over = lazy(RGB).map_blocks(function, dtype=np.uint8)
        report = tb.write(composite(lazy(RGB), over), tmp_path / f"{name}.ome.zarr", output=OUTPUT, client=processes)
        np.testing.assert_array_equal(stored(tmp_path / f"{name}.ome.zarr"), EXPECTED)
        assert not [note for note in report.warnings if "cannot be sent" in note]


SCRIPT = """
import sys
import dask.array as da, numpy as np, tiledblend as tb
from distributed import Client, LocalCluster

def inverted(block):
    return np.uint8(255) - block

if __name__ == "__main__":
    rgb = np.load(sys.argv[1])
    base = da.from_array(rgb, chunks=(128, 128, 3))
    over = base.map_blocks(inverted, dtype=np.uint8)
    layer = tb.Layer(tb.from_array(over, axes="yxc"))
    how = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(n_workers=1, **how) as cluster, Client(cluster) as client:
        tb.write(tb.Composite([layer]), sys.argv[2], output=tb.OutputSpec(chunk=64, shard=128), client=client)
"""


@pytest.mark.parametrize("how", ["script", "notebook"])
def test_functions_of_a_script_and_of_a_notebook(tmp_path: Path, how: str) -> None:
    """A notebook's `__main__` is no file: as that of -c."""
    np.save(tmp_path / "rgb.npy", RGB)
    (tmp_path / "script.py").write_text(SCRIPT)
    program = [str(tmp_path / "script.py")] if how == "script" else ["-c", SCRIPT]
    places = [str(tmp_path / "rgb.npy"), str(tmp_path / "out.ome.zarr")]
    subprocess.run([sys.executable, *program, *places], check=True, timeout=120)
    np.testing.assert_array_equal(stored(tmp_path / "out.ome.zarr"), OVER)


@pytest.mark.parametrize("with_client", [False, True], ids=["embedded", "processes"])
def test_what_holds_an_open_file_or_a_lock_is_computed_here(
    tmp_path: Path, processes: Client, with_client: bool
) -> None:
    client, lock = processes if with_client else None, threading.Lock()

    def locked(block: Any) -> Any:
        with lock:
            return np.uint8(255) - block

    over = lazy(RGB).map_blocks(locked, dtype=np.uint8)
    report = tb.write(composite(RGB, over), tmp_path / "lock.ome.zarr", output=OUTPUT, client=client)
    np.testing.assert_array_equal(stored(tmp_path / "lock.ome.zarr"), EXPECTED)
    assert any("over cannot be sent to another process" in note for note in report.warnings)

    tifffile.imwrite(tmp_path / "a.tif", OVER, tile=(64, 64), photometric="rgb")
    with tifffile.imread(tmp_path / "a.tif", aszarr=True) as store:
        over = da.from_zarr(zarr.open(store, mode="r"))
        tb.write(composite(RGB, over), tmp_path / "tiff.ome.zarr", output=OUTPUT, client=client)
    np.testing.assert_array_equal(stored(tmp_path / "tiff.ome.zarr"), EXPECTED)


class Unopenable:
    """Goes out and does not come back."""

    def __reduce__(self) -> Any:
        return _fail, ()


def _fail() -> None:
    raise AttributeError("no such thing here")


def test_what_a_worker_cannot_open_is_one_line(tmp_path: Path, processes: Client) -> None:
    held = Unopenable()
    over = lazy(RGB).map_blocks(lambda block: (held, block)[1], dtype=np.uint8)
    with pytest.raises(
        ResourceError, match="cannot take the layers' arrays as they were sent: AttributeError: no such"
    ):
        tb.write(composite(RGB, over), tmp_path / "a.ome.zarr", output=OUTPUT, client=processes)
