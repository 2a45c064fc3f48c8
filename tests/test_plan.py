"""Plans: counts, classes, sizes, memory; in seconds for a terapixel."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray

import tiledblend as tb
from tiledblend.compose.scene import decide
from tiledblend.containers.omezarr.spec import OutputSpec
from tiledblend.describe.canvas import Canvas
from tiledblend.describe.composite import Composite
from tiledblend.describe.layers import Layer
from tiledblend.errors import BadInputError, ResourceError, UsageError
from tiledblend.geometry import Region
from tiledblend.look.lines import plan_text
from tiledblend.run.options import ClusterOptions
from tiledblend.run.plan import PROCESS_BYTES, _image_bytes
from tiledblend.sources.base import Level, RasterSource, SourceInfo, SourceSpec

Array = NDArray[Any]


class Endless(RasterSource):
    """A source of any size whose pixels are `value`; counts what is read."""

    def __init__(self, shape: tuple[int, int], channels: int = 3, value: int = 7, dtype: Any = np.uint8) -> None:
        self.spec, self.dtype, self.channels = SourceSpec(f"endless {value}"), np.dtype(dtype), channels
        self.is_rgb = channels == 3
        self.levels, self.info = (Level(shape, (512, 512)),), SourceInfo("test", "yxc")
        self.value, self.pixels = value, 0

    def _read(self, region: Region, level: int) -> Array:
        self.pixels += region.size
        return np.full((*region.shape, self.channels), self.value, self.dtype)

    def fingerprint(self) -> dict[str, Any]:
        return {"uri": self.spec.path}


class HalfMask(Endless):
    """255 left of the middle, 0 right of it."""

    def _read(self, region: Region, level: int) -> Array:
        self.pixels += region.size
        columns = np.arange(region.x0, region.x1) < self.shape[1] // 2
        return np.broadcast_to(np.where(columns, 255, 0).astype(np.uint8)[None, :, None], (*region.shape, 1))


def halves(shape: tuple[int, int], mask_f: int = 1, feather: float = 0) -> Composite:
    mask = HalfMask((shape[0] // mask_f, shape[1] // mask_f), 1, 255)
    return Composite([Layer(Endless(shape)), Layer(Endless(shape, value=9), mask, feather=tb.Feather.px(feather))])


def test_a_terapixel_is_planned_in_seconds() -> None:
    composite = halves((1_000_000, 1_000_000), 64, 16)
    started = time.monotonic()
    planned = tb.plan(composite)
    assert time.monotonic() - started < 20
    assert planned.grid.levels == 12
    assert planned.tiles == 245**2 + 16**2 + 1
    assert planned.pixels == 10**12
    assert composite.layers[0].image.pixels == 0  # type: ignore[attr-defined]
    assert planned.sampled_tiles < 20
    document = planned.as_dict()
    assert json.loads(json.dumps(document)) == document
    assert not document["exact"]


def test_exact_classes() -> None:
    planned = tb.plan(halves((128, 256)), OutputSpec(16, 64), exact=True)
    assert planned.classes == {"copied": 1.0, "blended": 0.0, "empty": 0.0}
    assert planned.layer_share == (0.5, 0.5)
    assert planned.as_dict()["exact"]
    assert planned.read_bytes == 128 * 256 * 3
    feathered = tb.plan(halves((128, 256), feather=2), OutputSpec(16, 64), exact=True)
    # Four sigma around the middle: one chunk on either side of it.
    assert feathered.classes == {"copied": 14 / 16, "blended": 2 / 16, "empty": 0.0}
    assert feathered.layer_share == (9 / 16, 9 / 16)


def test_plan_reads_masks_only() -> None:
    composite = halves((300, 300))
    tb.plan(composite, OutputSpec(16, 64), exact=True)
    assert [layer.image.pixels for layer in composite.layers] == [0, 0]  # type: ignore[attr-defined]
    assert composite.layers[1].mask.pixels > 0  # type: ignore[union-attr]


def test_empty_canvas_beside_a_layer() -> None:
    composite = Composite([Layer(Endless((32, 32)), offset=(0, 0))], canvas=Canvas((64, 64)))
    assert tb.plan(composite, OutputSpec(16, 32), exact=True).classes == {"copied": 0.25, "blended": 0, "empty": 0.75}


@pytest.mark.parametrize("shape", [(1, 1), (16, 17), (100, 333), (1000, 40)])
@pytest.mark.parametrize(("chunk", "shard"), [(16, 16), (16, 64), (32, 128)])
def test_counts(shape: tuple[int, int], chunk: int, shard: int) -> None:
    planned = tb.plan(Composite([Layer(Endless(shape))]), OutputSpec(chunk, shard))
    grid = planned.grid
    assert planned.tiles == sum(len(list(grid.tiles(stage))) for stage in range(grid.stages))
    assert planned.layout.object_count() == len(list(planned.layout.planned_objects()))
    assert planned.raw_bytes == sum(3 * h * w for h, w in map(grid.level_shape, range(grid.levels)))


def test_memory_is_refused_before_it_is_used() -> None:
    planned = tb.plan(halves((5000, 5000), feather=20))
    needed = planned.process_bytes(4)
    assert needed > planned.process_bytes(1)
    planned.require_memory(4, needed)
    planned.require_memory(4, None)
    with pytest.raises(ResourceError, match=r"needs up to .* MB for 4 threads, but is allowed .* MB; use fewer"):
        planned.require_memory(4, needed - 1)


def test_memory_counts_what_is_compressed_where_no_file_takes_it() -> None:
    """For a bucket: of the tiles that the threads render and two that are stored, never more tiles than there are."""
    composite, bucket = halves((4000, 4000)), "s3://bucket/out.ome.zarr"
    several, one = (tb.plan(composite, OutputSpec(512, shard)) for shard in (1024, 4096))
    encoded = 1024 * 1024 * composite.channels * 4 // 3
    for uri in (None, "/data/out.ome.zarr", "file:///data/out.ome.zarr"):
        assert several.process_bytes(3, uri) == PROCESS_BYTES + 3 * several.tile_bytes
        assert one.process_bytes(1, uri) == one.process_bytes(8, uri) == PROCESS_BYTES + one.tile_bytes
    assert several.process_bytes(1, bucket) == several.process_bytes(1) + 3 * encoded
    assert several.process_bytes(15, bucket) == several.process_bytes(15) + 16 * encoded
    chunks = tb.plan(composite, OutputSpec(512, 1024, ome_zarr="0.4"))
    assert chunks.process_bytes(1) == PROCESS_BYTES + chunks.tile_bytes + 3 * encoded
    with pytest.raises(ResourceError, match="needs up to"):
        several.require_memory(1, several.process_bytes(1), uri=bucket)


def test_more_memory_for_larger_sigma_shard_and_layers() -> None:
    small = tb.plan(halves((4000, 4000)), OutputSpec(512, 1024)).tile_bytes
    assert tb.plan(halves((4000, 4000)), OutputSpec(512, 4096)).tile_bytes > small
    fine, coarse = (
        tb.plan(halves((4000, 4000), feather=sigma), OutputSpec(512, 1024), samples=0).tile_bytes
        for sigma in (11, 1100)
    )
    assert coarse > fine


def test_small_layers_take_memory_where_they_are() -> None:
    """Two hundred patches on a canvas were planned as two hundred whole layers in every tile."""
    rng = np.random.default_rng(0)
    base, soft = Layer(Endless((6000, 9000))), tb.Feather.px(8)
    corners = [(int(y), int(x)) for y, x in zip(rng.integers(0, 5700, 200), rng.integers(0, 8600, 200), strict=True)]
    patches = [Layer(Endless((300, 400)), offset=corner, feather=soft) for corner in corners]
    alone, stacked = tb.plan(Composite([base])), tb.plan(Composite([base, *[patches[0]] * 200]))
    spread = tb.plan(Composite([base, *patches]))
    assert alone.tile_bytes < spread.tile_bytes < alone.tile_bytes + 100_000_000
    assert stacked.tile_bytes > spread.tile_bytes + 200_000_000


def test_a_wide_feathers_halo_is_not_kept() -> None:
    kept = tb.plan(halves((6000, 9000), feather=3000), samples=0).tile_bytes
    assert kept < 200_000_000


def test_memory_counts_a_strip_that_is_the_whole_image(tmp_path: Path) -> None:
    """Each thread decodes it, and holds what is stored meanwhile."""
    path = tmp_path / "a.tif"
    pixels = np.random.default_rng(0).integers(0, 256, (3000, 5000, 3), np.uint8)
    tifffile.imwrite(path, pixels, rowsperstrip=3000, compression="zlib", photometric="rgb", metadata=None)
    striped, tiled = tb.plan(Composite([Layer(tb.open(str(path)))])), tb.plan(Composite([Layer(Endless((3000, 5000)))]))
    assert striped.tile_bytes - tiled.tile_bytes > 1.9 * pixels.nbytes - 512 * 5512 * 3
    assert striped.process_bytes(1) == PROCESS_BYTES + striped.tile_bytes
    assert sum("decoded again by every tile" in note for note in striped.notes) == 1


def test_large_zarr_chunks_are_told(tmp_path: Path) -> None:
    for name, chunk in (("whole", 2000), ("small", 500)):
        zarr.create_array(tmp_path / name, shape=(2000, 2000, 3), chunks=(chunk, chunk, 3), dtype="uint8")
        notes = tb.plan(Composite([Layer(tb.open(str(tmp_path / name)))])).notes
        assert any("decoded again by every row" in note for note in notes) == (chunk == 2000)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_an_affine_layers_pixels_take_what_the_plan_says(dtype: Any, channels: int, scale: float) -> None:
    """At most that, and not much less: numpy tells tracemalloc of its arrays."""
    sources = [Endless((6000, 6000), channels, dtype=dtype) for _ in range(2)]
    affine = tb.Affine(scale * 0.8, -scale * 0.6, 2000, scale * 0.6, scale * 0.8, -500)
    composite = Composite([Layer(sources[0]), Layer(sources[1], affine=affine)])
    reader = decide(composite).readers[1]
    row = Region(1000, 1200, 1256, 3248)
    expected = _image_bytes(reader, row.size, sources[1].dtype.itemsize)
    tracemalloc.start()
    try:
        reader.read(row)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert expected / 8 < peak <= expected


def test_refusals_of_a_plan() -> None:
    with pytest.raises(UsageError, match="larger --shard"):
        tb.plan(Composite([Layer(Endless((2_000_000, 2_000_000)))]), OutputSpec(16, 16))
    labels = tb.from_array(np.array([[0, 3]], np.uint8), axes="yx", mask=True)
    with pytest.raises(BadInputError, match="labels or a narrower range"):
        tb.plan(Composite([Layer(Endless((1, 2)), labels)]))
    with pytest.raises(UsageError, match="use --shard"):
        OutputSpec(512, 1000)


def test_the_memory_that_is_told_is_one_process_s() -> None:
    planned = tb.plan(halves((600, 600)), OutputSpec(512, 1024), samples=0)
    assert "in each of 3 processes of 2 threads" in plan_text(planned, ClusterOptions(workers=3, threads_per_worker=2))
    assert "in 1 process of 1 thread" in plan_text(planned, ClusterOptions(threads_per_worker=1))
