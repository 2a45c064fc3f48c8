"""The key of a tile: a digest of all that decides its bytes. Tiles of equal keys are byte for byte the same.

A tile of the first stage is a function of the layers that have weight in it: the identity of their images, how they
are placed and weighed, and the values of their masks within the tile's reach. What has no say is not in it: a layer
without weight there or hidden by one that covers the tile; the feather of a layer whose mask is full within the reach;
the mask's file, of which only the values count. A tile of a later stage is a function of the tiles it stands on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from blake3 import blake3

from tiledblend.compose.reader import LayerReader
from tiledblend.compose.scene import Scene
from tiledblend.compose.weights import LayerField
from tiledblend.describe.fingerprint import sources_of
from tiledblend.geometry import Region

PART_BYTES = 16
_IN_VALUES = ("mask", "mask_values", "threshold", "mask_frame", "invert", "grow")
"""Of a layer's description: what is in the values that its mask comes to, tile by tile; the mask's file has no say."""
_IN_READER = ("image", "offset", "fit", "affine", "pixel_size_um", "opacity")
"""What the placed reader says."""
_OF_EDGES = ("feather", "feather_side")
"""What has no say where a layer's weight is its opacity alone."""


class TileKey(NamedTuple):
    """Digests of 16 bytes each. version: code, libraries and encoding. parameter: mode, canvas, how the layers with
    weight are placed and weighed. image: which these are. mask: the values that weigh them."""

    version: bytes
    parameter: bytes
    image: bytes
    mask: bytes

    @property
    def stored(self) -> bytes:
        """The four one after the other: what receipts and manifests keep."""
        return b"".join(self)

    @classmethod
    def of_stored(cls, data: bytes) -> TileKey:
        """The inverse of `stored`."""
        return cls(*(data[at : at + PART_BYTES] for at in range(0, len(cls._fields) * PART_BYTES, PART_BYTES)))

    def differing(self, other: TileKey) -> tuple[str, ...]:
        """Names of the parts that differ.

        >>> TileKey(b"a", b"b", b"c", b"d").differing(TileKey(b"a", b"x", b"c", b"y"))
        ('parameter', 'mask')
        """
        return tuple(name for name, a, b in zip(self._fields, self, other, strict=True) if a != b)


class TileKeys:
    """Makes the keys of a scene's tiles. Picklable.

    identity: the scene's fingerprint, shallow or deep (`describe.fingerprint`). encoding: plain values that say how a
    container stores pixels.
    """

    def __init__(self, scene: Scene, identity: dict[str, Any], encoding: dict[str, Any]) -> None:
        self._scene = scene
        code = {key: identity[key] for key in ("algorithm", "libraries", "machine")}
        self._version = blake3(_text([code, encoding])).digest(length=PART_BYTES)
        whole = {key: identity[key] for key in ("mode", "background", "canvas", "reduction")}
        self._whole = _text([whole, type(scene.mode).__name__])
        numbers = {id(source): number for number, source in enumerate(sources_of(scene.composite))}
        self._images = [
            _text([identity["inputs"][numbers[id(reader.layer.image)]], _without_name(described["image"])])
            for reader, described in zip(scene.readers, identity["layers"], strict=True)
        ]
        self._described = identity["layers"]

    def of(self, fields: Sequence[LayerField], region: Region) -> TileKey:
        """The key of a tile of the first stage. fields: `Scene.fields` of its region."""
        parameter, image, mask = blake3(self._whole), blake3(), blake3()
        for index in self._scene.classify(fields, region).layers:
            field, described = fields[index], self._described[index]
            image.update(self._images[index])
            weighed = self._scene.mode.halo_px > 0 or not _is_plain(field)
            left_out = (*_IN_VALUES, *_IN_READER, *(() if weighed else _OF_EDGES))
            says = {key: value for key, value in described.items() if key not in left_out}
            others = self._scene.mode.of_layer(index), _rest(field.reader)
            parameter.update(_text([index == 0, says, others, *_placed(field, weighed=weighed)]))
            if weighed and field.mask is not None:
                how, values = field.mask.deciding()
                mask.update(_text([how, values.dtype.str, values.shape]))
                mask.update(np.ascontiguousarray(values).data.cast("B"))
        return TileKey(self._version, *(part.digest(length=PART_BYTES) for part in (parameter, image, mask)))


def _is_plain(field: LayerField) -> bool:
    """True where nothing but the layer's opacity and alpha weighs its pixels."""
    return field.inner_bounds() == (1.0, 1.0)


def _placed(field: LayerField, *, weighed: bool) -> list[Any]:
    """How a layer lies on the canvas and is weighed, as plain values."""
    reader = field.reader
    pixels, opacity = reader.pixels, reader.layer.opacity
    place = [list(_corners(reader.frame)), pixels.level, repr(pixels.sampling), list(pixels.shift)]
    alpha = [reader.layer.image.alpha.value, reader.multiplies_alpha]
    weights = [repr(reader.kernel), reader.layer.side, repr(reader.border), list(_corners(reader.mask_frame))]
    return [place, alpha, opacity, weights if weighed else None]


_SAID = ("layer", "index", "rule", "shares_mask", "canvas", "frame", "visible", "kernel", "border", "growth")
_SAID_TOO = ("has_alpha", "mask_frame", "pixels", "_units")


def _rest(reader: LayerReader) -> dict[str, str]:
    """What else a reader has, so that what is added to it one day is not forgotten here."""
    return {name: repr(value) for name, value in vars(reader).items() if name not in (*_SAID, *_SAID_TOO)}


def _corners(region: Region) -> tuple[int, int, int, int]:
    return region.y0, region.x0, region.y1, region.x1


def _without_name(selection: Any) -> Any:
    """A layer's selection without where its file lies: that is in the input's identity, or does not count."""
    return {key: value for key, value in selection.items() if key not in ("input", "path")}


def _text(values: Any) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
