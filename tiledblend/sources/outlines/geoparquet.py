"""GeoParquet, as spatialdata and geopandas store shapes: a column of WKB, circles as points with a radius."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np

from tiledblend.errors import BadInputError
from tiledblend.sources.outlines.bounds import most_bytes
from tiledblend.sources.outlines.features import UNCLASSIFIED, Feature, Polygon, ellipse_ring, ring_of

_CLASS_COLUMNS = ("classification", "class", "name")
_MOST_ROWS = 20_000_000


def parse_geoparquet(data: bytes, path: str) -> tuple[list[Feature], list[str]]:
    """(features with an area, notes). The class is in a column "classification", "class" or "name".

    Raises BadInputError for a table without polygons, UsageError where pyarrow is not installed.
    """
    table = _table(data, path)
    names = table.column_names
    column = _geometry_column(table.schema.metadata or {}, names, path)
    shapes = _shapes(table, column, path)
    radii = table.column("radius").to_pylist() if "radius" in names else [None] * len(shapes)
    classes = _classes(table)
    features, left_out = [], 0
    for number, (shape, radius, klass) in enumerate(zip(shapes, radii, classes, strict=True), 1):
        name = f"row {number} ({klass})"
        try:
            polygons = _polygons(shape, radius)
        except ValueError as error:
            raise BadInputError(f"{path}: {name}: {error}") from error
        if polygons:
            features.append(Feature(name, klass, polygons))
        else:
            left_out += 1
    return features, [f"{left_out} rows without an area (points, lines, empty) are left out"] if left_out else []


def _table(data: bytes, path: str) -> Any:
    try:
        import pyarrow.lib
        from pyarrow import parquet
    except ImportError:
        raise BadInputError(
            f"{path}: outlines in Parquet need pyarrow: pip install 'tiledblend[parquet]', or store them as GeoJSON"
        ) from None
    try:
        with parquet.ParquetFile(io.BytesIO(data)) as file:
            known, names = file.metadata, file.schema_arrow.names
            pages = sum(known.row_group(i).total_byte_size for i in range(known.num_row_groups))
        limit = most_bytes(len(data))
        if known.num_rows > _MOST_ROWS or pages > limit:
            raise BadInputError(f"{path}: {known.num_rows:,} rows of {pages:,} bytes, more than is read at once")
        # As dictionaries: a value that is stored once may stand in every row.
        columns = [name for name in names if name in {"radius", *_CLASS_COLUMNS, _primary(known.metadata or {})}]
        with parquet.ParquetFile(io.BytesIO(data), read_dictionary=columns) as file:
            table = file.read(columns=columns)
        if (size := sum(_expanded(table.column(name)) for name in columns)) > limit:
            raise BadInputError(f"{path}: {size:,} bytes of values, more than is read at once")
        return table
    except (pyarrow.lib.ArrowException, OSError, ValueError) as error:
        raise BadInputError(f"{path}: broken Parquet: {' '.join(str(error).split())[:200]}") from error


def _primary(metadata: dict[bytes, bytes]) -> str:
    """The geometry column that the metadata name; the usual one where they cannot be read."""
    try:
        return str(json.loads(metadata.get(b"geo", b"{}")).get("primary_column", "geometry"))
    except (ValueError, AttributeError):
        return "geometry"


def _expanded(column: Any) -> int:
    """Bytes of a column's texts when each row has its own."""
    import pyarrow
    from pyarrow import compute

    total = 0
    for chunk in column.chunks:
        if isinstance(chunk, pyarrow.DictionaryArray) and len(chunk.dictionary):
            lengths = compute.binary_length(chunk.dictionary)
            total += compute.sum(compute.take(compute.cast(lengths, "int64"), chunk.indices)).as_py() or 0
    return total


def _geometry_column(metadata: dict[bytes, bytes], names: list[str], path: str) -> str:
    try:
        said = json.loads(metadata.get(b"geo", b"{}"))
        column = said.get("primary_column", "geometry")
        encoding = said.get("columns", {}).get(column, {}).get("encoding", "WKB")
    except (ValueError, AttributeError):
        raise BadInputError(f"{path}: Parquet whose geo metadata cannot be read") from None
    if column not in names:
        raise BadInputError(f"{path}: Parquet without a geometry column")
    if encoding != "WKB":
        raise BadInputError(f"{path}: Parquet with geometries as {encoding}; store them as WKB")
    return str(column)


def _shapes(table: Any, column: str, path: str) -> Any:
    import shapely

    try:
        return shapely.from_wkb(np.array(table.column(column).to_pylist(), object))
    except (shapely.errors.ShapelyError, TypeError) as error:
        raise BadInputError(f"{path}: its geometries cannot be read: {' '.join(str(error).split())[:120]}") from error


def _classes(table: Any) -> list[str]:
    column = next((name for name in _CLASS_COLUMNS if name in table.column_names), None)
    if column is None:
        return [UNCLASSIFIED] * table.num_rows
    return [_class_name(value) for value in table.column(column).to_pylist()]


def _class_name(value: Any) -> str:
    """A name, or QuPath's classification as geopandas keeps it: JSON text or a mapping with a name."""
    if isinstance(value, str) and value.startswith("{"):
        try:
            value = json.loads(value)
        except ValueError:
            return value
    if isinstance(value, dict):
        value = value.get("name")
    return UNCLASSIFIED if value in (None, "") else str(value)


def _polygons(shape: Any, radius: float | None) -> list[Polygon]:
    import shapely

    if shape is None or shape.is_empty:
        return []
    if shape.geom_type == "Point":
        if radius is None or not radius > 0:
            return []
        centre = np.array([shape.x, shape.y])
        return [[ring_of(ellipse_ring(np.array([centre - radius, centre + radius])))]]
    parts = [part for part in shapely.get_parts(shapely.get_parts(shape)) if part.geom_type == "Polygon"]
    return [
        [ring_of(shapely.get_coordinates(ring)) for ring in (part.exterior, *part.interiors)]
        for part in parts
        if not part.is_empty
    ]
