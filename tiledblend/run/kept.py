"""Plans of results that are stored as their base is: codec, tiles and levels, and which layers' tiles can pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import Any

from tiledblend.compose.foreseen import Foreseen, foresee
from tiledblend.compose.keeping import level_power
from tiledblend.compose.scene import Scene
from tiledblend.containers.ometiff.kept import KeptLevel, can_encode
from tiledblend.containers.ometiff.layout import TiffLayout
from tiledblend.containers.ometiff.options import TiffOptions
from tiledblend.containers.omezarr.spec import OutputSpec
from tiledblend.describe.composite import Composite
from tiledblend.geometry import Grid, Tile
from tiledblend.sources.base import Alpha, RasterSource
from tiledblend.sources.tiff.encoded import NotKept, TileCoding, tiles_of

MOST_SHARD = 8192


@dataclass(frozen=True)
class Ladder:
    """The levels of a base that are powers of two smaller. stored: the powers. shapes: (y, x) of each."""

    stored: tuple[int, ...]
    shapes: tuple[tuple[int, int], ...]

    @classmethod
    def of_base(cls, scene: Scene) -> Ladder:
        """On the canvas of the scene; (0,) alone where the base has no smaller ones."""
        reader = scene.readers[0]
        image, first = reader.layer.image, reader.pixels.level
        stored, shapes = [0], [scene.shape]
        is_same = reader.pixels.sampling is None and image.levels[first].shape == scene.shape
        for number in range(first + 1, len(image.levels)):
            power = level_power(image, first, number)
            if power is None or power <= stored[-1]:
                break
            whole = Grid(scene.shape, 16, 16, 1).level_shape(power)
            own = image.levels[number].shape
            fits = is_same and all(0 <= a - b <= 1 for a, b in zip(whole, own, strict=True))
            stored.append(power)
            shapes.append(own if fits else whole)
        return cls(tuple(stored), tuple(shapes))

    @property
    def levels(self) -> int:
        """Of the grid, those that are only passed through included."""
        return self.stored[-1] + 1

    def shard(self, chunk: int) -> int:
        """Such that a stage ends with a level that is stored: the next one then starts from what may be the base's."""
        most = next((n for n in (3, 4, 5, 2, 1) if n in self.stored and chunk << n <= MOST_SHARD), 0)
        if self.stored[-1] <= 3 or not most:
            most = max(n for n in (3, 2, 1, 0) if chunk << n <= MOST_SHARD or n == 0)
        return chunk << most


def kept_spec(scene: Scene, output: OutputSpec, *, keep_levels: bool, shard: int | None) -> OutputSpec:
    """The plan's spec with the base's tile side and ladder. Raises NotKept. shard: as the user said."""
    coding = base_coding(scene)
    ladder = Ladder.of_base(scene) if keep_levels else None
    if ladder is None or len(ladder.stored) == 1:
        # Over a base of one level, the pyramid that viewers need.
        return replace(output, chunk=coding.side, shard=shard or _shard(coding.side))
    return replace(output, chunk=coding.side, shard=shard or ladder.shard(coding.side), levels=ladder.levels)


def _shard(chunk: int) -> int:
    return chunk << max(n for n in (3, 2, 1, 0) if chunk << n <= MOST_SHARD or n == 0)


def base_coding(scene: Scene) -> TileCoding:
    """How the base's finest level is stored. Raises NotKept when the result cannot be stored so."""
    reader = scene.readers[0]
    coding = tiles_of(reader.layer.image, reader.pixels.level).coding
    samples, planes = _pixel_of(scene)
    if (coding.samples, coding.planes, coding.dtype) != (samples, planes, scene.dtype.name):
        raise NotKept(
            f"{reader.layer.image.name} stores {coding.planes} planes of {coding.samples} samples of {coding.dtype}, "
            f"the result has {planes} of {samples} of {scene.dtype.name}"
        )
    if coding.jpeg is not None and (why := can_encode(coding.jpeg)) is not None:
        raise NotKept(f"{reader.layer.image.name} holds JPEGs of {why}, which cannot be made")
    return coding


def is_jpeg(scene: Scene) -> bool:
    """True when the base is tiled JPEG and the result can be stored as it is."""
    try:
        return base_coding(scene).codec == "jpeg"
    except NotKept:
        return False


def why_not_kept(scene: Scene) -> str | None:
    """A line about a base whose lossy tiles cannot pass, so that the file is larger than it; None for others."""
    image = scene.readers[0].layer.image
    if not any(name in image.info.compression.lower() for name in ("jpeg", "aperio", "jp2")):
        return None
    try:
        base_coding(scene)
    except NotKept as error:
        return f"stored without loss: the base's tiles cannot pass: {error}; --compression jpeg makes a smaller file"
    return None


def kept_layout(scene: Scene, grid: Grid, *, keep_levels: bool) -> TiffLayout:
    """How the result lies in a file that is stored as the base is. Raises NotKept."""
    coding = base_coding(scene)
    alpha = Alpha.STRAIGHT if scene.has_alpha else Alpha.NONE
    options = TiffOptions("keep", tile=coding.side)
    is_rgb = _pixel_of(scene)[1] == 1 and scene.channels in (3, 4)
    layout = TiffLayout.of_grid(grid, scene.channels, scene.dtype.name, options, is_rgb=is_rgb, alpha=alpha)
    if keep_levels:
        layout = on_ladder(layout, Ladder.of_base(scene))
    return replace(layout, kept=tuple(_kept_level(scene, level, coding) for level in layout.stored))


def on_ladder(layout: TiffLayout, ladder: Ladder) -> TiffLayout:
    """The layout with the base's own levels, if it has smaller ones."""
    return layout if len(ladder.stored) == 1 else replace(layout, stored=ladder.stored, shapes=ladder.shapes)


def _kept_level(scene: Scene, level: int, finest: TileCoding) -> KeptLevel:
    """As the base stores this level, where it stores it as its finest one."""
    codings = list(_codings(scene, level))
    base = next((coding for index, coding in codings if index == 0), None)
    alike = base is not None and (base.codec, base.side, base.predictor) == (
        finest.codec,
        finest.side,
        finest.predictor,
    )
    coding = base if alike and base is not None and _can_make(base) else finest
    complete = replace(KeptLevel.of(coding, []), tables=None)
    others = [other for index, other in codings if index > 0 and other.side == coding.side and complete.takes(other)]
    return KeptLevel.of(coding, others)


def _is_like(coding: TileCoding, finest: TileCoding) -> bool:
    return (coding.codec, coding.side, coding.predictor) == (finest.codec, finest.side, finest.predictor)


def _can_make(coding: TileCoding) -> bool:
    return coding.jpeg is None or can_encode(coding.jpeg) is None


def _codings(scene: Scene, level: int) -> Iterator[tuple[int, TileCoding]]:
    """(index of the layer, coding) of every layer whose image has the level."""
    for index, reader in enumerate(scene.readers):
        image, first = reader.layer.image, reader.pixels.level
        for number in range(first, len(image.levels)):
            if level_power(image, first, number) == level:
                with suppress(NotKept):
                    yield index, tiles_of(image, number).coding
                break


def _pixel_of(scene: Scene) -> tuple[int, int]:
    """(samples of a pixel, planes) of the file."""
    composite: Composite = scene.composite
    is_rgb = bool(composite.grid.is_rgb) and scene.channels in (3, 4)
    return (scene.channels, 1) if is_rgb else (1, scene.channels)


def passing_of(scene: Scene, layout: TiffLayout, tiles: Sequence[Tile]) -> list[dict[str, Any]]:
    """Per level of the file: share of tiles that pass (0 to 1), bytes that are copied, pixels that are decoded and
    encoded; of all tiles, by those of the first stage that are given.

    Levels of later stages are as the coarsest one of the first: at most so many pass.
    """
    total: dict[int, Foreseen] = {}
    for tile in tiles:
        for level, found in foresee(scene, layout, tile).items():
            one = total.setdefault(level, Foreseen())
            for field in fields(Foreseen):
                setattr(one, field.name, getattr(one, field.name) + getattr(found, field.name))
    lines = []
    for number, level in enumerate(layout.stored):
        rows, columns = layout.counts(number)
        known = total.get(level) or total[max(total)]
        share, of_all = known.passed / max(1, known.tiles), rows * columns
        scale, height_width = of_all / max(1, known.tiles), layout.shapes[number]
        lines.append(
            {
                "level": number,
                "shape": list(height_width),
                "tiles": of_all,
                "passed_share": share,
                "copied_bytes": round(known.copied * scale),
                "decoded_pixels": round(known.decoded * scale),
                "encoded_pixels": round(known.encoded * scale),
            }
        )
    return lines


def kept_notes(scene: Scene, layout: TiffLayout, *, by_default: bool) -> list[str]:
    """What is to be told of a result that is stored as its base is."""
    kept, base = layout.kept[0], scene.readers[0].layer.image
    how = kept.codec + (f", {_named(kept)}" if kept.jpeg is not None else "")
    lossless = "; --compression deflate makes a lossless file" if by_default else ""
    notes = [
        f"stored as {base.name} is ({how}, tiles of {layout.grid.chunk} px), stored tiles pass as they are{lossless}"
    ]
    if kept.jpeg is not None and kept.jpeg.colour == "ycbcr" and kept.jpeg.sampling[0] == (1, 1):
        notes.append(
            f"{base.name}: its JPEGs are YCbCr 4:4:4, which Bio-Formats 7 (QuPath) decodes to wrong colours; "
            "--compression deflate stores what all readers show"
        )
    for index, reader in enumerate(scene.readers[1:], 1):
        if (why := why_not(reader.layer.image, reader.pixels.level, layout)) is not None:
            notes.append(f"layer {index}: its tiles do not pass: {why}")
    return notes


def why_not(image: RasterSource, number: int, layout: TiffLayout) -> str | None:
    """Why an image's tiles cannot pass into a file; None when they can, where they lie on its grid."""
    try:
        coding = tiles_of(image, number).coding
    except NotKept as error:
        return str(error)
    kept = layout.kept[0]
    if coding.side != layout.grid.chunk:
        return f"{image.name} has tiles of {coding.side} px, the result of {layout.grid.chunk}"
    if kept.jpeg is not None and coding.jpeg is not None and not kept.takes(coding):
        own = KeptLevel(coding.codec, coding.predictor, coding.jpeg, None)
        return f"{image.name} holds JPEGs of {_named(own)}, the result of {_named(kept)}"
    return None if kept.takes(coding) else f"{image.name} is stored in {coding.codec}, the result in {kept.codec}"


def _named(kept: KeptLevel) -> str:
    assert kept.jpeg is not None
    names = {"rgb": "RGB", "ycbcr": "YCbCr", "grey": "grey"}
    (x, y), chroma = kept.jpeg.sampling[0], {(1, 1): " 4:4:4", (2, 1): " 4:2:2", (2, 2): " 4:2:0"}
    return names[kept.jpeg.colour] + (chroma.get((x, y), "") if kept.jpeg.colour == "ycbcr" else "")
