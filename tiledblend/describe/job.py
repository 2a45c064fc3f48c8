"""Job files: a mapping of layers, canvas and output, checked against the packaged JSON Schema, then built.

The command line's flags become the same mapping, so that a flag and a key of the job file are one code path.
"""

from __future__ import annotations

import difflib
import json
import os
import posixpath
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tiledblend.bytes.buckets import checked_url, scheme_of
from tiledblend.bytes.ranges import open_bytes
from tiledblend.containers.omezarr.spec import OutputSpec
from tiledblend.describe.composite import Canvas, Composite, Feather, Labels, Layer, MaskValues
from tiledblend.describe.levels import at_level, at_pixel_size
from tiledblend.describe.matrix import affine_of, with_numbers
from tiledblend.errors import BadInputError, UsageError
from tiledblend.sources import open_source
from tiledblend.sources.opening import make_spec, require_possible

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

    from tiledblend.sources.base import RasterSource

MAX_BYTES = 4 * 2**20
MAX_NODES = 100_000
MAX_DIGITS = 100


@dataclass(frozen=True)
class Job:
    """What a job asks for. path: where the result goes, None when the job does not say. mapping: the job itself,
    every path absolute, as it is stored with the result. compression: of an OME-TIFF, None when not said."""

    composite: Composite
    output: OutputSpec
    path: str | None
    mapping: dict[str, Any]
    compression: str | None = None


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
    if "ome_zarr" in output_keys:
        output_keys["ome_zarr"] = str(output_keys["ome_zarr"])  # YAML reads 0.5 as a number
    output = OutputSpec(**output_keys)
    feathers = [Feather.parse(layer.get("feather", 0)) for layer in mapping["layers"]]
    background = mapping.get("background", 0)
    layers = [_layer(layer, feather) for layer, feather in zip(mapping["layers"], feathers, strict=True)]
    composite = Composite(
        layers,
        mode=mapping.get("mode", "over"),
        background=tuple(background) if isinstance(background, list) else background,
        canvas=_sized(_canvas(mapping.get("canvas")), layers[0], mapping.get("mpp")),
    )
    return Job(_at_resolution(composite, mapping), output, path, dict(mapping), compression)


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


def _layer(keys: Mapping[str, Any], feather: Feather) -> Layer:
    offset = keys.get("offset")
    mask = keys.get("mask")
    return Layer(
        _open(keys["image"]),
        mask="alpha" if mask == "alpha" else None if mask is None else _open(mask, mask=True),
        mask_values=mask_values_of(keys.get("mask_values", "auto")),
        mask_frame=keys.get("mask_frame"),
        invert=keys.get("invert", False),
        grow=keys.get("grow"),
        feather=feather,
        feather_side=keys.get("feather_side"),
        opacity=keys.get("opacity", 1.0),
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
    if "classes" in source or "invalid" in source:
        return _open_outlines(source)
    spec = make_spec(
        source["path"],
        series=source.get("series"),
        level=source.get("level", 0),
        channels=source.get("channels"),
        plane=source.get("plane", {}),
    )
    return open_source(replace(spec, allow_sparse=source.get("allow_sparse", False)), mask=mask)


def with_sparse_allowed(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The job's mapping with `allow_sparse` in every image and mask."""

    def allowed(key: str, source: Any) -> Any:
        if key not in ("image", "mask") or source in (None, "alpha"):
            return source
        return {**({"path": source} if isinstance(source, str) else source), "allow_sparse": True}

    layers = [{key: allowed(key, value) for key, value in layer.items()} for layer in mapping["layers"]]
    return {**mapping, "layers": layers}


def _open_outlines(source: Mapping[str, Any]) -> RasterSource:
    from tiledblend.sources.opening import recognise
    from tiledblend.sources.outlines.source import PolygonSpec

    path = make_spec(source["path"]).path
    if recognise(path) != "polygons":
        raise UsageError(f"{path}: classes and invalid are for outlines (GeoJSON, XML, HALO, GeoParquet)")
    if unfit := [key for key in ("series", "channels", "plane") if key in source]:
        raise UsageError(f"{path}: outlines have no {', '.join(unfit)}")
    classes = tuple(source.get("classes", ()))
    spec = PolygonSpec(path, level=source.get("level", 0), classes=classes, invalid=source.get("invalid", "repair"))
    return open_source(spec, mask=True)


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
        return Canvas(like.shape, channels=keys.get("channels"), pixel_size_um=like.pixel_size_um)
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


# --- text to mapping


def parse_mapping(text: str, *, where: str) -> dict[str, Any]:
    """The mapping that YAML or JSON text holds. Keys twice and aliases that multiply are refused.

    Raises UsageError naming `where` and, when known, the line.
    """
    try:
        value = _parse(text, where)
    except RecursionError:
        raise UsageError(f"{where}: nested too deeply") from None
    if not isinstance(value, dict):
        raise UsageError(f"{where}: holds a {type(value).__name__}, not a mapping of keys")
    return value


def _parse(text: str, where: str) -> Any:
    if text.lstrip().startswith("{"):
        try:
            return json.loads(
                text,
                object_pairs_hook=lambda pairs: _unique(pairs, where),
                parse_int=lambda digits: _whole(digits, where),
            )
        except json.JSONDecodeError:
            pass  # YAML's own {flow: style}, or broken: YAML says where
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _expanded_size(node, {}, where)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise UsageError(f"{where}: {_yaml_reason(error)}") from error
    except UsageError:
        raise
    except (ValueError, LookupError, AttributeError, ArithmeticError) as error:
        # What a value's own tag leads to: `!!bool x` is a KeyError in the parser.
        raise UsageError(f"{where}: a value cannot be read: {str(error) or type(error).__name__}") from error


def _whole(digits: str, where: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise UsageError(f"{where}: a number of {len(digits):,} characters")
    return int(digits)


def _unique(pairs: Iterable[tuple[str, Any]], where: str) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key, value in pairs:
        if key in mapping:
            raise UsageError(f"{where}: key {key!r} stands twice in one mapping")
        mapping[key] = value
    return mapping


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class _Loader(yaml.SafeLoader):
    """Safe YAML whose mappings have each key once, of a bounded number of entries and of digits."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._entries = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._entries += 1
        if self._entries > MAX_NODES:
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, f"the document has more than {MAX_NODES:,} entries", mark)
        return super().compose_node(parent, index)

    def construct_scalar(self, node: Any) -> Any:
        if node.tag in _NUMBERS and len(node.value) > MAX_DIGITS:
            reason = f"a number of {len(node.value):,} characters"
            raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark)
        return super().construct_scalar(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key_node.value!r} stands twice in one mapping", key_node.start_mark
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _expanded_size(node: yaml.Node, sizes: dict[int, int], where: str) -> int:
    """Nodes of the document with every alias written out; refuses loops and documents that explode."""
    if id(node) in sizes:
        if sizes[id(node)] == 0:
            raise UsageError(f"{where}: an alias refers to the mapping that it stands in")
        return sizes[id(node)]
    sizes[id(node)] = 0
    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        children = [child for pair in node.value for child in pair]
    total = 1 + sum(_expanded_size(child, sizes, where) for child in children)
    if total > MAX_NODES:
        raise UsageError(f"{where}: its aliases expand to more than {MAX_NODES:,} entries")
    sizes[id(node)] = total
    return total


def _yaml_reason(error: yaml.YAMLError) -> str:
    problem = " ".join(str(getattr(error, "problem", None) or error).split())
    mark = getattr(error, "problem_mark", None)
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else problem


# --- mapping against schema


@cache
def schema() -> dict[str, Any]:
    """The JSON Schema of a job."""
    loaded: dict[str, Any] = json.loads(files("tiledblend.describe").joinpath("job.schema.json").read_text("utf-8"))
    return loaded


def check(mapping: Mapping[str, Any], *, where: str = "job") -> None:
    """Raises UsageError, one line, naming the first key that the schema does not allow and its place."""
    from jsonschema import Draft202012Validator

    errors = sorted(Draft202012Validator(schema()).iter_errors(dict(mapping)), key=_unknown_keys_first)
    if errors:
        raise UsageError(f"{where}: {_reason(errors[0])}")


def check_layer(mapping: Mapping[str, Any], *, where: str) -> None:
    """As `check`, for one entry of `layers`."""
    from jsonschema import Draft202012Validator

    definition = {"$ref": "#/$defs/layer", "$defs": schema()["$defs"]}
    errors = sorted(Draft202012Validator(definition).iter_errors(dict(mapping)), key=_unknown_keys_first)
    if errors:
        raise UsageError(f"{where}: {_reason(errors[0])}")


def _unknown_keys_first(error: ValidationError) -> tuple[bool, list[str]]:
    return error.validator != "additionalProperties", [str(part) for part in error.absolute_path]


def _reason(error: ValidationError) -> str:
    error = _likeliest(error)
    keyword: Any = error.validator_value
    given: Any = error.instance
    rules: Any = error.schema
    place = _place(error.absolute_path)
    if error.validator == "additionalProperties":
        known = rules["properties"]
        unknown = next(str(key) for key in given if key not in known)
        close = difflib.get_close_matches(unknown, known, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
        return f"unknown key {unknown!r}{f' in {place}' if place else ''}; {hint}"
    if error.validator == "required":
        missing = next(key for key in keyword if key not in given)
        return f"{place or 'the job'} has no {missing!r}"
    if error.validator == "enum":
        allowed = ", ".join(str(value) for value in keyword if value is not None)
        return f"{place} is {_shown(given)}; it must be one of {allowed}"
    if error.validator == "oneOf":
        return f"{place} {_shown(given)} is not understood; give {rules['x-forms']}"
    if error.validator == "type":
        wanted = " or ".join(keyword) if isinstance(keyword, list) else keyword
        return f"{place or 'the job'} is {_shown(given)}; it must be of type {wanted}"
    return f"{place}: {' '.join(error.message.split())[:200]}"


def _likeliest(error: ValidationError) -> ValidationError:
    """Inside a choice, the complaint of the alternative that has the value's type, if there is exactly one."""
    while error.validator == "oneOf" and error.context:
        alternatives: dict[int, list[ValidationError]] = {}
        for inner in error.context:
            alternatives.setdefault(int(inner.schema_path[0]), []).append(inner)
        fitting = [e for e in alternatives.values() if all(i.validator != "type" or i.path for i in e)]
        fitting = [
            e for e in fitting if all(i.validator not in ("required", "const", "enum") or i.path for i in e)
        ] or fitting
        if len(fitting) != 1:
            return error
        error = min(fitting[0], key=_unknown_keys_first)
    return error


def _place(path: Iterable[Any]) -> str:
    """`layers[1].feather` of a path of keys and indices."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
