"""A scene: decided once, the same after pickling, and a blending mode's halo is all that its consumers read of it."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn import Case, cases
from hypothesis import assume, given
from hypothesis import strategies as st
from test_equivalence import assert_same_bits, examples, fused

import tiledblend as tb
from tiledblend.compose.lazy import to_dask_of
from tiledblend.compose.modes.mode import ChunkClass, Ground, Laid
from tiledblend.compose.render import render_region
from tiledblend.compose.scene import Scene, SceneWhenAsked, decide
from tiledblend.compose.weights import LayerField
from tiledblend.geometry import Region
from tiledblend.kernels.blend import Blended
from tiledblend.look.seams import measure_seams
from tiledblend.run.plan import plan


@dataclass(frozen=True)
class Smeared:
    """A mode with a halo, for this test only: the layers over each other, then the mean of all pixels within reach."""

    of: Any
    halo_px: int

    def classify(self, fields: Sequence[LayerField], region: Region, ground: Ground) -> ChunkClass:
        """Every layer is needed everywhere."""
        return ChunkClass(tuple(range(len(fields))), copy=False)

    def of_layer(self, index: int) -> str:
        """Nothing."""
        return ""

    def combine(self, laid: Laid) -> Blended:
        """Integers are added exactly, whatever is cut how."""
        over = self.of.combine(replace(laid, region=laid.reach)).pixels.astype(np.int64)
        out = np.empty((*laid.region.shape, over.shape[2]), laid.ground.dtype)
        for y, x in np.ndindex(laid.region.shape):
            top, left = y + laid.region.y0 - laid.reach.y0, x + laid.region.x0 - laid.reach.x0
            rows = slice(max(0, top - self.halo_px), top + self.halo_px + 1)
            columns = slice(max(0, left - self.halo_px), left + self.halo_px + 1)
            part = over[rows, columns].reshape(-1, over.shape[2])
            out[y, x] = part.sum(axis=0) // len(part)
        return Blended(out, 0)


@examples(8)
@given(case=cases(), halo=st.integers(1, 20), chunk=st.sampled_from([13, 16, 40]))
def test_a_mode_with_a_halo_needs_no_other_code(case: Case, halo: int, chunk: int) -> None:
    plain = decide(case.composite)
    assume(case.composite.dtype.kind == "u" and plain.mode.halo_px == 0)
    scene = replace(plain, mode=Smeared(plain.mode, halo))
    whole = render_region(scene, Region.of_shape(scene.shape))
    levels, _ = fused(scene, case.grid)
    assert_same_bits(levels[0], whole)
    assert_same_bits(np.moveaxis(to_dask_of(scene, chunk=chunk).compute(scheduler="synchronous"), 0, 2), whole)


@examples(12)
@given(case=cases())
def test_a_pickled_scene_renders_the_same(case: Case) -> None:
    scene = decide(case.composite)
    again: Scene = pickle.loads(pickle.dumps(scene))
    canvas = Region.of_shape(scene.shape)
    assert_same_bits(render_region(again, canvas), render_region(scene, canvas))
    assert [reader.rule for reader in again.readers] == [reader.rule for reader in scene.readers]


def masked(count: int = 1) -> tb.Composite:
    mask = np.zeros((90, 120), np.uint8)
    mask[20:60, 30:80] = 255
    base, overlay = (tb.from_array(np.full((90, 120, 3), value, np.uint8), axes="yxc") for value in (10, 200))
    source = tb.from_array(mask, axes="yx", name="the mask", mask=True)
    layers = [tb.Layer(overlay, mask=source, feather=tb.Feather.px(3 + n)) for n in range(count)]
    return tb.Composite([tb.Layer(base), *layers])


def decisions(caplog: pytest.LogCaptureFixture) -> int:
    return sum("the mask" in record.getMessage() for record in caplog.records)


def test_a_mask_s_rule_is_decided_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tiledblend")
    scene = decide(masked(3))  # three layers of one mask
    assert decisions(caplog) == 1
    measure_seams(scene, [tb.Feather.px(2), tb.Feather.px(5)])
    scene.at_level(1)
    asked = SceneWhenAsked.of(scene)
    asked.derived(replace(scene.composite, background=3.0))()
    pickle.loads(pickle.dumps(scene)).at_level(2)
    plan(scene)
    assert decisions(caplog) == 1


def test_another_mask_or_another_rule_is_decided() -> None:
    scene = decide(masked())
    layer = scene.composite.layers[1]
    halves = replace(layer, mask_values=(0, 510))
    changed = scene.derived(replace(scene.composite, layers=(scene.composite.layers[0], halves)))
    assert [reader.rule and reader.rule.kind for reader in changed.readers] == [None, "range"]
    assert changed.readers[1].mask_units(Region(30, 40, 31, 41))[0, 0] == 32768


def test_a_command_decides_a_mask_once(command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan, tiles and the report's pictures and seams are given one scene; seams with other widths too."""
    import tifffile

    from tiledblend.compose import masks, scene

    asked: list[str] = []
    original = masks.decide_mask_rule

    def counted(mask: Any, *arguments: Any) -> Any:
        asked.append(mask.name)
        return original(mask, *arguments)

    monkeypatch.setattr(masks, "decide_mask_rule", counted)
    assert scene.decide_layer_rule is masks.decide_layer_rule
    rng = np.random.default_rng(1)
    for name in ("a.tif", "b.tif"):
        tifffile.imwrite(tmp_path / name, rng.integers(0, 255, (256, 320, 3), np.uint8), photometric="rgb")
    mask = np.zeros((256, 320), np.uint8)
    mask[40:200, 60:200] = 255
    tifffile.imwrite(tmp_path / "mask.tif", mask)
    job = ["a.tif", "b.tif", "--mask", "mask.tif", "--feather", "6px"]
    for verb, more in (
        ("blend", ["-o", "x.ome.zarr", "--report", "r.html"]),
        ("seams", ["--widths", "2px,4px"]),
        ("plan", []),
        ("preview", ["p.png", "--seams", "--weights"]),
    ):
        asked.clear()
        images = [*job[:2], "p.png", *job[2:], *more[1:]] if verb == "preview" else [*job, *more]
        done = command(verb, *images)
        assert done.code == 0, done.err
        assert len(asked) == 1, verb
