"""Whether layers and masks agree with their canvas, said when a composite is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tiledblend.describe.layers import Layer
from tiledblend.describe.matching import Match
from tiledblend.describe.placement import overlaps
from tiledblend.describe.places import stated_corner
from tiledblend.errors import BadInputError, UsageError
from tiledblend.sources.base import SUPPORTED_DTYPES, RasterSource

if TYPE_CHECKING:
    from tiledblend.describe.composite import Composite

FIELD_TOLERANCE = 0.01


def check_image(layer: Layer, base: Layer, composite: Composite) -> None:
    image = layer.image
    if image.info.problem:
        raise BadInputError(f"{image.name}: {image.info.problem}")
    if image.dtype.name not in SUPPORTED_DTYPES:
        raise BadInputError(
            f"{image.name}: dtype {image.dtype.name} cannot be blended; convert it to one of "
            f"{', '.join(SUPPORTED_DTYPES)}"
        )
    if base.image.dtype != composite.dtype:
        raise BadInputError(
            f"canvas dtype is {composite.dtype.name}, but {base.image.name} is {base.image.dtype.name}; leave it out"
        )
    if image.dtype != composite.dtype:
        raise BadInputError(
            f"{image.name} is {image.dtype.name}, but {base.image.name} is {composite.dtype.name}; convert one of them"
        )
    if layer.colours != base.colours and composite.mode != "stack":
        raise BadInputError(
            f"{image.name} has {layer.colours} colour channels, but {base.image.name} has "
            f"{base.colours}; select channels so that they agree"
        )


def check_mode(layer: Layer, composite: Composite) -> None:
    """Raise UsageError for what a layer asks for and the composite's mode has no meaning for."""
    if layer.operator != "normal" and composite.mode != "over":
        raise UsageError(
            f"operator {layer.operator} of layer {layer.image.name} is for mode over: in mode {composite.mode} nothing "
            "lies below a layer"
        )
    if layer.match is not None:
        _check_match(layer, composite)
    if layer.feather.band_count is None:
        return
    bands, name = f"feather bands:{layer.feather.band_count}", layer.image.name
    if composite.mode != "over":
        raise UsageError(f"{bands} of layer {name} is for mode over, not {composite.mode}; give a width such as 16px")
    if composite.has_alpha:
        raise UsageError(
            f"{bands} of layer {name} needs a canvas without alpha; give a width such as 16px, or a base without alpha"
        )
    if layer.feather_side == "inside":
        raise UsageError(f"{bands} of layer {name} has no inner side; leave feather_side out, or give a width")


def _check_match(layer: Layer, composite: Composite) -> None:
    name, match = layer.image.name, layer.match
    scales_od = match.by == "od" if isinstance(match, Match) else bool(match and match.od)
    if scales_od and layer.image.dtype.kind == "f":
        raise UsageError(f"match od of layer {name} needs a white point: it is for 8 and 16 bit images")
    if isinstance(match, Match):
        if layer is composite.layers[0] or composite.mode == "stack":
            raise UsageError(
                f"match {match.by} of layer {name}: nothing lies below it; give it to a layer above another"
            )
        match.ring_px(composite.full.pixel_size_um)
    elif match is not None and match.channels != layer.colours:
        raise UsageError(f"match of layer {name} is for {match.channels} channels; the image has {layer.colours}")


def check_placement(layer: Layer, composite: Composite) -> None:
    size, canvas, name = layer.image.shape, composite.full.shape, layer.image.name
    if layer.fit is None and layer.offset is None and layer.affine is None and size != canvas:
        base = composite.layers[0].image
        of_base = f", as {base.name} is" if base.shape == canvas else ""
        known = layer.known_pixel_size_um is not None and composite.full.pixel_size_um is not None
        raise BadInputError(
            f"{name} is {size[0]} x {size[1]} pixels (y x x), but the canvas is {canvas[0]} x {canvas[1]}{of_base}; "
            f"give --offset Y,X to place it{', --fit physical to place it by micrometres' if known else ''} "
            "or --fit canvas to resample it"
        )
    if layer.fit == "physical" and layer.offset is None and stated_corner(layer, composite.full) is None:
        _check_same_field(layer, composite)
    if composite.reduction == 1 and not overlaps(composite.placement(layer), size, canvas):
        raise BadInputError(
            f"{name} of {size[0]} x {size[1]} pixels {_placed_by(layer, composite)} lies wholly outside the canvas of "
            f"{canvas[0]} x {canvas[1]}{'; does the matrix map the other way?' if layer.affine else ''}"
        )


def _placed_by(layer: Layer, composite: Composite) -> str:
    if layer.affine is not None:
        return f"mapped by {layer.affine.rows}"
    if layer.fit == "physical" and layer.offset is None and stated_corner(layer, composite.full) is not None:
        y, x = composite.exact_offset(layer)
        return f"at {y:g}, {x:g}, by the translations of both,"
    return "at offset 0, 0" if layer.offset is None else f"at offset {layer.offset[0]}, {layer.offset[1]}"


def _check_same_field(layer: Layer, composite: Composite) -> None:
    """Without an offset, layer and canvas show one field: what their sizes say of the scale must agree with what their
    pixel sizes say."""
    scale, size, canvas = composite.layer_pixels(layer), layer.image.shape, composite.full.shape
    reach = tuple(n * s for n, s in zip(size, scale, strict=True))
    if all(abs(r - n) <= FIELD_TOLERANCE * n + max(1.0, s) for r, n, s in zip(reach, canvas, scale, strict=True)):
        return
    own, full = layer.known_pixel_size_um, composite.full.pixel_size_um
    assert own is not None
    assert full is not None
    corner = "0,0 if the corners coincide"
    if (origin := layer.image.origin_um) is not None and any(origin):
        y, x = (o - p / 2 + c / 2 for o, p, c in zip(origin, own, full, strict=True))
        corner = f"{y:g}um,{x:g}um if the canvas, which says no place, begins where its translation counts from"
    raise BadInputError(
        f"{layer.image.name}: its {_field(size, own)} (y x x), the canvas's {_field(canvas, full)}: sizes and pixel "
        f"sizes disagree; correct a pixel size with pixel_size_um, or give --offset {corner}"
    )


def _field(shape: tuple[int, int], um: tuple[float, float]) -> str:
    covered = " x ".join(f"{n * size:,.0f}" for n, size in zip(shape, um, strict=True))
    return f"{shape[0]} x {shape[1]} pixels of {um[0]:g} x {um[1]:g} um cover {covered} um"


def mask_field(layer: Layer, composite: Composite) -> tuple[int, int]:
    """(y, x) of what the layer's mask covers: pixels of the layer's level 0, or of the full canvas."""
    if layer.mask_frame == "canvas" or layer.fit == "canvas":
        return composite.full.shape
    return layer.image.shape


def mask_scaling(layer: Layer, composite: Composite) -> int | None:
    """How a raster mask lies in its frame: the power of two f by which each mask pixel is repeated, or None for the
    ratio of the sizes.

    f is taken when |f * mask - frame| < f on both axes; else the aspect must agree to within one mask pixel
    (`fit` resamples to the canvas whatever the aspect). Raises BadInputError naming both sizes.
    """
    assert isinstance(layer.mask, RasterSource)
    mask, frame = layer.mask.shape, mask_field(layer, composite)
    if mask == frame:
        return 1
    if layer.fit == "canvas" and layer.mask_frame == "layer":
        return None
    for power in range(1, 31):
        f = 1 << power
        if all(abs(f * m - n) < f for m, n in zip(mask, frame, strict=True)):
            return f
    if abs(mask[0] - frame[0] * mask[1] / frame[1]) <= 1 or abs(mask[1] - frame[1] * mask[0] / frame[0]) <= 1:
        return None
    raise BadInputError(
        f"mask {layer.mask.name} is {mask[0]} x {mask[1]} pixels (y x x), which does not match "
        f"the {layer.mask_frame} of {frame[0]} x {frame[1]} "
        "at any scale; give a mask of the same field of view"
    )
