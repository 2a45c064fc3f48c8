"""A flag's text to the value of its key. Each raises UsageError that names the flag."""

from __future__ import annotations

import re
from typing import Any

from tiledblend.errors import UsageError


def parse_offset(text: str) -> list[int | str]:
    """Y,X as the numbers and lengths of `offset`."""
    parts = [part.strip() for part in text.strip("[] ").split(",")]
    # A bare 1.5 is refused as in a job file; 1.5px says that it is meant.
    if len(parts) != 2 or not all(parts) or any(re.fullmatch(r"[-+]?(\d+\.\d*|\.\d+)", part) for part in parts):
        raise UsageError(f"--offset {text!r} is not of the form Y,X in whole pixels or lengths such as 12um,30um")
    return [int(part) if re.fullmatch(r"[-+]?\d+", part) else part for part in parts]


def parse_match(text: str | None, ring: str | None) -> Any:
    """A kind and a ring, or a YAML mapping, as the mapping of `match`."""
    if text is None:
        raise UsageError(f"--match-ring {ring} needs --match offset, gain, linear or od")
    if text.lstrip().startswith("{"):
        from tiledblend.describe.text import parse_mapping

        given = parse_mapping(text, where="--match")
    elif text in ("offset", "gain", "linear", "od"):
        given = {"by": text}
    else:
        raise UsageError(f"--match {text!r} must be offset, gain, linear or od")
    return given | ({} if ring is None else {"ring": ring})


def parse_affine(text: str) -> Any:
    """Six or nine numbers as a 3 × 3 matrix, a YAML mapping, or else the path of a file."""
    if text.lstrip().startswith("{"):
        from tiledblend.describe.text import parse_mapping

        return parse_mapping(text, where="--affine")
    parts = re.split(r"[\s,]+", re.sub(r"[\[\]]", " ", text).strip())
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        return text
    if len(numbers) not in (6, 9):
        raise UsageError(f"--affine {text!r} has {len(numbers)} numbers; give a,b,c,d,e,f (x' = a x + b y + c, …)")
    return [numbers[i : i + 3] for i in range(0, len(numbers), 3)]


def parse_numbers(text: str, flag: str, kind: type[int] | type[float], count: int | None) -> list[Any]:
    """Numbers with commas between; exactly `count` where that is given."""
    try:
        values = [kind(part) for part in text.strip("[] ").split(",")]
    except ValueError:
        values = []
    if not values or (count is not None and len(values) != count):
        form = "numbers with commas between"
        raise UsageError(f"{flag} {text!r} is not of the form {form}")
    return values


def parse_mask_values(text: str) -> Any:
    """The value of `mask_values`."""
    if text in ("auto", "binary"):
        return text
    if text.startswith("labels:"):
        return {"labels": parse_numbers(text.removeprefix("labels:"), "--mask-values", int, None)}
    if text.lstrip().startswith("{"):
        from tiledblend.describe.text import parse_mapping

        return parse_mapping(text, where="--mask-values")
    try:
        return parse_numbers(text, "--mask-values", float, 2)
    except UsageError:
        raise UsageError(f"--mask-values {text!r} is not understood; use auto, binary, LO,HI or labels:2,5") from None


def parse_color(text: str) -> Any:
    """The value of `color`: auto, #rrggbb, or numbers with commas between."""
    if text == "auto" or re.fullmatch(r"#[0-9A-Fa-f]{6}", text):
        return text
    try:
        values = parse_numbers(text, "--fill", float, None)
    except UsageError:
        raise UsageError(f"--fill {text!r} is not understood; use auto, 243,243,243 or '#f3f3f3'") from None
    values = [int(value) if value.is_integer() else value for value in values]
    return values[0] if len(values) == 1 else values


def parse_canvas(text: str) -> Any:
    """Y,X, a YAML mapping, or else the path of an image."""
    if text.lstrip().startswith("{"):
        from tiledblend.describe.text import parse_mapping

        return parse_mapping(text, where="--canvas")
    parts = text.split(",")
    if len(parts) == 2 and all(part.strip().isdecimal() for part in parts):
        return {"shape": [int(part) for part in parts]}
    return {"like": text}


def parse_levels(text: str) -> int | str:
    """auto, keep or a number of levels."""
    if text in ("auto", "keep"):
        return text
    if not text.isdecimal():
        raise UsageError(f"--levels {text!r} must be auto, keep or a number from 1 to 40")
    return int(text)
