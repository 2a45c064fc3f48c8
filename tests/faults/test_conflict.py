"""Two attempts at one tile that differ stop the job at once; a resume makes that tile again."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiledblend as tb
from tiledblend.errors import VerificationError
from tiledblend.geometry import Tile
from tiledblend.store.layout import Receipt
from tiledblend.store.ledger import Ledger
from tiledblend.store.spec import OutputSpec


def test_differing_attempts_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (100, 130, 3)).astype(np.uint8)
    composite = tb.Composite([tb.Layer(tb.from_array(pixels, axes="yxc", name="base"))])
    one = tb.ClusterOptions(threads_per_worker=1)
    target, recorded, record = tmp_path / "x.zarr", list[Tile](), Ledger.record

    def twice(ledger: Ledger, tile: Tile, given: Iterable[Receipt]) -> Any:
        receipts = tuple(given)
        recorded.append(tile)
        record(ledger, tile, receipts)
        record(ledger, tile, (receipts[0]._replace(sha256="0" * 64), *receipts[1:]))

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "record", twice)
        with pytest.raises(VerificationError, match=r"two attempts at .* stored different bytes"):
            tb.write(composite, str(target), output=OutputSpec(16, 32), cluster=one)
    assert len(recorded) == 1
    assert not (target / "zarr.json").exists()
    assert tb.write(composite, str(target), output=OutputSpec(16, 32), cluster=one, resume=True).complete
