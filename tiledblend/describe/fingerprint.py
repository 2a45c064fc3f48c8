"""What decides a result's bits: two runs with equal fingerprints make the same pixels. Worker counts are not in it."""

from __future__ import annotations

import logging
import platform
from importlib.metadata import version
from typing import Any

from tiledblend.bytes.content import content_digest
from tiledblend.describe.composite import Composite
from tiledblend.describe.layers import Labels, Layer
from tiledblend.describe.lengths import Feather
from tiledblend.describe.matching import Match, tone_as_dict
from tiledblend.sources.base import RasterSource

log = logging.getLogger(__name__)

ALGORITHM_REVISION = 5
LIBRARIES = (
    *("numpy", "opencv-python-headless", "imagecodecs", "simplejpeg", "tifffile"),
    *("zarr", "numcodecs", "zstandard"),
)


def fingerprint(composite: Composite) -> dict[str, Any]:
    """Plain JSON values: algorithm revision, parameters, inputs, library versions."""
    numbers = {id(source): number for number, source in enumerate(sources_of(composite))}
    colours = {} if composite.icc == "keep" else {"icc": composite.icc}
    return {
        **colours,
        "algorithm": ALGORITHM_REVISION,
        "mode": composite.mode,
        "background": composite.background_values().tolist(),
        "canvas": {
            "shape": list(composite.shape),
            "channels": composite.channels,
            "dtype": composite.dtype.name,
            "pixel_size_um": list(composite.grid.pixel_size_um) if composite.grid.pixel_size_um else None,
        },
        "reduction": composite.reduction,
        "layers": [_layer(composite, layer, numbers) for layer in composite.layers],
        "inputs": input_fingerprints(composite),
        "libraries": {name: version(name) for name in LIBRARIES},
        "machine": platform.machine(),
    }


def deep_fingerprint(composite: Composite, *, threads: int) -> dict[str, Any]:
    """As `fingerprint`, of inputs by their content: where they lie, and when they were changed, is not in it.

    Reads every byte of every input once.
    """
    log.info("hashing the inputs (--deep-fingerprint)")
    known = fingerprint(composite)
    digests: dict[tuple[str, ...], str] = {}
    inputs = []
    for source, shallow in zip(sources_of(composite), known["inputs"], strict=True):
        # An image and its mask may be one file, read in two ways.
        key = (type(source).__name__, source.spec.path, str(source.spec.series), str(source.spec.plane))
        if key not in digests:
            digests[key] = content_digest(source.contents(), threads=threads)
        inputs.append({"content": digests[key], "structure": shallow["structure"]})
    layers = [
        {key: _without_path(value) if key in ("image", "mask") else value for key, value in layer.items()}
        for layer in known["layers"]
    ]
    return {"fingerprint": "deep", **known, "layers": layers, "inputs": inputs}


def _without_path(selection: Any) -> Any:
    return {**selection, "path": None} if isinstance(selection, dict) else selection


def sources_of(composite: Composite) -> list[RasterSource]:
    """Every source once, bottom layer first."""
    found: dict[int, RasterSource] = {}
    for layer in composite.layers:
        for source in (layer.image, layer.mask):
            if isinstance(source, RasterSource):
                found[id(source)] = source
    return list(found.values())


def stored_paths(composite: Composite) -> list[str]:
    """Paths and URLs of the sources that have one: the name of an array in memory is none."""
    return [source.spec.path for source in sources_of(composite) if source.is_opened_by_name]


def input_fingerprints(composite: Composite) -> list[dict[str, Any]]:
    """One per source, in the order of `sources_of`."""
    return [source.fingerprint() for source in sources_of(composite)]


def require_unchanged(composite: Composite, before: list[dict[str, Any]]) -> None:
    """Raise BadInputError naming an input whose stored bytes are not the ones that were planned with."""
    for source, known in zip(sources_of(composite), before, strict=True):
        if source.fingerprint() != known:
            raise source.changed()


def _layer(composite: Composite, layer: Layer, numbers: dict[int, int]) -> dict[str, Any]:
    values = layer.mask_values
    # Only where one is chosen: jobs that were begun without are the same as ever.
    chosen: dict[str, Any] = {} if layer.operator == "normal" else {"operator": layer.operator}
    if layer.match is not None:
        chosen["match"] = layer.match.as_dict() if isinstance(layer.match, Match) else tone_as_dict(layer.match)
    return {
        **chosen,
        "image": _selection(layer.image, numbers),
        "mask": _selection(layer.mask, numbers) if isinstance(layer.mask, RasterSource) else layer.mask,
        "mask_values": {"labels": list(values.values)}
        if isinstance(values, Labels)
        else list(values)
        if isinstance(values, tuple)
        else values,
        **({} if layer.threshold is None else {"threshold": layer.threshold}),
        "mask_frame": layer.mask_frame,
        "invert": layer.invert,
        "grow": str(layer.grow) if layer.grow else None,
        "feather": _feather(layer.feather),
        "feather_side": layer.side,
        "opacity": layer.opacity,
        "offset": list(composite.exact_offset(layer)),
        "fit": layer.fit,
        "affine": layer.affine.rows if layer.affine else None,
        "pixel_size_um": list(layer.known_pixel_size_um) if layer.known_pixel_size_um else None,
    }


def _feather(feather: Feather) -> dict[str, Any]:
    if feather.band_count is not None:
        return {"bands": feather.band_count}
    return {"sigma": feather.sigma, "unit": feather.unit, "ksize": feather.kernel_size}


def _selection(source: RasterSource, numbers: dict[int, int]) -> dict[str, Any]:
    """input: which of the inputs; arrays in memory, and files known by their content, have no path that tells."""
    spec = source.spec
    return {
        "input": numbers[id(source)],
        "path": spec.path,
        "series": spec.series,
        "level": spec.level,
        "channels": list(spec.channels) if spec.channels is not None else None,
        "plane": [list(item) for item in spec.plane],
        "allow_sparse": spec.allow_sparse,
    }
