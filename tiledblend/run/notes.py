"""What a plan notes of its scene, and a run says before it begins."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from tiledblend.compose.scene import Scene
from tiledblend.describe.composite import Composite
from tiledblend.describe.places import stated_corner
from tiledblend.geometry import Region
from tiledblend.sources.base import RasterSource
from tiledblend.sources.tiff.large import LARGE_TILE


def notes_of(scene: Scene) -> Iterator[str]:
    """One line each: what the sources say, what is decoded several times, how layers lie, what hides what."""
    composite = scene.composite
    icc = {layer.image.icc_digest for layer in composite.layers}
    if len(icc) > 1 and composite.icc == "keep":
        yield "the layers' ICC profiles are unlike each other; colours are not converted: see --icc base"
    for layer in composite.layers:
        for source in (layer.image, layer.mask):
            if source is not None and not isinstance(source, str):
                yield from (f"{source.name}: {note}" for note in source.info.notes)
                yield from _decoding_notes(source)
    yield from _placement_notes(composite)
    for reader in islice(scene.readers, 1, None):
        if reader.frame & reader.visible != reader.frame:
            yield (
                f"{reader.layer.image.name}: only {reader.visible} of the canvas is covered; the rest "
                "of the layer lies outside"
            )
    yield from _hiding_notes(scene)
    yield from map(str, scene.matches)


def _hiding_notes(scene: Scene) -> Iterator[str]:
    """Of the topmost layer that leaves nothing of those below it, on the whole canvas."""
    if scene.composite.mode != "over":
        return
    for reader in reversed(scene.readers[1:]):
        layer, covers = reader.layer, reader.visible == Region.of_shape(scene.shape)
        is_plain = getattr(layer, "operator", "normal") == "normal" and layer.opacity == 1
        if covers and is_plain and layer.mask is None and not reader.has_alpha:
            below = "the base" if reader.index == 1 else f"the {reader.index} layers below it"
            yield f"{layer.image.name}: has no mask and hides {below}; give --mask, or an --opacity below 1"
            return


def _decoding_notes(source: RasterSource) -> Iterator[str]:
    """What is decoded several times by the way it is stored."""
    (tile_y, tile_x), kind = source.levels[0].tile, source.info.format.lower()
    size = tile_y * tile_x * source.channels * source.dtype.itemsize
    if kind.startswith("tif") and tile_x >= source.shape[1] and (source.shape[1] > 4096 or size > LARGE_TILE):
        yield (
            f"{source.name}: stored in strips of {tile_y} rows, each decoded again by every tile "
            "that it crosses; a tiled copy reads faster"
        )
    if "zarr" in kind and size > LARGE_TILE:
        yield (
            f"{source.name}: stored in chunks of {tile_y} x {tile_x} px, each decoded again by every row of the "
            "result's chunks that it crosses; a copy in smaller chunks reads faster"
        )


def _placement_notes(composite: Composite) -> Iterator[str]:
    """What micrometres became in pixels, and pixel sizes that the placement does not follow."""
    canvas = composite.full.pixel_size_um
    for layer in composite.layers:
        own, exact, whole = layer.known_pixel_size_um, composite.exact_offset(layer), composite.offset(layer)
        if layer.fit == "physical" and layer.offset is None and stated_corner(layer, composite.full) is not None:
            is_rounded = composite.layer_pixels(layer) == (1.0, 1.0) and exact != whole
            taken = f", rounded to {whole[0]}, {whole[1]}" if is_rounded else ""
            yield (
                f"{layer.image.name}: lies at {exact[0]:.3f}, {exact[1]:.3f} px (y, x){taken} "
                "by the translations that it and the canvas state"
            )
        if layer.fit is None and exact != whole:
            places = f"{exact[0]:.3f}, {exact[1]:.3f} px (y, x) is rounded to {whole[0]}, {whole[1]}"
            yield f"{layer.image.name}: offset {places}"
        if (
            layer.fit is None
            and own
            and canvas
            and any(abs(a / b - 1) > 0.01 for a, b in zip(own, canvas, strict=True))
        ):
            yield (
                f"{layer.image.name}: its pixels are {own[0]:g} x {own[1]:g} um, the canvas's {canvas[0]:g} x "
                f"{canvas[1]:g} um, but it is placed pixel on pixel; --fit physical places it by micrometres"
            )
