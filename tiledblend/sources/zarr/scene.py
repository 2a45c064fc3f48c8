"""Where two images of one store lie to each other, by the scene that is above them (OME-NGFF 0.6, "scene").

A scene joins coordinate systems of its images, and some of its own, by transformations. From one image's pixels the way
leads into its own system, through the scene, and back into the other one's pixels; only y and x count.
"""

from __future__ import annotations

import posixpath
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tiledblend.errors import BadInputError, one_line
from tiledblend.geometry import Affine
from tiledblend.sources.base import RasterSource
from tiledblend.sources.zarr.collections import image_below
from tiledblend.sources.zarr.metadata import ZarrNode, ome_attributes, read_array_facts, read_node
from tiledblend.sources.zarr.ome import axis_of, geometry, plane_names
from tiledblend.sources.zarr.source import ZarrSource
from tiledblend.sources.zarr.transforms import Matrix, matrix_of

MAX_UP = 4
"""How many folders above an image its scene may be."""
MAX_JOINED = 4096
Node = tuple[str, str | None]
"""A system: (path of its image in the scene, "" for the scene's own; name, None for the one that an image lies in)."""
Plane = tuple[int, int, int]
"""(axes of a system, number of y, number of x)."""
LINEAR_DECIMALS, SHIFT_DECIMALS = 12, 9
"""What inverting leaves of a whole number is rounded away: such a map is an offset."""


def layer_to_base(layer: RasterSource, base: RasterSource) -> Affine:
    """The map of the layer's pixels to the base's, by the scene of their store. Raises BadInputError: there is none."""
    above, path = _scene_of(layer)
    other, base_path = _scene_of(base)
    if above.path != other.path:
        raise BadInputError(f"{layer.name}: its scene is {above.path}, that of {base.name} is {other.path}")
    scene = _Scene(above)
    start, end = scene.image(path), scene.image(base_path)
    way, why_not = scene.way((path, start.system), (base_path, end.system))
    if way is None:
        reason = f" ({why_not[0]})" if why_not else ""
        raise BadInputError(f"{layer.name}: the scene {above.path} does not lead from it to {base.name}{reason}")
    of_layer, of_base = start.pixels(layer.spec.level), end.pixels(base.spec.level)
    found = np.linalg.inv(of_base) @ way @ of_layer
    (a, b, c), (d, e, f) = found[1, [1, 0, 2]], found[0, [1, 0, 2]]
    rows = [[round(float(v), LINEAR_DECIMALS) for v in pair] for pair in ((a, b), (d, e))]
    shift = [round(float(v), SHIFT_DECIMALS) for v in (c, f)]
    # A pixel's coordinate is its centre's.
    return Affine.of_matrix([[*row, move] for row, move in zip(rows, shift, strict=True)], centre=0)


def _scene_of(source: RasterSource) -> tuple[ZarrNode, str]:
    """(the nearest scene above an image, the image's path in it)."""
    found = source
    while not isinstance(found, ZarrSource):
        inner = getattr(found, "_source", None)
        if not isinstance(inner, RasterSource):
            raise BadInputError(f"{source.name}: fit scene is for OME-Zarr images of one store, below a scene")
        found = inner
    place, inside = _image_path(found), ""
    for _ in range(MAX_UP):
        place, _, name = place.rpartition("/")
        inside = posixpath.join(name, inside) if inside else name
        if not place or place.endswith(":/"):
            break
        # The root of an archive.
        is_last = place.endswith("!")
        try:
            above = read_node(f"{place}/" if is_last else place, called=source.name)
        except BadInputError:
            above = None
        if above is not None and isinstance(ome_attributes(above).get("scene"), dict):
            return above, inside
        if is_last:
            break
    raise BadInputError(f"{source.name}: no scene is above it (a group with `scene` in its OME metadata)")


def _image_path(source: ZarrSource) -> str:
    place = source.root.rstrip("/")
    node = read_node(place, called=source.name)
    ome = ome_attributes(node)
    below = None if "multiscales" in ome else image_below(node, ome, source.spec.series, source.name)
    return place if below is None else below[0].path


class _Image:
    """One image of a scene. system: the one that its levels lie in."""

    def __init__(self, node: ZarrNode) -> None:
        self._multiscale: Mapping[str, Any] = ome_attributes(node)["multiscales"][0]
        self._node = node
        systems = self._multiscale.get("coordinateSystems") or [{"name": None, "axes": self._multiscale.get("axes")}]
        self.planes = {system["name"]: _plane(system["axes"]) for system in systems}
        first = (self._multiscale["datasets"][0].get("coordinateTransformations") or [{}])[0]
        output = first.get("output")
        name = output.get("name") if isinstance(output, dict) else output
        self.system: str | None = name if name in self.planes else next(iter(self.planes))
        self.joined: Sequence[Any] = [
            one for one in self._multiscale.get("coordinateTransformations") or () if "input" in one
        ]

    def pixels(self, level: int) -> Matrix:
        """(3, 3): pixels (y, x) of a level to the system."""
        called = self._node.path
        path = str(self._multiscale["datasets"][level]["path"])
        facts = read_array_facts(read_node(f"{called.rstrip('/')}/{path}", called=called), called=called)
        found = geometry(self._multiscale, facts, called, level)
        names = [name.lower() for name in plane_names(found.axes)[0]]
        axes = [names.index("y"), names.index("x")]
        if found.matrix is None:
            return np.eye(3)
        rows = [found.places[axis] for axis in axes]
        made = np.eye(3)
        made[:2] = found.matrix[np.ix_(rows, [*axes, len(names)])]
        return made


class _Scene:
    """A scene's systems, and what joins them."""

    def __init__(self, node: ZarrNode) -> None:
        self._node = node
        scene: Mapping[str, Any] = ome_attributes(node)["scene"]
        self._planes = {system["name"]: _plane(system["axes"]) for system in scene.get("coordinateSystems") or ()}
        self._joined: Sequence[Any] = scene.get("coordinateTransformations") or ()
        self._images: dict[str, _Image] = {}
        if len(self._joined) > MAX_JOINED:
            raise BadInputError(f"{node.path}: a scene of {len(self._joined)} transformations; it is damaged")

    def image(self, path: str) -> _Image:
        """An image by its path in the scene."""
        if path not in self._images:
            node = read_node(f"{self._node.path.rstrip('/')}/{path}", called=self._node.path)
            try:
                self._images[path] = _Image(node)
            except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
                raise BadInputError(f"{node.path}: malformed OME-Zarr metadata: {one_line(str(error))}") from error
        return self._images[path]

    def way(self, start: Node, end: Node) -> tuple[Matrix | None, list[str]]:
        """((3, 3) from one system (y, x) to another, None: there is no way; why some transformations were no help)."""
        why_not: list[str] = []
        edges = [(one, "") for one in self._joined]
        edges += [(one, path) for path in (start[0], end[0]) for one in self.image(path).joined]
        steps: dict[Node, list[tuple[Node, Matrix]]] = {}
        for transformation, within in edges:
            try:
                source, target = (self._node_of(transformation[side], within) for side in ("input", "output"))
                matrix = self._matrix(transformation, source, target)
                back = np.asarray(np.linalg.inv(matrix), np.float64)
            except (KeyError, TypeError, ValueError, AttributeError, IndexError, np.linalg.LinAlgError) as error:
                why_not.append(one_line(str(error)) or type(error).__name__)
                continue
            steps.setdefault(source, []).append((target, matrix))
            steps.setdefault(target, []).append((source, back))
        reached, pending = {start: np.eye(3)}, deque([start])
        while pending and end not in reached:
            here = pending.popleft()
            for there, matrix in steps.get(here, ()):
                if there not in reached:
                    reached[there] = matrix @ reached[here]
                    pending.append(there)
        return reached.get(end), why_not

    def _node_of(self, given: Any, within: str) -> Node:
        if isinstance(given, str):
            path, _, name = given.rpartition("/")
            given = {"name": name, "path": path}
        path = posixpath.normpath(posixpath.join(within, given.get("path") or "")).strip("/")
        path = "" if path == "." else path
        name = given.get("name")
        return (path, self.image(path).system) if path and name is None else (path, name)

    def _plane_of(self, node: Node) -> Plane | None:
        path, name = node
        return self.image(path).planes.get(name) if path else self._planes.get(str(name))

    def _matrix(self, transformation: Mapping[str, Any], source: Node, target: Node) -> Matrix:
        """(3, 3) of (y, x). Raises ValueError where other axes have a say in y and x."""
        first, last = self._plane_of(source), self._plane_of(target)
        first, last = first or last, last or first
        if first is None or last is None:
            raise ValueError(f"the systems {source} and {target} are not declared")
        whole = (
            _projection(transformation, first[0], last[0])
            if first[0] != last[0]
            else matrix_of(transformation, first[0])
        )
        rows, columns = last[1:], [*first[1:], first[0]]
        others = np.delete(whole[list(rows)], columns, axis=1)
        if others.any():
            raise ValueError(f"a transformation from {source} mixes other axes into y and x")
        made = np.eye(3)
        made[:2] = whole[np.ix_(rows, columns)]
        return made


def _projection(transformation: Mapping[str, Any], count: int, outputs: int) -> Matrix:
    """The matrix of a `projectAxis`, which drops axes and then adds some at zero."""
    if transformation.get("type") != "projectAxis":
        raise ValueError(f"a {transformation.get('type')} joins systems of {count} and {outputs} axes")
    kept = [axis for axis in range(count) if axis not in (transformation.get("droppedInputs") or ())]
    places = [axis for axis in range(outputs) if axis not in (transformation.get("createdOutputs") or ())]
    made = np.zeros((outputs + 1, count + 1))
    made[-1, -1] = 1
    for place, axis in zip(places, kept, strict=True):
        made[place, axis] = 1
    return made


def _plane(axes: Sequence[Any]) -> Plane:
    names = [name.lower() for name in plane_names([axis_of(axis) for axis in axes])[0]]
    return len(names), names.index("y"), names.index("x")
