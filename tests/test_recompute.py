"""A result against its inputs: what was stored is rendered again."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import tiledblend as tb
from tiledblend.bytes.objects import open_store
from tiledblend.containers.omezarr.documents import read_attributes, result_layout
from tiledblend.containers.omezarr.spec import OutputSpec
from tiledblend.run.recompute import recompute


def test_a_stored_object_that_is_not_the_inputs_is_named(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (130, 150, 3)).astype(np.uint8)
    composite = tb.Composite([tb.Layer(tb.from_array(pixels, axes="yxc", name="base"))])
    target = tmp_path / "x.zarr"
    tb.write(composite, str(target), output=OutputSpec(16, 64), cluster=tb.ClusterOptions(threads_per_worker=1))
    store = open_store(target)
    layout = result_layout(read_attributes(store))
    assert layout is not None
    assert recompute(store, layout, composite).differing == ()
    # Whole and with right checksums, but of another place: no checksum can tell.
    (target / "0/c/0/0/0").write_bytes((target / "0/c/0/0/1").read_bytes())
    again = recompute(store, layout, composite)
    assert again.differing == ("0/c/0/0/0",)
    assert recompute(store, layout, composite, 1).tiles == 1
