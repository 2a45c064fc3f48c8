"""--deep-fingerprint: inputs known by their content, whatever became of their times and paths."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from conftest import Command

from tiledblend.bytes import content
from tiledblend.bytes.content import content_digest
from tiledblend.sources import open_source

PIXELS = np.random.default_rng(5).integers(0, 256, (300, 260, 3), dtype=np.uint8)
CUT = ["--chunk", "64", "--shard", "64"]


def inputs(folder: Path) -> list[Path]:
    """Base TIFF, overlay zarr, mask TIFF."""
    folder.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(folder / "base.tif", PIXELS, tile=(64, 64), compression="zlib", photometric="rgb")
    over = zarr.create_array(
        folder / "over.zarr", shape=PIXELS.shape, dtype="uint8", chunks=(64, 64, 3), dimension_names=["y", "x", "c"]
    )
    over[:] = 255 - PIXELS
    mask = np.zeros(PIXELS.shape[:2], np.uint8)
    mask[40:200, 30:220] = 255
    tifffile.imwrite(folder / "mask.tif", mask, tile=(64, 64))
    return [folder / "base.tif", folder / "over.zarr", folder / "mask.tif"]


def begun(command: Command, base: Path, over: Path, mask: Path, out: Path, *flags: str) -> None:
    """An unfinished run: one part of two."""
    arguments = ["blend", base, over, "--mask", mask, "-o", out, *CUT, *flags]
    assert command(*arguments, "--part", "1/2").code == 0


def test_a_copied_and_touched_input_resumes(command: Command, tmp_path: Path) -> None:
    base, over, mask = inputs(tmp_path / "in")
    whole = tmp_path / "whole.ome.zarr"
    assert command("blend", base, over, "--mask", mask, "-o", whole, *CUT).code == 0
    begun(command, base, over, mask, tmp_path / "out.ome.zarr", "--deep-fingerprint")
    moved = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "in", moved)
    shutil.rmtree(tmp_path / "in")
    for path in moved.rglob("*"):
        os.utime(path, (1e9, 1e9))
    again = ["blend", moved / "base.tif", moved / "over.zarr", "--mask", moved / "mask.tif"]
    again += ["-o", tmp_path / "out.ome.zarr", *CUT]
    refused = command(*again, "--resume")
    assert refused.code == 3
    assert "it was begun with --deep-fingerprint, and is continued without it" in refused.error
    done = command(*again, "--resume", "--deep-fingerprint", "--json")
    assert done.code == 0
    assert json.loads(done.out)["resumed_tiles"] > 0
    np.testing.assert_array_equal(
        zarr.open_group(tmp_path / "out.ome.zarr", mode="r")["0"][:], zarr.open_group(whole, mode="r")["0"][:]
    )


@pytest.mark.parametrize("which", ["base.tif", "mask.tif", "over.zarr/c/1/2/0", "over.zarr/zarr.json"])
def test_a_changed_byte_is_found(command: Command, tmp_path: Path, which: str) -> None:
    base, over, mask = inputs(tmp_path / "in")
    begun(command, base, over, mask, tmp_path / "out.ome.zarr", "--deep-fingerprint")
    path = tmp_path / "in" / which
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-5] ^= 1 if not which.endswith("json") else 0
    path.write_bytes(data + b" " if which.endswith("json") else data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    refused = command(
        "blend", base, over, "--mask", mask, "-o", tmp_path / "out.ome.zarr", *CUT, "--resume", "--deep-fingerprint"
    )
    assert refused.code == 3
    assert "content was" in refused.error


def test_chunks_are_in_the_ordinary_fingerprint_of_a_zarr(command: Command, tmp_path: Path) -> None:
    base, over, mask = inputs(tmp_path / "in")
    begun(command, base, over, mask, tmp_path / "out.ome.zarr")
    chunk = over / "c/1/2/0"
    chunk.write_bytes(chunk.read_bytes())
    arguments = ["blend", base, over, "--mask", mask, "-o", tmp_path / "out.ome.zarr", *CUT]
    refused = command(*arguments, "--resume")
    assert refused.code == 3
    assert "inputs[1].modified.objects" in refused.error


def test_a_chunk_that_changes_in_mid_run_is_noticed(tmp_path: Path) -> None:
    from tiledblend.errors import BadInputError
    from tiledblend.geometry import Region

    _, over, _ = inputs(tmp_path / "in")
    source = open_source(over)
    source.fingerprint()
    source.read(Region(0, 0, 64, 64))
    source.require_unchanged()
    chunk = over / "c/1/2/0"
    chunk.write_bytes(chunk.read_bytes())
    source.read(Region(0, 0, 64, 64))
    source.require_unchanged()  # what is read has not changed
    source.read(Region(64, 128, 70, 140))
    with pytest.raises(BadInputError, match="the input changed while the run was using it"):
        source.require_unchanged()


def test_the_digest_does_not_depend_on_order_threads_or_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    objects = []
    for number, size in enumerate((0, 1, 99, 4096, 100_001)):
        (tmp_path / str(number)).write_bytes(rng.bytes(size))
        objects.append((f"name {number}", str(tmp_path / str(number))))
    monkeypatch.setattr(content, "BLOCK_BYTES", 4096)
    monkeypatch.setattr(content, "PIECE_BYTES", 1000)
    digest = content_digest(objects, threads=3)
    assert content_digest(objects[::-1], threads=1) == digest
    monkeypatch.setattr(content, "PIECE_BYTES", 4096)
    assert content_digest(objects, threads=2) == digest
    assert content_digest(objects[1:], threads=2) != digest
    assert content_digest([("other", objects[0][1]), *objects[1:]], threads=2) != digest
    path = tmp_path / "4"
    data = bytearray(path.read_bytes())
    for at in (0, 4095, 4096, 100_000):
        data[at] ^= 16
        path.write_bytes(data)
        assert content_digest(objects, threads=2) != digest
        data[at] ^= 16


@pytest.mark.parametrize("how", ["plain", "sharded", "v2"])
def test_a_zarr_behind_a_web_server_has_the_digest_of_its_copy(tmp_path: Path, how: str) -> None:
    """Nothing can be listed there: every object that there may be is asked for. Chunks that were never written, objects
    of other planes and other files are not counted."""
    pytest.importorskip("obstore")
    from range_server import range_server

    shape, kind = (4, 150, 130), {"plain": {}, "sharded": {"shards": (2, 64, 64)}, "v2": {"zarr_format": 2}}[how]
    chunks = (1, 32, 32) if how == "sharded" else (2, 64, 64)
    names = None if how == "v2" else ["z", "y", "x"]
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=shape, dtype="uint8", chunks=chunks, dimension_names=names, **kind
    )
    array[:, :100] = np.random.default_rng(7).integers(1, 256, (4, 100, 130), np.uint8)
    if how == "v2":
        array.attrs["_ARRAY_DIMENSIONS"] = ["z", "y", "x"]
    (tmp_path / "a.zarr" / "notes.txt").write_text("no chunk")

    def digest(path: str, z: int) -> str:
        return content_digest(open_source(path, plane=(("z", z),)).contents(), threads=2)

    local = [digest(str(tmp_path / "a.zarr"), z) for z in (0, 3)]
    assert local[0] != local[1]
    with range_server(tmp_path) as address:
        assert [digest(f"{address}/a.zarr", z) for z in (0, 3)] == local


def test_a_run_goes_on_from_a_web_servers_copy(command: Command, tmp_path: Path) -> None:
    pytest.importorskip("obstore")
    from range_server import range_server

    base, over, mask = inputs(tmp_path / "in")
    begun(command, base, over, mask, tmp_path / "out.ome.zarr", "--deep-fingerprint")
    chunk = over / "c/1/2/0"
    sound = chunk.read_bytes()
    with range_server(tmp_path / "in") as address:
        again = ["blend", base, f"{address}/over.zarr", "--mask", mask, "-o", tmp_path / "out.ome.zarr", *CUT]
        chunk.write_bytes(sound[:-5] + bytes([sound[-5] ^ 1]) + sound[-4:])
        refused = command(*again, "--resume", "--deep-fingerprint")
        assert refused.code == 3
        assert "content was" in refused.error
        chunk.write_bytes(sound)
        done = command(*again, "--resume", "--deep-fingerprint", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["resumed_tiles"] > 0
