"""A composite that was never written, as a source: any region at any level, rendered when it is asked for."""

from __future__ import annotations

import hashlib
import json
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.composite import Composite
from tiledblend.fingerprint import fingerprint
from tiledblend.geometry import Grid, Region
from tiledblend.levels import at_level
from tiledblend.reading import MaskRule, decide_rules
from tiledblend.render import render_region
from tiledblend.sources.base import Alpha, Level, RasterSource, SourceInfo, SourceSpec

TILE = 512


class ComposedSource(RasterSource):
    """The pixels of a composite: level 0 as `write` would store it, level k as `at_level` composes it.

    How masks are read is decided by the first read.
    """

    def __init__(self, composite: Composite, name: str = "composite") -> None:
        grid = composite.grid
        self.spec = SourceSpec(name)
        self.composite = composite
        self.dtype = composite.dtype
        self.channels = composite.channels
        self.alpha = Alpha.STRAIGHT if composite.has_alpha else Alpha.NONE
        self.is_rgb = bool(grid.is_rgb)
        self.pixel_size_um = grid.pixel_size_um
        self._levels = [at_level(composite, k) for k in range(Grid.auto_levels(composite.shape, TILE))]
        self.levels = tuple(Level(c.shape, (min(TILE, c.shape[0]), min(TILE, c.shape[1]))) for c in self._levels)
        self.info = SourceInfo("composite", "yxc", channel_names=grid.channel_names, channel_colors=grid.channel_colors)
        self._rules: tuple[MaskRule | None, ...] | None = None
        self._deciding = threading.Lock()

    def _read(self, region: Region, level: int) -> NDArray[Any]:
        return np.asarray(render_region(self._levels[level], self._decided(), region))

    def _decided(self) -> tuple[MaskRule | None, ...]:
        with self._deciding:
            if self._rules is None:
                self._rules = decide_rules(self.composite)
            return self._rules

    def fingerprint(self) -> dict[str, Any]:
        """Digest of what decides the composite's bits."""
        text = json.dumps(fingerprint(self.composite), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        return {"uri": f"composite:{self.spec.path}", "size": None, "modified": None, "structure": digest}

    def __reduce__(self) -> tuple[Any, ...]:
        return ComposedSource, (self.composite, self.spec.path)
