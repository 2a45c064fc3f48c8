"""Coordinate transformations of OME-NGFF as matrices: https://ngff.openmicroscopy.org/0.6/#coordinate-transformations"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
"""(n + 1, n + 1): maps (point, 1) of n axes."""
MAX_DEPTH = 16
MAX_AXES = 16


def matrix_of(transformation: Any, axes: int, *, depth: int = 0) -> Matrix:
    """The matrix of one transformation between systems of `axes` axes each.

    Raises ValueError, naming the kind, for what is no affine map, is stored elsewhere, or has another number of axes.

    >>> matrix_of({"type": "scale", "scale": [2, 3]}, 2).diagonal().tolist()
    [2.0, 3.0, 1.0]
    """
    if not isinstance(transformation, Mapping):
        raise ValueError(f"a {type(transformation).__name__} is no coordinate transformation")
    kind = transformation.get("type")
    if depth > MAX_DEPTH or not 0 < axes <= MAX_AXES:
        raise ValueError(f"coordinate transformation {kind!r} is nested too deeply")
    made = np.eye(axes + 1)
    if kind == "identity":
        return made
    if kind == "sequence":
        for inner in _list(transformation["transformations"], kind):
            made = matrix_of(inner, axes, depth=depth + 1) @ made
        return made
    if kind == "bijection":
        return matrix_of(transformation["forward"], axes, depth=depth + 1)
    if kind == "byDimension":
        return _by_dimension(transformation, axes, depth)
    if kind not in ("scale", "translation", "affine", "rotation", "mapAxis"):
        raise ValueError(f"coordinate transformation {kind!r} is not affine")
    if kind not in transformation:
        raise ValueError(
            f"coordinate transformation {kind!r} keeps its numbers elsewhere ({transformation.get('path')})"
        )
    return _plain(str(kind), transformation[kind], axes)


def _plain(kind: str, given: Any, axes: int) -> Matrix:
    made = np.eye(axes + 1)
    if kind == "mapAxis":
        places = [int(place) for place in _list(given, kind)]
        if sorted(places) != list(range(axes)):
            raise ValueError(f"mapAxis {places} does not name each of {axes} axes once")
        made[:axes, :axes] = np.eye(axes)[places]
        return made
    numbers = np.asarray(_list(given, kind), np.float64)
    wanted = {"scale": (axes,), "translation": (axes,), "affine": (axes, axes + 1), "rotation": (axes, axes)}[kind]
    if kind in ("affine", "rotation") and numbers.ndim == 1 and numbers.size == np.prod(wanted):
        numbers = numbers.reshape(wanted)  # drafts of 0.6 had the rows one after another
    if numbers.shape != wanted or not np.isfinite(numbers).all():
        raise ValueError(f"{kind} has {numbers.shape} numbers for {axes} axes")
    if kind == "scale":
        made[range(axes), range(axes)] = numbers
    elif kind == "translation":
        made[:axes, axes] = numbers
    else:
        made[:axes, : wanted[1]] = numbers
    return made


def _by_dimension(transformation: Mapping[str, Any], axes: int, depth: int) -> Matrix:
    made = np.eye(axes + 1)
    for item in _list(transformation["transformations"], "byDimension"):
        inputs = [int(axis) for axis in item.get("inputAxes", item.get("input_axes"))]
        outputs = [int(axis) for axis in item.get("outputAxes", item.get("output_axes"))]
        if len(inputs) != len(outputs) or not all(0 <= axis < axes for axis in (*inputs, *outputs)):
            raise ValueError(f"byDimension maps axes {inputs} to {outputs} of {axes}")
        inner = matrix_of(item.get("transformation", item), len(inputs), depth=depth + 1)
        made[outputs] = 0
        made[np.ix_(outputs, inputs)] = inner[:-1, :-1]
        made[outputs, axes] = inner[:-1, -1]
    return made


def chain(transformations: Sequence[Any], axes: int) -> Matrix:
    """The matrix of transformations one after another."""
    made = np.eye(axes + 1)
    for transformation in transformations:
        made = matrix_of(transformation, axes) @ made
    return made


def axis_order(matrix: Matrix) -> tuple[int, ...] | None:
    """For each input axis the one output axis that it alone maps to; None where axes mix.

    >>> axis_order(matrix_of({"type": "mapAxis", "mapAxis": [1, 0]}, 2))
    (1, 0)
    """
    linear = matrix[:-1, :-1] != 0
    if not ((linear.sum(axis=0) == 1).all() and (linear.sum(axis=1) == 1).all()):
        return None
    return tuple(int(column.argmax()) for column in linear.T)


def _list(given: Any, kind: Any) -> list[Any]:
    if not isinstance(given, list) or len(given) > 4096:
        raise ValueError(f"coordinate transformation {kind!r} has no list of numbers")
    return given
