"""Job files: a mapping of layers, canvas and output, checked, then built.

The command line's flags become the same mapping, so that a flag and a key of the job file are one code path.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiledblend.bytes.buckets import checked_url, scheme_of
from tiledblend.bytes.ranges import open_bytes
from tiledblend.containers.omezarr.spec import OutputSpec
from tiledblend.describe.canvas import Canvas
from tiledblend.describe.composite import Composite
from tiledblend.describe.layers import Labels, Layer, MaskValues
from tiledblend.describe.lengths import Feather
from tiledblend.describe.levels import at_level, at_pixel_size
from tiledblend.describe.matching import Match, match_of, tone_as_dict
from tiledblend.describe.matrix import affine_of, with_numbers
from tiledblend.describe.schema import check
from tiledblend.describe.text import parse_mapping
from tiledblend.errors import BadInputError, UsageError
from tiledblend.sources import open_source
from tiledblend.sources.base import Alpha
from tiledblend.sources.opening import make_spec, outlines_spec, require_possible
from tiledblend.sources.single_colour import from_color

if TYPE_CHECKING:
    from tiledblend.sources.base import RasterSource

MAX_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Job:
    """What a job asks for. path: where the result goes, None when the job does not say. mapping: the job itself,
    every path absolute, as it is stored with the result. compression: of an OME-TIFF, None when not said.
    keep_levels: of an OME-TIFF the base's own levels; None when levels are not said."""

    composite: Composite
    output: OutputSpec
    path: str | None
    mapping: dict[str, Any]
    compression: str | None = None
    keep_levels: bool | None = None


def load_job(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The mapping in a YAML or JSON job file, checked against the schema; its paths made absolute.

    Raises BadInputError when the file cannot be read, UsageError when it is not a job.
    """
    path = make_spec(path).path
    data = _job_bytes(path)
    if len(data) > MAX_BYTES:
        raise UsageError(f"{path}: larger than {MAX_BYTES >> 20} MB; a job file only names images")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text (byte {error.start}); a job file is YAML or JSON") from error
    mapping = parse_mapping(text, where=path)
    check(mapping, where=path)
    return with_absolute_paths(mapping, path.rpartition("/")[0] if "://" in path else Path(path).resolve().parent)


def _job_bytes(path: str) -> bytes:
    """The file's or object's first `MAX_BYTES` + 1 bytes."""
    if "://" in path:
        reader = open_bytes(path)
        return reader.pread(0, min(reader.size, MAX_BYTES + 1))
    try:
        with open(path, "rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read: {error.strerror}") from error


def build(mapping: Mapping[str, Any], *, where: str = "job") -> Job:
    """Composite and output of a job's mapping. Opens the images (metadata only).

    Raises UsageError for wrong keys and values, BadInputError for images that are missing or do not fit together.
    """
    check(mapping, where=where)
    output_keys = dict(mapping.get("output", {}))
    path, compression = output_keys.pop("path", None), output_keys.pop("compression", None)
    levels = output_keys.get("levels")
    if levels == "keep":
        del output_keys["levels"]
    if "ome_zarr" in output_keys:
        output_keys["ome_zarr"] = str(output_keys["ome_zarr"])  # YAML reads 0.5 as a number
    output = OutputSpec(**output_keys)
    feathers = [Feather.parse(layer.get("feather", 0)) for layer in mapping["layers"]]
    background = mapping.get("background", 0)
    canvas = _canvas(mapping.get("canvas"))
    images = _images(mapping["layers"], canvas)
    layers = [
        _layer(keys, image, feather) for keys, image, feather in zip(mapping["layers"], images, feathers, strict=True)
    ]
    composite = Composite(
        layers,
        mode=mapping.get("mode", "over"),
        icc=mapping.get("icc", "keep"),
        background=tuple(background) if isinstance(background, list) else background,
        canvas=_sized(canvas, layers[0], mapping.get("mpp")),
    )
    return Job(
        _at_resolution(composite, mapping),
        output,
        path,
        dict(mapping),
        compression,
        None if levels is None else levels == "keep",
    )


def with_matches(mapping: Mapping[str, Any], composite: Composite) -> dict[str, Any]:
    """The job's mapping with the numbers that a composite has for its matches; without those that were left out.

    composite: the job's, decided.
    """
    layers = mapping.get("layers")
    if not isinstance(layers, list) or len(layers) != len(composite.layers):
        return dict(mapping)
    return {
        **mapping,
        "layers": [_with_match(keys, layer) for keys, layer in zip(layers, composite.layers, strict=True)],
    }


def _with_match(keys: Mapping[str, Any], layer: Layer) -> dict[str, Any]:
    given = keys.get("match")
    if given is None or isinstance(layer.match, Match):
        return dict(keys)
    if layer.match is None:
        return {key: value for key, value in keys.items() if key != "match"}
    named = {"by": given} if isinstance(given, str) else {k: v for k, v in given.items() if k in ("by", "ring")}
    return {**keys, "match": named | tone_as_dict(layer.match)}


def _sized(canvas: Canvas | None, base: Layer, mpp: float | None) -> Canvas | None:
    """The canvas with `mpp` for its pixel size where nothing else says it."""
    known = base.known_pixel_size_um if canvas is None else canvas.pixel_size_um
    if mpp is None or known is not None:
        return canvas
    return replace(canvas or Canvas(base.image.shape), pixel_size_um=(mpp, mpp))


def _at_resolution(composite: Composite, mapping: Mapping[str, Any]) -> Composite:
    level, mpp = mapping.get("level"), mapping.get("mpp")
    if level is not None and mpp is not None:
        raise UsageError("level and mpp both say at which resolution to compose; give one of them")
    if mpp is not None:
        return at_pixel_size(composite, mpp)
    return composite if level is None else at_level(composite, level)


def _images(layers: Sequence[Mapping[str, Any]], canvas: Canvas | None) -> list[RasterSource]:
    """Every layer's image; a colour is one of the canvas's size and of the first image's kind."""
    opened = [None if "color" in layer else _open(layer["image"]) for layer in layers]
    like = next((image for image in opened if image is not None), None)
    if like is None:
        raise UsageError("every layer is a color; at least one has to be an image")
    shape = canvas.shape if canvas is not None else (opened[0] or like).shape
    made = []
    for number, (layer, image) in enumerate(zip(layers, opened, strict=True)):
        if image is None and layer["color"] == "auto":
            raise UsageError(f"layers[{number}].color is auto, which is settled before; give it in numbers")
        made.append(from_color(layer["color"], like, shape) if image is None else image)
    return made


def _layer(keys: Mapping[str, Any], image: RasterSource, feather: Feather) -> Layer:
    offset = keys.get("offset")
    mask = keys.get("mask")
    return Layer(
        image,
        mask="alpha" if mask == "alpha" else None if mask is None else _open(mask, mask=True),
        mask_values=mask_values_of(keys.get("mask_values", "auto")),
        mask_frame=keys.get("mask_frame"),
        invert=keys.get("invert", False),
        grow=keys.get("grow"),
        threshold=keys.get("threshold"),
        feather=feather,
        feather_side=keys.get("feather_side"),
        opacity=keys.get("opacity", 1.0),
        operator=keys.get("operator", "normal"),
        match=match_of(keys.get("match"), image.channels - (image.alpha is not Alpha.NONE)),
        offset=None if offset is None else (offset[0], offset[1]),
        fit=None if keys.get("fit") == "none" else keys.get("fit"),
        pixel_size_um=_pixel_size(keys.get("pixel_size_um")),
        affine=affine_of(with_numbers(keys.get("affine"), _job_bytes)),
    )


def _pixel_size(value: Any) -> tuple[float, float] | None:
    """(y, x) of one number or a list of two."""
    return None if value is None else (value[0], value[1]) if isinstance(value, list) else (value, value)


def _open(source: str | Mapping[str, Any], *, mask: bool = False) -> RasterSource:
    if isinstance(source, str):
        return open_source(source, mask=mask)
    spec = make_spec(
        source["path"],
        series=source.get("series"),
        level=source.get("level", 0),
        channels=source.get("channels"),
        plane=source.get("plane", {}),
    )
    if "classes" in source or "invalid" in source:
        chosen = outlines_spec(spec, tuple(source.get("classes", ())), source.get("invalid", "repair"))
        return open_source(chosen, mask=True)
    spec = replace(spec, allow_sparse=source.get("allow_sparse", False), rgb=source.get("rgb", False))
    return open_source(spec, mask=mask)


def with_sparse_allowed(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The job's mapping with `allow_sparse` in every image and mask."""

    def allowed(key: str, source: Any) -> Any:
        if key not in ("image", "mask") or source in (None, "alpha"):
            return source
        return {**({"path": source} if isinstance(source, str) else source), "allow_sparse": True}

    layers = [{key: allowed(key, value) for key, value in layer.items()} for layer in mapping["layers"]]
    return {**mapping, "layers": layers}


def with_rgb_said(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The job's mapping with `rgb` in every image."""

    def said(image: Any) -> dict[str, Any]:
        return {**({"path": image} if isinstance(image, str) else image), "rgb": True}

    layers = [{**layer, "image": said(layer["image"])} if "image" in layer else layer for layer in mapping["layers"]]
    return {**mapping, "layers": layers}


def mask_values_of(value: Any) -> MaskValues:
    """A layer's `mask_values` of a job's value."""
    if isinstance(value, Mapping):
        return Labels(tuple(value["labels"]))
    if isinstance(value, list):
        return float(value[0]), float(value[1])
    known: MaskValues = value
    return known


def _canvas(keys: Mapping[str, Any] | None) -> Canvas | None:
    if keys is None:
        return None
    if "like" in keys:
        like = _open(keys["like"], mask=True)  # only its size counts: a mask will do
        return Canvas(
            like.shape, channels=keys.get("channels"), pixel_size_um=like.pixel_size_um, origin_um=like.origin_um
        )
    return Canvas(
        (keys["shape"][0], keys["shape"][1]),
        channels=keys.get("channels"),
        pixel_size_um=_pixel_size(keys.get("pixel_size_um")),
    )


def with_absolute_paths(mapping: Mapping[str, Any], folder: Path | str) -> dict[str, Any]:
    """The mapping with every path of an image, mask and output made absolute, relative ones taken from `folder`, and
    with the numbers of its matrix files.

    folder: a directory, or the URL of one. Raises UsageError for a URL that could carry credentials.

    >>> with_absolute_paths({"layers": [{"image": "a.tif", "mask": "alpha"}]}, Path("/slides"))
    {'layers': [{'image': '/slides/a.tif', 'mask': 'alpha'}]}
    """
    done = dict(mapping)
    done["layers"] = [
        {key: _settled(value, folder, key) if key in _FILE_KEYS else value for key, value in layer.items()}
        for layer in mapping["layers"]
    ]
    for name, key in (("canvas", "like"), ("output", "path")):
        if key in mapping.get(name, {}):
            done[name] = dict(mapping[name]) | {key: _absolute(mapping[name][key], folder, key)}
    return done


_FILE_KEYS = ("image", "mask", "affine")


def _settled(value: Any, folder: Path | str, key: str) -> Any:
    if key != "affine":
        return _absolute(value, folder, key)
    return with_numbers(value, lambda path: _job_bytes(_absolute(path, folder, key)))


def _absolute(source: Any, folder: Path | str, key: str) -> Any:
    if isinstance(source, Mapping):
        return dict(source) | {"path": _absolute(source["path"], folder, "path")}
    if not isinstance(source, str) or (key == "mask" and source == "alpha"):
        return source
    require_possible(source)
    if scheme_of(source):
        return checked_url(source)
    if isinstance(folder, str) and not source.startswith(("/", "~")):
        scheme, _, rest = folder.partition("://")
        server, _, place = rest.partition("/")
        return f"{scheme}://{server}" + posixpath.normpath(f"/{place}/{source}")
    return os.path.normpath(folder / Path(source).expanduser())
