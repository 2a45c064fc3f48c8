"""From stored axes to one (y, x, channel) plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.errors import BadInputError
from tiledblend.geometry import Region

CHANNEL_AXES = ("c", "s")


@dataclass(frozen=True, slots=True)
class PlaneAxes:
    """Where y, x and the channel lie among an array's axes, and the index taken along each other axis.

    names: the axes as stored. channel: None when there is no channel axis. fixed: (axis position, index).
    """

    names: tuple[str, ...]
    y: int
    x: int
    channel: int | None
    fixed: tuple[tuple[int, int], ...]

    def index(self, region: Region) -> tuple[slice | int, ...]:
        """What indexes the stored array to get the pixels of `region`."""
        index: list[slice | int] = [slice(None)] * len(self.names)
        index[self.y], index[self.x] = region.slices
        for axis, position in self.fixed:
            index[axis] = position
        return tuple(index)

    def to_yxc(self, block: NDArray[Any]) -> NDArray[Any]:
        """The block got by `index` as a view of shape (height, width, channels)."""
        kept = [axis for axis in (self.y, self.x, self.channel) if axis is not None]
        order = [sorted(kept).index(axis) for axis in kept]
        moved = block.transpose(order)
        return moved[:, :, np.newaxis] if self.channel is None else moved

    def yx(self, sizes: Sequence[int]) -> tuple[int, int]:
        """(y, x) of a tuple over the stored axes, such as a shape or a chunk shape."""
        return int(sizes[self.y]), int(sizes[self.x])

    def channels(self, shape: Sequence[int]) -> int:
        """Number of channels of an array of this shape."""
        return 1 if self.channel is None else int(shape[self.channel])


def find_plane(
    names: Sequence[str], shape: Sequence[int], plane: Mapping[str, int] | Sequence[tuple[str, int]], source: str
) -> PlaneAxes:
    """Read axes by their names (case does not matter): y and x, c or s for channels, others of size 1 or selected.

    plane: index along each further axis. source: how the error names the array.
    Raises BadInputError naming axes and sizes when the array is not one 2-D image.
    """
    lower = tuple(name.lower() for name in names)
    sizes = ", ".join(f"{name}={size}" for name, size in zip(lower, shape, strict=True))
    if len(set(lower)) != len(lower):
        raise BadInputError(f"{source}: axes {sizes}: a name is there twice")
    if "y" not in lower or "x" not in lower:
        raise BadInputError(f"{source}: axes {sizes}: an image needs the axes y and x")
    channel = [lower.index(name) for name in CHANNEL_AXES if name in lower]
    if len(channel) > 1:
        raise BadInputError(f"{source}: axes {sizes}: both c and s; only one axis of channels is read")
    taken = {lower.index("y"), lower.index("x"), *channel}
    wanted = dict(plane)
    fixed = []
    for axis, (name, size) in enumerate(zip(lower, shape, strict=True)):
        if axis not in taken:
            fixed.append((axis, _plane_index(name, size, wanted, sizes, source)))
    unknown = sorted(set(wanted) - {lower[axis] for axis, _ in fixed})
    if unknown:
        raise BadInputError(f"{source}: axes {sizes}: no axis {unknown[0]} to select a plane of")
    return PlaneAxes(tuple(names), lower.index("y"), lower.index("x"), channel[0] if channel else None, tuple(fixed))


def _plane_index(name: str, size: int, wanted: Mapping[str, int], sizes: str, source: str) -> int:
    if name not in wanted:
        if size == 1:
            return 0
        raise BadInputError(
            f"{source}: axes {sizes}: more than one 2-D image; select one along {name} with plane {{{name}: 0}}"
        )
    if not 0 <= wanted[name] < size:
        raise BadInputError(f"{source}: axes {sizes}: plane {name}={wanted[name]} is not from 0 to {size - 1}")
    return wanted[name]
