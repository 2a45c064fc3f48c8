"""Two attempts at one tile that differ stop the job at once; a resume makes that tile again."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiledblend as tb
from tiledblend.bytes.objects import DirectoryStore
from tiledblend.containers.ledger import Ledger, Part
from tiledblend.containers.omezarr.spec import OutputSpec
from tiledblend.containers.receipts import Receipt
from tiledblend.containers.verify import verify
from tiledblend.errors import RefusedError, VerificationError
from tiledblend.geometry import Tile


def test_differing_attempts_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (100, 130, 3)).astype(np.uint8)
    composite = tb.Composite([tb.Layer(tb.from_array(pixels, axes="yxc", name="base"))])
    one = tb.ClusterOptions(threads_per_worker=1)
    target, recorded, record = tmp_path / "x.zarr", list[Tile](), Ledger.record

    def twice(ledger: Ledger, tile: Tile, given: Iterable[Receipt], key: bytes) -> Any:
        receipts = tuple(given)
        recorded.append(tile)
        record(ledger, tile, receipts)
        record(ledger, tile, (receipts[0]._replace(digest="0" * 64), *receipts[1:]))

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "record", twice)
        with pytest.raises(VerificationError, match=r"two attempts at .* stored different bytes"):
            tb.write(composite, str(target), output=OutputSpec(16, 32), cluster=one)
    assert len(recorded) == 1
    assert not (target / "zarr.json").exists()
    assert tb.write(composite, str(target), output=OutputSpec(16, 32), cluster=one, resume=True).complete


def test_differing_attempts_in_a_part_are_settled_by_running_it_again(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (100, 130, 3)).astype(np.uint8)
    composite = tb.Composite([tb.Layer(tb.from_array(pixels, axes="yxc", name="base"))])
    target, spec = str(tmp_path / "x.zarr"), OutputSpec(16, 32)
    tb.write(composite, target, output=spec, part=(1, 2))
    store = DirectoryStore(target)
    # The other attempt, as the driver of a part that lost a race would have noted it.
    with Ledger.resume(store, part=Part(1, 2)) as ledger:
        tile, receipts = next(iter(ledger.receipts.items()))
        ledger.record(tile, (receipts[0]._replace(digest="0" * 64), *receipts[1:]))
    tb.write(composite, target, output=spec, part=(2, 2))
    with pytest.raises(RefusedError, match="1 tiles are not made yet"):
        tb.write(composite, target, output=spec, finish=True)
    assert tb.write(composite, target, output=spec, part=(1, 2)).tiles == 1
    assert tb.write(composite, target, output=spec, finish=True).complete
    assert verify(target, "full").ok
