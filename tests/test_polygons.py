"""Outlines as masks: the pixel-centre rule against an independent rasteriser, any cut of the plane, file formats."""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import shapely.affinity
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

import tiledblend as tb
from tiledblend.errors import BadInputError, UsageError
from tiledblend.geometry import Region
from tiledblend.kernels import scanline
from tiledblend.kernels.scanline import edges_of_rings, fill_polygons
from tiledblend.look.info import describe
from tiledblend.sources.opening import forget_sources
from tiledblend.sources.outlines.source import PolygonSource, PolygonSpec, open_polygons

SIDE = 48
SQUARE = [[10, 10], [50, 10], [50, 40], [10, 40], [10, 10]]
HOLE = [[20, 20], [30, 20], [30, 30], [20, 30], [20, 20]]


def polygon(*rings: Any) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": list(rings)}


def feature(geometry: Any, name: str | list[str] | None = None, **members: Any) -> dict[str, Any]:
    found = {"names": name} if isinstance(name, list) else {"name": name, "color": [200, 0, 0]}
    properties = {"objectType": "annotation"} | ({"classification": found} if name else {})
    return {"type": "Feature", "geometry": geometry, "properties": properties, **members}


def saved(folder: Path, document: Any, name: str = "a.geojson") -> Path:
    path = folder / name
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def opened(path: Path, *classes: str, **options: Any) -> PolygonSource:
    return open_polygons(PolygonSpec(str(path), classes=classes, **options))


def whole(source: PolygonSource) -> Any:
    return source.read(Region.of_shape(source.shape))[:, :, 0]


def box(x0: float, y0: float, x1: float, y1: float) -> list[list[float]]:
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]


# --- pixels


def random_shape(random: np.random.Generator) -> Any:
    """A valid polygon or multipolygon with holes: a star minus smaller stars, on coordinates where no centre lies on an
    edge."""

    def star(reach: float) -> Any:
        centre, points = random.uniform(-5, SIDE + 5, 2), int(random.integers(3, 14))
        angle = np.sort(random.uniform(0, 2 * np.pi, points))
        return shapely.make_valid(
            shapely.Polygon(centre + random.uniform(0.2, 1, (points, 1)) * reach * np.c_[np.cos(angle), np.sin(angle)])
        )

    shape = star(30)
    for _ in range(int(random.integers(0, 6))):
        shape = shape.difference(star(9)) if random.random() < 0.7 else shape.union(star(9))
    return shape


def rings_of(shape: Any) -> list[Any]:
    parts = [part for part in getattr(shape, "geoms", [shape]) if part.geom_type == "Polygon"]
    return [np.asarray(ring.coords)[:-1] for part in parts for ring in (part.exterior, *part.interiors)]


def centres_inside(shape: Any) -> Any:
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    shapely.prepare(shape)
    return shapely.contains_xy(shape, x, y)


@pytest.mark.parametrize("seed", range(4))
def test_thousands_of_random_shapes_equal_an_independent_rasteriser(seed: int) -> None:
    random = np.random.default_rng(seed)
    with_holes = 0
    for _ in range(700):
        shape = random_shape(random)
        rings = rings_of(shape)
        with_holes += len(rings) > 1
        edges, ring = edges_of_rings(rings)
        filled = fill_polygons(edges, np.zeros(len(ring), int), Region(0, 0, SIDE, SIDE))
        np.testing.assert_array_equal(filled, centres_inside(shape))
    assert with_holes > 200


@pytest.mark.parametrize("seed", range(30))
def test_files_tile_by_tile_equal_gdals_whole_rasterisation(tmp_path: Path, seed: int) -> None:
    """2,400 shapes with holes, three classes, later ones over earlier ones; GDAL takes pixel centres too."""
    from rasterio.features import rasterize

    random, (height, width) = np.random.default_rng(seed), (190, 230)
    shapes = []
    while len(shapes) < 80:
        shape = shapely.affinity.translate(random_shape(random), *random.uniform(-10, 200, 2))
        if shape.geom_type in ("Polygon", "MultiPolygon") and not shape.is_empty:
            shapes.append((shape, f"class {random.integers(0, 3)}"))
    path = saved(tmp_path, [feature(shape.__geo_interface__, name) for shape, name in shapes])
    names = ["class 2", "class 0", "class 1"]
    # GDAL burns one shape after the other: our order of classes
    burnt = [(shape, number) for number, name in enumerate(names, 1) for shape, of in shapes if of == name]
    expected = rasterize(burnt, out_shape=(height, width), dtype=np.uint16)
    side = int(random.integers(20, 120))
    for labels in (True, False):
        source = opened(path, *names).with_shape((height, width), labels=labels)
        got = np.zeros((height, width), np.uint16)
        for y in range(0, height, side):
            for x in range(0, width, side):
                region = Region(y, x, min(y + side, height), min(x + side, width))
                got[region.slices] = source.read(region)[:, :, 0]
        np.testing.assert_array_equal(got, expected if labels else expected > 0)


def test_overlapping_polygons_are_united() -> None:
    random = np.random.default_rng(9)
    for _ in range(150):
        shapes = [random_shape(random) for _ in range(5)]
        parts = [edges_of_rings(rings_of(shape))[0] for shape in shapes]
        owner = np.repeat(np.arange(5), [len(part) for part in parts])
        filled = fill_polygons(np.concatenate(parts), owner, Region(0, 0, SIDE, SIDE))
        np.testing.assert_array_equal(filled, np.logical_or.reduce([centres_inside(shape) for shape in shapes]))


coordinate = st.integers(-16 * 4, (SIDE + 16) * 4).map(lambda n: n / 4)
ring = st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=9).map(lambda points: np.array(points, float))


def exact_even_odd(rings: list[Any], y: int, x: int) -> bool:
    """The rule in whole numbers (eighths of a pixel): crossings at or left of the centre, half-open in y."""
    cy, cx, inside = 8 * y + 4, 8 * x + 4, False
    for points in rings:
        corners = [(int(8 * a), int(8 * b)) for a, b in points]
        for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
            if y0 > y1:
                x0, y0, x1, y1 = x1, y1, x0, y0
            if y0 <= cy < y1 and (cx - x0) * (y1 - y0) >= (cy - y0) * (x1 - x0):
                inside = not inside
    return inside


@settings(max_examples=60, deadline=None)
@given(st.lists(ring, min_size=1, max_size=3), st.integers(0, 20), st.integers(0, 20))
def test_centres_exactly_on_edges_follow_the_half_open_rule(rings: list[Any], y0: int, x0: int) -> None:
    region = Region(y0, x0, y0 + 18, x0 + 18)
    edges, owner = edges_of_rings(rings)
    expected = [[exact_even_odd(rings, y, x) for x in range(x0, x0 + 18)] for y in range(y0, y0 + 18)]
    np.testing.assert_array_equal(fill_polygons(edges, np.zeros(len(owner), int), region), expected)


def test_neighbours_that_share_edges_neither_gap_nor_overlap() -> None:
    random = np.random.default_rng(2)
    triangles = shapely.delaunay_triangles(shapely.MultiPoint(random.uniform(2, SIDE - 2, (40, 2))))
    counted = np.zeros((SIDE, SIDE), int)
    for triangle in triangles.geoms:
        edges, owner = edges_of_rings(rings_of(triangle))
        counted += fill_polygons(edges, owner, Region(0, 0, SIDE, SIDE))
    np.testing.assert_array_equal(counted, centres_inside(shapely.union_all(list(triangles.geoms))))


def shapes_file(folder: Path, seed: int, count: int) -> Path:
    random = np.random.default_rng(seed)
    shapes = [random_shape(random) for _ in range(count)]
    areas = [s for s in shapes if s.geom_type in ("Polygon", "MultiPolygon")]
    return saved(folder, [feature(s.__geo_interface__, f"class {i % 3}") for i, s in enumerate(areas)])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 5), cut=st.tuples(st.integers(1, 60), st.integers(1, 60)), labels=st.booleans())
def test_every_tile_equals_the_whole(
    tmp_path_factory: pytest.TempPathFactory, seed: int, cut: tuple[int, int], labels: bool
) -> None:
    source = opened(shapes_file(tmp_path_factory.mktemp("cut"), seed, 12)).with_shape((SIDE, SIDE), labels=labels)
    expected = whole(source)
    for y in range(0, SIDE, cut[0]):
        for x in range(0, SIDE, cut[1]):
            region = Region(y, x, min(y + cut[0], SIDE), min(x + cut[1], SIDE))
            np.testing.assert_array_equal(source.read(region)[:, :, 0], expected[region.slices])


def test_bands_of_a_large_region_equal_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = opened(shapes_file(tmp_path, 3, 12)).with_shape((SIDE, SIDE))
    expected = whole(source)
    monkeypatch.setattr(scanline, "BAND_PIXELS", 5 * SIDE)
    np.testing.assert_array_equal(whole(source), expected)


def test_a_tile_costs_only_the_outlines_that_touch_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [feature(polygon(box(x, y, x + 6, y + 6))) for x in range(0, 400, 8) for y in range(0, 400, 8)]
    source = opened(saved(tmp_path, cells)).with_shape((400, 400))
    seen = []

    def counting(edges: Any, owner: Any, region: Region) -> Any:
        seen.append(len(np.unique(owner)))
        return fill_polygons(edges, owner, region)

    monkeypatch.setattr("tiledblend.sources.outlines.source.fill_polygons", counting)
    source.read(Region(100, 100, 130, 130))
    assert seen[0] <= 25 < len(cells)


# --- files


def test_holes_and_multipolygons(tmp_path: Path) -> None:
    multi = {"type": "MultiPolygon", "coordinates": [[box(60, 0, 64, 4)], [box(70, 0, 76, 6), box(72, 2, 74, 4)]]}
    source = opened(
        saved(tmp_path, {"type": "FeatureCollection", "features": [feature(multi), feature(polygon(SQUARE, HOLE))]})
    )
    mask = whole(source)
    assert (source.shape, mask.dtype, mask.sum()) == ((40, 76), np.bool_, 1200 - 100 + 16 + 36 - 4)
    assert mask[10, 10]
    assert not mask[25, 25]
    assert not mask[3, 73]


@pytest.mark.parametrize(
    "document",
    [
        [feature(polygon(SQUARE, HOLE))],
        feature(polygon(SQUARE, HOLE)),
        polygon(SQUARE, HOLE),
        "\ufeff \n" + json.dumps([feature(polygon(SQUARE[:-1], HOLE))]),
        [
            feature(
                {
                    "type": "GeometryCollection",
                    "geometries": [polygon(SQUARE, HOLE), {"type": "Point", "coordinates": [1, 2]}],
                }
            )
        ],
        [feature(polygon([[*point, 7.5] for point in SQUARE], HOLE)), feature(None)],
    ],
    ids=["array", "feature", "geometry", "bom and open ring", "collection", "z"],
)
def test_forms_of_geojson(tmp_path: Path, document: Any) -> None:
    assert whole(tb.open(saved(tmp_path, document, "any.name"))).sum() == 1100


def test_classes_pick_and_later_ones_win(tmp_path: Path) -> None:
    features = [
        feature(polygon(box(0, 0, 10, 10)), "Tumor"),
        feature(polygon(box(5, 0, 15, 10)), ["Stroma"]),
        feature(polygon(box(20, 0, 22, 10)), ["Tumor", "Positive"]),
        feature(polygon(box(30, 0, 40, 10))),
    ]
    path = saved(tmp_path, features)
    assert whole(opened(path)).sum() == 150 + 20 + 100
    assert whole(opened(path, "Tumor")).sum() == 120
    assert whole(opened(path, "Tumor: Positive")).sum() == 20
    assert whole(opened(path, "unclassified")).sum() == 100
    labels = whole(opened(path, "Tumor", "Stroma").with_shape((10, 40), labels=True))
    assert labels[0].tolist() == [1] * 5 + [2] * 10 + [0] * 5 + [1] * 2 + [0] * 18
    other_way = whole(opened(path, "Stroma", "Tumor").with_shape((10, 40), labels=True))
    assert other_way[0, :16].tolist() == [2] * 10 + [1] * 5 + [0]
    with pytest.raises(
        BadInputError, match=r"no outline of class 'Tumour'; it has Stroma, Tumor, Tumor: Positive, uncl"
    ):
        opened(path, "Tumour")


def test_level_halves_coordinates(tmp_path: Path) -> None:
    path = saved(tmp_path, [feature(polygon(SQUARE, HOLE))])
    half = tb.open(path, level=1)
    assert half.shape == (20, 25)
    assert whole(half).sum() == 1100 // 4


def asap(*annotations: str) -> str:
    groups = '<AnnotationGroups><Group Name="Tumor" PartOfGroup="None" Color="#ff0000"/></AnnotationGroups>'
    body = "".join(annotations)
    return f'<?xml version="1.0"?>\n<ASAP_Annotations><Annotations>{body}</Annotations>{groups}</ASAP_Annotations>'


def annotation(points: Any, kind: str = "Polygon", group: str = "None") -> str:
    ordered = list(enumerate(points))
    text = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}" />' for i, (x, y) in reversed(ordered))
    start = f'<Annotation Name="one" Type="{kind}" PartOfGroup="{group}" Color="#F4FA58">'
    return f"{start}<Coordinates>{text}</Coordinates></Annotation>"


def test_asap(tmp_path: Path) -> None:
    text = asap(
        annotation(SQUARE[:-1], group="Tumor"),
        annotation(box(60, 0, 64, 4)[:-1], "Rectangle"),
        annotation([(1, 1)], "Dot"),
    )
    source = tb.open(saved(tmp_path, text, "a.xml"))
    assert source.info.format == "ASAP XML"
    assert "1 annotations without an area" in source.info.notes[0]
    assert whole(source).sum() == 1200 + 16
    assert whole(opened(tmp_path / "a.xml", "Tumor")).sum() == 1200


BOW_TIE = [[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]]


def test_invalid_outlines_are_named_and_repaired_or_refused(tmp_path: Path) -> None:
    features = [
        feature(polygon(SQUARE)),
        feature(polygon(BOW_TIE), "Tumor", id="abc"),
        feature(polygon([[1, 1], [2, 2]])),
    ]
    path = saved(tmp_path, features)
    source = opened(path)
    assert (
        "2 of 3 outlines were invalid and repaired (feature 2 (Tumor, id abc): Self-intersection"
        in source.info.notes[0]
    )
    assert "feature 3 (unclassified): has a ring of fewer than three points" in source.info.notes[0]
    edges, owner = edges_of_rings([np.array(BOW_TIE[:-1], float)])
    bow_tie = fill_polygons(edges, owner * 0, Region(0, 0, 10, 10))
    np.testing.assert_array_equal(whole(source)[:10, :10], bow_tie)
    with pytest.raises(BadInputError, match=r"2 invalid outlines \(feature 2 \(Tumor, id abc\): Self-intersection"):
        opened(path, invalid="refuse")


def test_a_repaired_outline_is_what_cutting_it_at_its_crossings_gives(tmp_path: Path) -> None:
    rng, crossing = np.random.default_rng(0), 0
    for number in range(60):
        parts = [
            [(rng.random((int(rng.integers(3, 9)), 2)) * SIDE).tolist() for _ in range(int(rng.integers(1, 4)))]
            for _ in range(int(rng.integers(1, 4)))
        ]
        made = shapely.union_all([shapely.make_valid(shapely.Polygon(rings[0], rings[1:])) for rings in parts])
        crossing += not shapely.MultiPolygon([(rings[0], rings[1:]) for rings in parts]).is_valid
        path = saved(tmp_path, [feature({"type": "MultiPolygon", "coordinates": parts})], f"{number}.geojson")
        centres = np.stack(np.meshgrid(np.arange(SIDE) + 0.5, np.arange(SIDE) + 0.5), -1).reshape(-1, 2)
        inside = shapely.contains_xy(made, centres).reshape(SIDE, SIDE)
        found = opened(path, shape=(SIDE, SIDE))
        np.testing.assert_array_equal(whole(found), inside, str(number))
    assert crossing > 50


def test_an_outline_of_many_crossings_takes_no_time(tmp_path: Path) -> None:
    points = np.random.default_rng(0).random((20_000, 2)) * SIDE
    started = time.process_time()
    source = opened(saved(tmp_path, feature(polygon(points.tolist()))), shape=(SIDE, SIDE))
    found = whole(source)
    assert time.process_time() - started < 3
    assert "1 of 1 outlines was invalid" in source.info.notes[0]
    edges, owner = edges_of_rings([points])
    np.testing.assert_array_equal(found, fill_polygons(edges, owner, Region(0, 0, SIDE, SIDE)))


def test_crossings_are_counted_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    comb = np.array([[i * SIDE / 4000, (i % 2) * SIDE] for i in range(4000)] + [[SIDE, 0.0]])
    edges, owner = edges_of_rings([comb, comb + 0.25])
    region, most = Region(1, 2, SIDE, SIDE), []
    expected = fill_polygons(edges, owner, region)
    monkeypatch.setattr(scanline, "BAND_CROSSINGS", 10_000)
    plain = scanline._crossings
    monkeypatch.setattr(scanline, "_crossings", lambda part, row: most.append(len(row)) or plain(part, row))
    np.testing.assert_array_equal(fill_polygons(edges, owner, region), expected)
    assert max(most) <= 10_000 < sum(most)


def test_overlapping_parts_of_one_feature_are_united(tmp_path: Path) -> None:
    multi = {"type": "MultiPolygon", "coordinates": [[box(0, 0, 10, 10)], [box(5, 0, 15, 10)]]}
    assert whole(opened(saved(tmp_path, [feature(multi)]))).sum() == 150


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"type": "Topology"}', "JSON, but no GeoJSON"),
        ('{"a": [', "not GeoJSON: Expecting value"),
        ("[1, 2]", "item 1 of the array is no GeoJSON Feature"),
        ("[" * 100_000, "nested too deeply"),
        (json.dumps([feature(polygon([[0, 0], [1, "x"], [2, 2]]))]), r"feature 1 \(unclassified\): its coordinates"),
        ('[{"type":"Feature","geometry":{"type":"Polygon","coordinates":[[[0,0],[NaN,1],[2,2]]]}}]', "not finite"),
        (json.dumps([feature(polygon([[0, 0], [1e40, 1], [2, 2]]))]), r"beyond 2\*\*31"),
        (json.dumps([feature({"type": "Curve"})]), "its geometry is none that GeoJSON has"),
        ("<html></html>", "XML, but not ASAP's, ImageScope's or HALO's: its root is <html>"),
        ("<ASAP_Annotations>", "broken XML"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><ASAP_Annotations/>', "document type or entities"),
        (
            asap('<Annotation Name="n"><Coordinates><Coordinate X="1"/></Coordinates></Annotation>'),
            r"annotation 1 \(un",
        ),
    ],
)
def test_broken_files_are_told(tmp_path: Path, text: str, reason: str) -> None:
    path = saved(tmp_path, text)
    with pytest.raises(BadInputError, match=reason):
        tb.open(path)


def test_selections_that_outlines_do_not_have(tmp_path: Path) -> None:
    path = saved(tmp_path, [feature(polygon(SQUARE))])
    with pytest.raises(UsageError, match="no series, channels or planes"):
        tb.open(path, channels=[0])
    with pytest.raises(BadInputError, match="no such file"):
        tb.open(tmp_path / "none.geojson")


def test_info_says_mask_only(tmp_path: Path) -> None:
    entry = describe(saved(tmp_path, [feature(polygon(SQUARE), "Tumor")]))[0]
    assert (entry["format"], entry["layer"], entry["mask"]) == ("GeoJSON", False, True)
    assert (entry["metadata"]["outlines"], entry["metadata"]["classes"]) == (1, ["Tumor"])


# --- in a composite


def layers(mask: Any, **options: Any) -> list[tb.Layer]:
    base = tb.from_array(np.zeros((64, 80, 3), np.uint8), axes="yxc", name="base")
    over = tb.from_array(np.full((64, 80, 3), 200, np.uint8), axes="yxc", name="over")
    return [tb.Layer(base), tb.Layer(over, mask=mask, **options)]


def test_a_polygon_mask_equals_its_raster(tmp_path: Path) -> None:
    mask = tb.open(saved(tmp_path, [feature(polygon(SQUARE, HOLE))]))
    raster = np.zeros((64, 80), bool)
    raster[10:40, 10:50] = True
    raster[20:30, 20:30] = False
    same = tb.from_array(raster, axes="yx", mask=True)
    for feather in (tb.Feather.px(0), tb.Feather.px(3), tb.Feather.ksize(5)):
        drawn = tb.Composite(layers(mask, feather=feather))
        assert drawn.layers[1].mask_frame == "canvas"
        np.testing.assert_array_equal(tb.to_array(drawn), tb.to_array(tb.Composite(layers(same, feather=feather))))


def test_polygons_lie_on_the_canvas_unless_asked(tmp_path: Path) -> None:
    mask = tb.open(saved(tmp_path, [feature(polygon(box(10, 10, 20, 20)))]))
    small = tb.from_array(np.full((30, 30, 3), 200, np.uint8), axes="yxc")
    base = layers(None)[0]

    def top_left(**options: Any) -> list[int]:
        image = tb.to_array(tb.Composite([base, tb.Layer(small, mask=mask, offset=(5, 7), **options)]))
        return np.argwhere(image[:, :, 0])[0].tolist()

    assert top_left() == [10, 10]
    assert top_left(mask_frame="layer") == [15, 17]


def test_labels_of_classes_as_mask_values(tmp_path: Path) -> None:
    features = [feature(polygon(box(0, 0, 10, 10)), "Tumor"), feature(polygon(box(5, 0, 15, 10)), "Stroma")]
    mask = opened(saved(tmp_path, features), "Tumor", "Stroma")
    image = tb.to_array(tb.Composite(layers(mask, mask_values=tb.Labels((1,)))))
    assert (image[:, :, 0] == 200).sum() == 50


def test_outlines_off_the_canvas_are_refused(tmp_path: Path) -> None:
    mask = tb.open(saved(tmp_path, [feature(polygon(box(1000, 1000, 1100, 1100)))]))
    with pytest.raises(BadInputError, match=r"every outline lies outside the image of 64 x 80 .* from y 1000, x 1000"):
        tb.Composite(layers(mask))
    reaching = tb.open(saved(tmp_path, [feature(polygon(box(70, 0, 100, 10)))], "b.geojson"))
    notes = tb.plan(tb.Composite(layers(reaching))).notes
    assert any("1 outlines reach beyond the image of 64 x 80" in note for note in notes)


def test_no_outlines_is_an_empty_mask(tmp_path: Path) -> None:
    mask = tb.open(saved(tmp_path, {"type": "FeatureCollection", "features": []}))
    assert not tb.to_array(tb.Composite(layers(mask))).any()


def test_pickles_by_name_and_notices_a_change(tmp_path: Path) -> None:
    path = saved(tmp_path, [feature(polygon(SQUARE, HOLE), "Tumor")])
    source = opened(path, "Tumor").with_shape((64, 80))
    data = pickle.dumps(source)
    assert len(data) < 1000
    forget_sources()
    again = pickle.loads(data)
    assert again.shape == (64, 80)
    np.testing.assert_array_equal(whole(again), whole(source))
    before = source.fingerprint()
    assert again.fingerprint() == before
    saved(tmp_path, [feature(polygon(SQUARE), "Tumor")])
    assert pickle.loads(data).fingerprint() != before
    assert source.fingerprint() != before


# --- faces


def test_a_job_names_classes(tmp_path: Path) -> None:
    from tiledblend.describe.job import build

    base = tmp_path / "base.tif"
    tifffile.imwrite(base, np.zeros((64, 80, 3), np.uint8), photometric="rgb", metadata=None)
    path = saved(tmp_path, [feature(polygon(SQUARE), "Tumor"), feature(polygon(BOW_TIE), "Stroma")])

    def masks(**keys: Any) -> Any:
        return build({"layers": [{"image": str(base), "mask": {"path": str(path), **keys}}]}).composite.layers[0].mask

    assert masks().read(Region(0, 0, 64, 80)).sum() > masks(classes=["Tumor"]).read(Region(0, 0, 64, 80)).sum() == 1200
    with pytest.raises(BadInputError, match="1 invalid outline "):
        masks(invalid="refuse")
    with pytest.raises(UsageError, match="are for outlines"):
        build({"layers": [{"image": str(base), "mask": {"path": str(base), "classes": ["Tumor"]}}]})
    with pytest.raises(UsageError, match="outlines have no series"):
        masks(classes=["Tumor"], series=0)


def test_the_flag_names_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tiledblend.cli.main import run_command

    base = tmp_path / "base.tif"
    tifffile.imwrite(base, np.full((64, 80, 3), 9, np.uint8), photometric="rgb", metadata=None)
    path = saved(tmp_path, [feature(polygon(SQUARE), "Tumor"), feature(polygon(box(60, 0, 70, 10)), "Stroma")])
    out = tmp_path / "out.tif"
    assert run_command(["blend", str(base), "--mask", str(path), "--class", "Tumor", "-o", str(out)]) == 0
    assert (tifffile.imread(out)[:, :, 0] == 9).sum() == 1200
    assert run_command(["blend", str(base), "--class", "Tumor", "-o", str(tmp_path / "b.tif")]) == 2
    assert "give --mask FILE.geojson" in capsys.readouterr().err
