"""Formats of outlines, each against an independent parse: shapely's areas, GDAL's rasterisation, plain XML and JSON."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from typing import Any
from xml.dom import minidom

import numpy as np
import pytest
import shapely
import tifffile

import tiledblend as tb
from tiledblend.errors import BadInputError
from tiledblend.geometry import Region
from tiledblend.look.info import describe, render_info
from tiledblend.sources.outlines.source import PolygonSource, PolygonSpec, open_polygons

CASES = Path(__file__).parents[1].parent / "shared" / "cases" / "outlines"
SHAPE = (180, 220)
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases/outlines")


def opened(path: Path, *classes: str, **options: Any) -> PolygonSource:
    return open_polygons(PolygonSpec(str(path), classes=classes, **options))


def drawn(path: Path, *classes: str, shape: tuple[int, int] = SHAPE) -> Any:
    return opened(path, *classes).with_shape(shape).read(Region.of_shape(shape))[:, :, 0]


def burnt(areas: Any, shape: tuple[int, int] = SHAPE) -> Any:
    """GDAL's rasterisation of shapely geometries."""
    from rasterio.features import rasterize

    kept = [area for area in areas if not area.is_empty]
    return (
        rasterize([(area, 1) for area in kept], out_shape=shape, dtype=np.uint8) > 0 if kept else np.zeros(shape, bool)
    )


def star(random: np.random.Generator, reach: float) -> Any:
    points = int(random.integers(3, 14))
    angle = np.sort(random.uniform(0, 2 * np.pi, points))
    around = random.uniform(0.2, 1, (points, 1)) * reach * np.c_[np.cos(angle), np.sin(angle)]
    return random.uniform(10, (SHAPE[1] - 10, SHAPE[0] - 10)) + around


def valid(points: Any) -> Any:
    """A star may reach around its middle once too often."""
    return shapely.make_valid(shapely.Polygon(points))


def assert_same_off_edges(found: Any, areas: list[Any]) -> None:
    """Equal where no centre lies exactly on an edge: there GDAL's rule and ours differ."""
    y, x = np.mgrid[: found.shape[0], : found.shape[1]] + 0.5
    on_edge = shapely.distance(shapely.union_all([area.boundary for area in areas]), shapely.points(x, y)) < 1e-6
    np.testing.assert_array_equal(found[~on_edge], burnt(areas, found.shape)[~on_edge])


# --- QuPath's nested objects


def feature(geometry: Any, name: str | None = None, children: Any = None, kind: str = "annotation") -> dict[str, Any]:
    properties: dict[str, Any] = {"objectType": kind} | ({"classification": {"name": name}} if name else {})
    if children is not None:
        properties["childObjects"] = children
    return {"type": "Feature", "id": "x", "geometry": geometry, "properties": properties}


def square(x: float, y: float, side: float) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": [[[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]]}


def saved(path: Path, document: Any) -> Path:
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_child_objects_are_masks_at_any_depth(tmp_path: Path) -> None:
    inner: list[Any] = []
    for depth in reversed(range(100)):
        inner = [feature(square(2 * depth, 3, 2), f"depth {depth % 2}", inner)]
    path = saved(tmp_path / "a.geojson", {"type": "FeatureCollection", "features": inner})
    assert drawn(path).sum() == 100 * 4
    odd = drawn(path, "depth 1")
    assert odd.sum() == 50 * 4
    assert odd[3, [2, 6, 198]].all()
    assert not odd[3, [0, 4, 196]].any()


@pytest.mark.parametrize("geometry", [{}, None], ids=["{}", "null"])
@pytest.mark.parametrize("nested", [True, False])
def test_the_root_object_is_no_outline_and_no_error(tmp_path: Path, geometry: Any, nested: bool) -> None:
    tumor = feature(square(10, 10, 20), "Tumor")
    document = [feature(geometry, None, [tumor] if nested else None, "root")] + ([] if nested else [tumor])
    source = opened(saved(tmp_path / "a.geojson", document), "Tumor")
    assert source.info.notes == ()
    assert drawn(tmp_path / "a.geojson", "Tumor").sum() == 400


@needs_cases
def test_the_cases_of_qupath() -> None:
    found = json.loads((CASES / "child.geojson").read_text())["features"]
    every = [*found, *found[0]["properties"]["childObjects"]]
    for name in ("Tissue", "Tumor"):
        areas = [
            shapely.geometry.shape(f["geometry"]) for f in every if f["properties"]["classification"]["name"] == name
        ]
        assert_same_off_edges(drawn(CASES / "child.geojson", name, shape=(900, 700)), areas)
    assert drawn(CASES / "root.geojson", "Tumor").sum() == 190 * 170


def test_a_child_that_is_broken_is_named(tmp_path: Path) -> None:
    bad = feature({"type": "Polygon", "coordinates": [[[0, 0], [1, "x"], [2, 2]]]}, "Tumor")
    path = saved(tmp_path / "a.geojson", [feature(square(0, 0, 9)), feature(square(0, 0, 9), "Tissue", [bad])])
    with pytest.raises(BadInputError, match=r"feature 2\.1 \(Tumor, id x\): its coordinates cannot be read"):
        tb.open(path)
    for wrong in ("[1]", '{"a": 1}'):
        text = '{"type":"Feature","geometry":null,"properties":{"childObjects":' + wrong + "}}"
        with pytest.raises(BadInputError, match=r"no GeoJSON Feature|are no array"):
            tb.open(saved(tmp_path / "b.geojson", text))


# --- ImageScope and HALO


def imagescope(layers: list[tuple[str, list[tuple[int, Any, bool]]]]) -> str:
    """layers of (name, regions of (type, corners, negative))."""

    def region(kind: int, corners: Any, negative: bool) -> str:
        vertices = "".join(f'<Vertex X="{x!r}" Y="{y!r}" Z="0"/>' for x, y in np.asarray(corners, float).tolist())
        return f'<Region Id="1" Type="{kind}" NegativeROA="{int(negative)}"><Vertices>{vertices}</Vertices></Region>'

    body = "".join(
        f'<Annotation Id="{i}" Name="{name}" Type="4"><Regions>{"".join(region(*r) for r in regions)}</Regions>'
        "</Annotation>"
        for i, (name, regions) in enumerate(layers, 1)
    )
    return f'<?xml version="1.0"?><Annotations MicronsPerPixel="0.499">{body}</Annotations>'


HALO_TYPES = {0: "Polygon", 1: "Rectangle", 2: "Ellipse", 4: "Ruler"}


def halo(layers: list[tuple[str, list[tuple[int, Any, bool]]]]) -> str:
    def region(kind: int, corners: Any, negative: bool) -> str:
        vertices = "".join(f'<V X="{x!r}" Y="{y!r}"/>' for x, y in np.asarray(corners, float).tolist())
        start = f'<Region Type="{HALO_TYPES[kind]}" HasEndcaps="0" NegativeROA="{int(negative)}">'
        return f"{start}<Vertices>{vertices}</Vertices><Comments/></Region>"

    body = "".join(
        f'<Annotation Name="{name}" Visible="True" LineColor="65535"><Regions>{"".join(region(*r) for r in regions)}'
        "</Regions></Annotation>"
        for name, regions in layers
    )
    return f"<Annotations>{body}</Annotations>"


WRITERS = {"xml": imagescope, "annotations": halo}


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize("seed", range(12))
def test_negative_regions_are_cut_out_of_their_own_layer(tmp_path: Path, ending: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    layers = [
        (name, [(0, star(random, 60 if i < 4 else 25), i >= 4) for i in range(8)])
        for name in ("Tumor", "Stroma", "Tumor")
    ]
    path = saved(tmp_path / f"a.{ending}", WRITERS[ending](layers))
    for names in (("Tumor",), ("Stroma",), ("Stroma", "Tumor")):
        areas = []
        for name, regions in layers:
            drawn_ones, negative = ([valid(p) for _, p, is_cut in regions if is_cut == want] for want in (0, 1))
            if name in names:
                areas.append(shapely.union_all(drawn_ones) - shapely.union_all(negative))
        np.testing.assert_array_equal(drawn(path, *names), burnt(areas))
    counted = describe(path)[0]["metadata"]["by_class"]
    each = [
        (name, valid(p) - shapely.union_all([valid(q) for _, q, cut in regions if cut]))
        for name, regions in layers
        for _, p, is_cut in regions
        if not is_cut
    ]
    for name in ("Tumor", "Stroma"):
        assert counted[name]["area_px"] == pytest.approx(sum(a.area for n, a in each if n == name), rel=1e-9)
        assert counted[name]["outlines"] == sum(not a.is_empty for n, a in each if n == name)


@pytest.mark.parametrize("ending", WRITERS)
def test_a_negative_region_well_inside_keeps_every_corner(tmp_path: Path, ending: str) -> None:
    """As a hole: cutting would give the same area, by corners that were computed."""
    random = np.random.default_rng(1)
    outer = np.array([[0.3, 0.7], [200.1, 3.3], [190.7, 170.2], [5.9, 160.4]])
    holes = [random.uniform((21, 31), (39, 49), (3, 2)), random.uniform((100, 70), (140, 110), (3, 2))]
    path = saved(
        tmp_path / f"a.{ending}", WRITERS[ending]([("a", [(0, outer, False), *((0, h, True) for h in holes)])])
    )
    edges = opened(path)._outlines.edges
    assert {tuple(p) for p in edges[:, :2].tolist()} <= {tuple(p) for p in np.concatenate([outer, *holes]).tolist()}
    np.testing.assert_array_equal(drawn(path), burnt([shapely.Polygon(outer, holes)]))


@pytest.mark.parametrize("ending", WRITERS)
def test_regions_that_cross_themselves_are_cut_even_odd(tmp_path: Path, ending: str) -> None:
    random = np.random.default_rng(5)
    for number in range(6):
        tangles = [random.uniform(5, 170, (11, 2)) for _ in range(3)]
        path = saved(
            tmp_path / f"{number}.{ending}", WRITERS[ending]([("a", [(0, t, i > 0) for i, t in enumerate(tangles)])])
        )
        y, x = np.mgrid[: SHAPE[0], : SHAPE[1]] + 0.5
        inside = [shapely.contains_xy(shapely.make_valid(shapely.Polygon(t)), x, y) for t in tangles]
        np.testing.assert_array_equal(drawn(path), inside[0] & ~inside[1] & ~inside[2])


@pytest.mark.parametrize("ending", WRITERS)
def test_rectangles_ellipses_and_rulers(tmp_path: Path, ending: str) -> None:
    regions = [
        (1, [[100, 20], [60, 50]], False),
        (2, [[120.5, 60.25], [201, 150.5]], False),
        (4, [[0, 0], [9, 9]], False),
    ]
    path = saved(tmp_path / f"a.{ending}", WRITERS[ending]([("a", regions)]))
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]] + 0.5
    away = ((x - 160.75) / 40.25) ** 2 + ((y - 105.375) / 45.125) ** 2
    found = drawn(path)
    assert found[20:50, 60:100].all()
    found[20:50, 60:100] = False
    np.testing.assert_array_equal(found[abs(away - 1) > 0.001], (away < 1)[abs(away - 1) > 0.001])
    assert "1 regions without an area (rulers, arrows, pins) are left out" in opened(path).info.notes


def test_imagescopes_rectangle_of_four_corners_and_ellipse_of_four(tmp_path: Path) -> None:
    corners = [[10, 10], [50, 10], [50, 30], [10, 30]]
    path = saved(tmp_path / "a.xml", imagescope([("a", [(1, corners, False)]), ("b", [(2, corners, False)])]))
    assert drawn(path, "a").sum() == 800
    assert drawn(path, "b").sum() == pytest.approx(np.pi * 20 * 10, rel=0.02)


def test_layers_without_a_name_are_called_by_their_description(tmp_path: Path) -> None:
    text = imagescope([("", [(0, [[0, 0], [9, 0], [9, 9]], False)])])
    described = text.replace(
        "<Regions>", '<Attributes><Attribute Name="Description" Value="Necrosis"/></Attributes><Regions>'
    )
    assert opened(saved(tmp_path / "a.xml", text)).info.metadata["classes"] == ["unclassified"]
    assert opened(saved(tmp_path / "b.xml", described)).info.metadata["classes"] == ["Necrosis"]


@needs_cases
def test_the_cases_of_imagescope_and_halo() -> None:
    regions = minidom.parse(str(CASES / "is.xml")).getElementsByTagName("Region")
    rings = [
        [(float(v.getAttribute("X")), float(v.getAttribute("Y"))) for v in region.getElementsByTagName("Vertex")]
        for region in regions
    ]
    assert [region.getAttribute("NegativeROA") for region in regions] == ["0", "1"]
    assert_same_off_edges(drawn(CASES / "is.xml"), [shapely.Polygon(rings[0], [rings[1]])])
    assert tb.open(CASES / "is.xml").info.format == "ImageScope XML"
    corners = minidom.parse(str(CASES / "halo.annotations")).getElementsByTagName("V")
    triangle = shapely.Polygon([(float(v.getAttribute("X")), float(v.getAttribute("Y"))) for v in corners])
    assert_same_off_edges(drawn(CASES / "halo.annotations", "Tumor"), [triangle])
    assert tb.open(CASES / "halo.annotations").info.format == "HALO annotations"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            imagescope([("a", [(0, [[0, 0], [1, 1]], False)])]).replace('X="1.0"', 'X="a"'),
            r"region 1 \(a, id 1\): its coo",
        ),
        (imagescope([("a", [(0, [[0, 0], [9, 1], [3, 8]], False)])]).replace("9.0", "inf"), "not finite"),
        ("<Annotations><Annotation>", "broken XML"),
        ("<Annotation/>", "its root is <Annotation>"),
        ('<?xml version="1.0" encoding="nowhere"?><Annotations/>', "broken XML"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><Annotations/>', "document type or entities"),
    ],
)
def test_broken_layers_are_told(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(BadInputError, match=reason):
        tb.open(saved(tmp_path / "a.xml", text))


def test_layers_without_regions_are_an_empty_mask(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.xml", "<Annotations><Annotation Name='a'><Regions/></Annotation></Annotations>")
    assert not drawn(path).any()


def test_a_tangle_is_refused_before_it_is_cut_and_depth_is_no_harm(tmp_path: Path) -> None:
    tangle = np.random.default_rng(0).uniform(0, 170, (3000, 2))
    started = time.process_time()
    with pytest.raises(BadInputError, match="crosses itself more than 10,000 times"):
        tb.open(
            saved(tmp_path / "a.xml", imagescope([("a", [(0, tangle, False), (0, [[0, 0], [9, 0], [9, 9]], True)])]))
        )
    deep = "<Annotations>" + "<Annotation>" * 200_000 + "</Annotation>" * 200_000 + "</Annotations>"
    assert not drawn(saved(tmp_path / "b.xml", deep)).any()
    assert time.process_time() - started < 10


# --- gzip


def test_gzip_around_each_format(tmp_path: Path) -> None:
    texts = {
        "geojson": json.dumps([feature(square(10, 10, 20), "Tumor")]),
        "xml": imagescope([("Tumor", [(0, [[10, 10], [30, 10], [30, 30], [10, 30]], False)])]),
    }
    for ending, text in texts.items():
        path = tmp_path / f"a.{ending}.gz"
        path.write_bytes(gzip.compress(text[:40].encode()) + gzip.compress(text[40:].encode()))
        assert drawn(path, "Tumor").sum() == 400
        assert opened(path).fingerprint()["structure"] != opened(saved(tmp_path / "a", text)).fingerprint()["structure"]


def test_gzip_that_is_broken_or_a_bomb(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson.gz"
    whole = gzip.compress(json.dumps([feature(square(10, 10, 20))]).encode())
    damaged = whole[:-8] + bytes(8)
    for data, reason in [
        (whole[:-12], "ends early"),
        (damaged, "broken gzip"),
        (gzip.compress(b"\x93NUMPY"), "gzip, but no GeoJSON and no XML in it"),
        (gzip.compress(b"[" + b" " * (100 << 20), 1), "gzip of more than 64 MiB"),
    ]:
        path.write_bytes(data)
        with pytest.raises(BadInputError, match=reason):
            tb.open(path)


# --- GeoParquet


def test_geoparquet_as_geopandas_writes_it(tmp_path: Path) -> None:
    geopandas = pytest.importorskip("geopandas")
    random = np.random.default_rng(3)
    areas = [shapely.Polygon(star(random, 40)) for _ in range(9)]
    areas.append(shapely.MultiPolygon([shapely.box(1, 1, 9, 9) - shapely.box(3, 3, 5, 5), shapely.box(20, 1, 24, 9)]))
    names = [f"class {i % 3}" for i in range(10)]
    frame = geopandas.GeoDataFrame({"classification": names}, geometry=areas)
    frame.to_parquet(tmp_path / "shapes.parquet")
    for name in ("class 0", "class 2"):
        chosen = [area for area, of in zip(areas, names, strict=True) if of == name]
        np.testing.assert_array_equal(drawn(tmp_path / "shapes.parquet", name), burnt(chosen))
    assert describe(tmp_path / "shapes.parquet")[0]["format"] == "GeoParquet"


def parquet(path: Path, columns: dict[str, Any], geo: Any = None) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as writer

    table = pyarrow.table(columns)
    if geo is not None:
        table = table.replace_schema_metadata({"geo": geo if isinstance(geo, str) else json.dumps(geo)})
    writer.write_table(table, path)
    return path


def test_circles_of_spatialdata(tmp_path: Path) -> None:
    points = [shapely.Point(60, 50), shapely.Point(140.5, 99.25)]
    path = parquet(
        tmp_path / "a.parquet",
        {"geometry": [shapely.to_wkb(p) for p in points], "radius": [20.0, 33.5], "name": ['{"name": "Spot"}', None]},
        {"primary_column": "geometry", "columns": {"geometry": {"encoding": "WKB"}}},
    )
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]] + 0.5
    for name, point, radius in [("Spot", points[0], 20.0), ("unclassified", points[1], 33.5)]:
        away = np.hypot(x - point.x, y - point.y) - radius
        found = drawn(path, name)
        np.testing.assert_array_equal(found[abs(away) > 0.01], (away < 0)[abs(away) > 0.01])


def test_parquet_that_has_no_outlines(tmp_path: Path) -> None:
    wkb = [shapely.to_wkb(shapely.box(0, 0, 9, 9))]
    for columns, geo, reason in [
        ({"a": [1]}, None, "without a geometry column"),
        ({"geometry": wkb}, {"columns": {"geometry": {"encoding": "point"}}}, "geometries as point; store them as WKB"),
        ({"geometry": wkb}, "no json", "geo metadata cannot be read"),
        ({"geometry": [b"\x01\x02"]}, None, "its geometries cannot be read"),
    ]:
        with pytest.raises(BadInputError, match=reason):
            tb.open(parquet(tmp_path / "a.parquet", columns, geo))
    big = shapely.to_wkb(shapely.Polygon(np.random.default_rng(0).random((60_000, 2)).tolist()))
    bomb = parquet(tmp_path / "bomb.parquet", {"geometry": [big] * 2000}, None)
    assert bomb.stat().st_size < 4 << 20
    with pytest.raises(BadInputError, match="bytes of values, more than is read at once"):
        tb.open(bomb)
    (tmp_path / "b.parquet").write_bytes(b"PAR1" + bytes(40) + b"PAR1")
    with pytest.raises(BadInputError, match="broken Parquet"):
        tb.open(tmp_path / "b.parquet")


# --- classes, and what info says


def test_one_of_several_classes_may_be_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tiledblend.cli.main import run_command

    path = saved(tmp_path / "a.geojson", [feature(square(10, 10, 20), "Tumor"), feature(square(50, 10, 10), "Stroma")])
    assert drawn(path, "Tumor", "Necrosis").sum() == 400
    note = "no outline of class 'Necrosis'; of those named it has the others"
    assert note in opened(path, "Tumor", "Necrosis").info.notes
    labels = opened(path, "Necrosis", "Stroma").with_shape(SHAPE, labels=True).read(Region.of_shape(SHAPE))
    assert set(np.unique(labels)) == {0, 2}
    with pytest.raises(BadInputError, match="no outline of class 'A' or 'B'; it has Stroma, Tumor"):
        opened(path, "A", "B")
    base = tmp_path / "base.tif"
    tifffile.imwrite(base, np.zeros((*SHAPE, 3), np.uint8), photometric="rgb", metadata=None)
    arguments = ["plan", str(base), str(base), "--mask", str(path), "--class", "Tumor", "--class", "Necrosis"]
    assert run_command(arguments) == 0
    said = capsys.readouterr()
    assert note in said.out + said.err


def test_info_counts_classes_areas_and_bounds(tmp_path: Path) -> None:
    bow_tie = {"type": "Polygon", "coordinates": [[[100, 100], [110, 110], [110, 100], [100, 110], [100, 100]]]}
    features = [feature(square(10, 15, 20), "Tumor"), feature(square(60, 10, 5), "Tumor"), feature(bow_tie)]
    entry = describe(saved(tmp_path / "a.geojson", features))[0]
    found = entry["metadata"]
    assert (found["outlines"], found["bounds"]) == (3, [10, 10, 110, 110])
    assert found["by_class"]["Tumor"] == {"outlines": 2, "area_px": 425}
    assert found["by_class"]["unclassified"]["area_px"] == pytest.approx(50, rel=0.005)
    text = render_info([entry])
    assert "bounds      y 10 to 110, x 10 to 110" in text
    assert "class       Tumor: 2, 0.000425 Mpx" in text
