"""A job's mapping against the packaged JSON Schema: the first thing that it does not allow, in one line."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from itertools import islice
from typing import TYPE_CHECKING, Any

from tiledblend.describe.text import require_bounded
from tiledblend.errors import UsageError

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

FIRST_ERRORS = 3


@cache
def schema() -> dict[str, Any]:
    """The JSON Schema of a job."""
    loaded: dict[str, Any] = json.loads(files("tiledblend.describe").joinpath("job.schema.json").read_text("utf-8"))
    return loaded


def check(mapping: Mapping[str, Any], *, where: str = "job") -> None:
    """Raises UsageError, one line, naming the first key that the schema does not allow and its place."""
    _check(mapping, schema(), where)
    for number, layer in enumerate(mapping["layers"]):
        _require_one_image(layer, f"{where}: layers[{number}]")


def check_layer(mapping: Mapping[str, Any], *, where: str) -> None:
    """As `check`, for one entry of `layers`."""
    _check(mapping, {"$ref": "#/$defs/layer", "$defs": schema()["$defs"]}, where)
    _require_one_image(mapping, where)


def _require_one_image(layer: Mapping[str, Any], where: str) -> None:
    if "color" not in layer:
        if "image" not in layer:
            raise UsageError(f"{where} has no 'image' (or 'color')")
        return
    if unfit := [key for key in ("image", "offset", "fit", "affine", "pixel_size_um") if layer.get(key) is not None]:
        raise UsageError(f"{where} is a color, which covers the canvas; leave out {', '.join(unfit)}")


def _check(mapping: Mapping[str, Any], definition: Mapping[str, Any], where: str) -> None:
    from jsonschema import Draft202012Validator

    require_bounded(mapping, where=where)
    # The first ones alone: a thousand wrong layers would make a thousand errors.
    errors = islice(Draft202012Validator(definition).iter_errors(dict(mapping)), FIRST_ERRORS)
    # A key that is misspelt is missing, too: what is there says more.
    error = min(errors, key=_unknown_keys_first, default=None)
    if error is not None:
        raise UsageError(f"{where}: {_reason(error)}")


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
