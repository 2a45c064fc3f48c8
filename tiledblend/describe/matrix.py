"""Affine matrices as jobs state them: numbers or a small file of them; which way they map; where a pixel's centre is.

In a job `affine` is [[a, b, c], [d, e, f]], a path, or {matrix: rows or path, maps: layer_to_canvas | canvas_to_layer,
centre: 0.5 | 0}.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from tiledblend.errors import BadInputError
from tiledblend.geometry import Affine

MAX_BYTES = 65536
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_BETWEEN = re.compile(r"[\s,;\[\](){}]*")


def affine_of(value: Any) -> Affine | None:
    """A layer's map of a job's value whose file, if any, was read."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        return Affine.of_matrix(value)
    inverse = value.get("maps", "layer_to_canvas") == "canvas_to_layer"
    return Affine.of_matrix(value["matrix"], centre=value.get("centre", 0.5), inverse=inverse)


def with_numbers(value: Any, read: Callable[[str], bytes]) -> Any:
    """The same, with the numbers that a file holds in place of its path. read: yields a file's bytes."""
    if isinstance(value, str):
        return matrix_rows(read(value), value)
    if isinstance(value, Mapping) and isinstance(value.get("matrix"), str):
        return dict(value) | {"matrix": matrix_rows(read(value["matrix"]), value["matrix"])}
    return value


def matrix_rows(data: bytes, path: str) -> list[list[float]]:
    """Rows of a file of 6 numbers, or of 9 that end with 0 0 1, in row order: text or JSON, with any brackets, commas
    or spaces between.

    Raises BadInputError for anything else.

    >>> matrix_rows(b"[1, 0, 12.5],\\n [0, 1, -3]", "m.txt")
    [[1.0, 0.0, 12.5], [0.0, 1.0, -3.0]]
    """
    text = data.decode("utf-8-sig", "replace") if len(data) <= MAX_BYTES else ""
    numbers = [float(number) for number in _NUMBER.findall(text)]
    if len(numbers) not in (6, 9) or not _BETWEEN.fullmatch(_NUMBER.sub("", text)):
        raise BadInputError(f"{path}: not an affine matrix: 6 numbers in two rows (or 9 in three) are needed")
    return [numbers[i : i + 3] for i in range(0, len(numbers), 3)]
