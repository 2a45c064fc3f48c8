"""A run that reuses an older result makes what changed and nothing else, and the result is a fresh run's, byte by byte.

Oracles: a fresh run's stored bytes; and for what must not be made, where a change can reach by plain arithmetic.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from conftest import Command
from drawn import Case, cases, layer_of, pictures
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference import Picture
from test_equivalence import examples

import tiledblend as tb
from tiledblend.bytes import taking
from tiledblend.bytes.objects import open_store
from tiledblend.containers.older import open_older, tiles_below
from tiledblend.containers.omezarr.result import read_result
from tiledblend.containers.omezarr.spec import OutputSpec
from tiledblend.containers.verify import verify
from tiledblend.describe.composite import Composite
from tiledblend.errors import BadInputError
from tiledblend.geometry import Tile
from tiledblend.run.changes import compare
from tiledblend.run.driver import write
from tiledblend.run.plan import plan
from tiledblend.run.report import RunReport
from tiledblend.run.reuse import plan_reuse
from tiledblend.sources.outlines.source import PolygonSpec, open_polygons

Array = NDArray[Any]


@pytest.fixture(scope="module", autouse=True)
def _not_durable() -> Iterator[None]:
    """Thousands of files are written here, none of which need outlive a power cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


DOCUMENTS = ("zarr.json", ".zattrs")


def stored(folder: Path) -> dict[str, bytes]:
    """Every stored object but the root's attributes, which tell when and from what."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    keys = {path.relative_to(folder).as_posix(): path for path in files}
    return {key: path.read_bytes() for key, path in keys.items() if key not in DOCUMENTS}


def made(composite: Composite, path: Path, output: OutputSpec, reuse: Path | None = None) -> tuple[int, int]:
    """Write without a cluster; (tiles made, tiles reused)."""
    given_reuse = None if reuse is None else str(reuse)
    reports = [
        write(composite, str(path), output=output, part=(1, 1), reuse=given_reuse),
        write(composite, str(path), output=output, finish=True, reuse=given_reuse),
    ]
    reused = sum(report.reused_tiles for report in reports)
    return sum(report.tiles for report in reports) - reused, reused


def keys_of(path: Path) -> list[bytes]:
    older = open_older(path)
    return [older.key_of(tile) for tile in older.layout.grid.tiles()]


def rebuilt(case: Case, stack: list[Picture], **changes: Any) -> Composite:
    whole = case.composite
    given = {"mode": whole.mode, "background": whole.background, "canvas": whole.canvas} | changes
    return Composite([layer_of(picture, number) for number, picture in enumerate(stack)], **given)


@st.composite
def changed(draw: st.DrawFn, case: Case) -> Composite:
    """The case's composite with one thing changed."""
    stack = [replace(picture) for picture in case.pictures]
    picture = stack[draw(st.integers(0, len(stack) - 1))]
    mode = case.composite.mode
    kinds = ["nothing", "feather", "opacity", "background", "image"]
    kinds += ["mask"] * 3 if isinstance(picture.mask, np.ndarray) else []
    kinds += ["added"] if mode != "stack" else []
    kinds += ["removed"] if mode != "stack" and len(stack) > 1 else []
    kinds += ["operator"] if mode == "over" else []
    plain = all(one.operator == "normal" and one.bands is None for one in stack)
    kinds += ["mode"] if mode != "stack" and plain else []
    kind = draw(st.sampled_from(kinds))
    if kind == "feather" and picture.bands is not None:
        picture.bands = draw(st.integers(1, 6))
    elif kind == "feather" and picture.ksize is None:
        wider = draw(st.sampled_from([0.0, 2.0, 13.0]))
        picture.sigma = (wider, wider / 3) if isinstance(picture.sigma, tuple) else wider
    elif kind == "operator":
        picture.operator = draw(st.sampled_from(["normal", "multiply", "screen"]))
    elif kind == "opacity":
        picture.opacity = draw(st.sampled_from([1.0, 0.7, 0.0]))
    elif kind == "mask":
        assert isinstance(picture.mask, np.ndarray)
        picture.mask = picture.mask.copy()
        rows, columns = (draw(st.integers(1, max(1, n // 3))) for n in picture.mask.shape[:2])
        corner = picture.mask[:rows, :columns]
        corner[...] = picture.mask.max() if draw(st.booleans()) else picture.mask.min()
    elif kind == "image":
        picture.image = picture.image.copy()
        picture.image[0, 0] = 0
    elif kind == "added":
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        colours = stack[0].image.shape[2] - (stack[0].alpha != "none")
        shape, dtype = case.composite.shape, case.composite.dtype.name
        stack.append(draw(pictures(rng, shape, colours, dtype, False, False, None)))
        if stack[-1].mask is None:
            stack[-1].invert = False
    elif kind == "removed":
        stack.pop()
    given: dict[str, Any] = {}
    if kind == "mode":
        given["mode"] = "average" if case.composite.mode == "over" else "over"
    if kind == "background":
        given["background"] = 0 if case.composite.background else 1
    return rebuilt(case, stack, **given)


@examples(12)
@given(case=cases(), data=st.data())
def test_reused_is_fresh(case: Case, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("reuse")
    composite = data.draw(changed(case))
    made(rebuilt(case, case.pictures), folder / "old.zarr", case.output)
    tiles, reused = made(composite, folder / "new.zarr", case.output, folder / "old.zarr")
    made(composite, folder / "fresh.zarr", case.output)
    assert stored(folder / "new.zarr") == stored(folder / "fresh.zarr")
    assert keys_of(folder / "new.zarr") == keys_of(folder / "fresh.zarr")
    assert verify(str(folder / "new.zarr"), "full").ok
    # What was made has another key, and every key that is the same was taken.
    grid, old = case.grid, np.array([list(key) for key in keys_of(folder / "old.zarr")])
    same = (np.array([list(key) for key in keys_of(folder / "new.zarr")]) == old).all(axis=1)
    expected = sum(same[tiles_below(grid, tile)].all() for stage in range(grid.stages) for tile in grid.tiles(stage))
    assert (reused, tiles + reused) == (expected, plan(composite, case.output, samples=0).tiles)
    assert plan_reuse(plan(composite, case.output, samples=0), folder / "old.zarr").reused_tiles == reused
    found = compare(folder / "old.zarr", folder / "new.zarr")
    assert len(found.changed) == int((~same).sum())
    shutil.rmtree(folder)


SHAPE, SIDE = (520, 640), 128
OUTPUT = OutputSpec(64, SIDE)


def image(seed: int, shape: tuple[int, int] = SHAPE) -> Any:
    rng = np.random.default_rng(seed)
    return tb.from_array(rng.integers(0, 256, (*shape, 3), np.uint8), axes="yxc", name=f"image {seed}")


def disc(y: float, x: float, radius: float, shape: tuple[int, int] = SHAPE) -> Array:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return ((rows - y) ** 2 + (columns - x) ** 2 < radius**2).astype(np.uint8) * 255


def mask_source(values: Array) -> Any:
    return tb.from_array(values, axes="yx", name="mask", mask=True)


def over(values: Array, sigma: float = 6.0, **options: Any) -> Any:
    return tb.Layer(image(2), mask=mask_source(values), feather=tb.Feather.px(sigma), **options)


def tiles_touched(rows: tuple[float, float], columns: tuple[float, float], halo: int) -> set[tuple[int, int]]:
    """Tiles that a change of these rows and columns of the canvas can reach."""
    reach = [(int(low - halo) // SIDE, int(high + halo) // SIDE) for low, high in (rows, columns)]
    counts = [-(-n // SIDE) for n in SHAPE]
    return {
        (row, column)
        for row in range(max(0, reach[0][0]), min(counts[0] - 1, reach[0][1]) + 1)
        for column in range(max(0, reach[1][0]), min(counts[1] - 1, reach[1][1]) + 1)
    }


def changed_tiles(before: Composite, after: Composite, folder: Path) -> set[tuple[int, int]]:
    """Tiles of the first stage that are made again, after a check that the result is a fresh one's."""
    made(before, folder / "old.zarr", OUTPUT)
    tiles, _ = made(after, folder / "new.zarr", OUTPUT, folder / "old.zarr")
    made(after, folder / "fresh.zarr", OUTPUT)
    assert stored(folder / "new.zarr") == stored(folder / "fresh.zarr")
    found = {
        (change.tile.row, change.tile.column) for change in compare(folder / "old.zarr", folder / "new.zarr").changed
    }
    assert len(found) <= tiles
    return found


@pytest.mark.parametrize(("sigma", "factor"), [(0, 1), (2, 1), (6, 1), (6, 8), (90, 4)])
def test_a_mask_repainted_in_one_corner(tmp_path: Path, sigma: float, factor: int) -> None:
    """The feather of 90 px is wider than a tile."""
    small = tuple(-(-n // factor) for n in SHAPE)
    values = disc(300 / factor, 400 / factor, 100 / factor, small)
    repainted = values.copy()
    spot = 24 // factor
    repainted[:spot, :spot] = 255
    before, after = (tb.Composite([tb.Layer(image(1)), over(v, sigma)]) for v in (values, repainted))
    again = changed_tiles(before, after, tmp_path)
    halo = after.kernel(after.layers[1]).halo_px[0] + factor
    assert again
    assert again <= tiles_touched((0, 24), (0, 24), halo)


def test_a_feather_is_made_again_where_its_layer_has_an_edge(tmp_path: Path) -> None:
    values = disc(260, 320, 200)
    before, after = (tb.Composite([tb.Layer(image(1)), over(values, sigma)]) for sigma in (4, 9))
    again = changed_tiles(before, after, tmp_path)
    halo = after.kernel(after.layers[1]).halo_px[0] + 1

    def has_edge(row: int, column: int) -> bool:
        rows, columns = (slice(max(0, n * SIDE - halo), (n + 1) * SIDE + halo) for n in (row, column))
        return bool(np.ptp(values[rows, columns]))

    edge = {place for place in np.ndindex(*(-(-n // SIDE) for n in SHAPE)) if has_edge(*place)}
    assert again
    assert again <= edge
    assert (260 // SIDE, 320 // SIDE) not in again  # the middle of the disc is the layer's alone, whatever its feather


def test_an_opacity_is_made_again_where_its_layer_has_weight(tmp_path: Path) -> None:
    values = disc(100, 100, 50)
    before, after = (tb.Composite([tb.Layer(image(1)), over(values, opacity=o)]) for o in (1.0, 0.5))
    again = changed_tiles(before, after, tmp_path)
    assert again
    assert again <= tiles_touched((50, 150), (50, 150), after.kernel(after.layers[1]).halo_px[0])


@pytest.mark.parametrize("mode", ["over", "average"])
def test_a_layer_added_and_taken_away(tmp_path: Path, mode: Any) -> None:
    detail = tb.Layer(image(3, (50, 60)), offset=(300, 200), feather=tb.Feather.px(3))
    base = [tb.Layer(image(1)), over(disc(100, 100, 50))]
    fewer, more = tb.Composite(base, mode), tb.Composite([*base, detail], mode)
    reach = tiles_touched((300, 350), (200, 260), 0)
    assert changed_tiles(fewer, more, tmp_path / "added") == reach
    assert changed_tiles(more, fewer, tmp_path / "removed") == reach


def test_what_is_hidden_does_not_count(tmp_path: Path) -> None:
    """Under a layer that covers a tile another base makes no difference."""
    values = np.full(SHAPE, 255, np.uint8)
    values[:, 400:] = 0
    before, after = (tb.Composite([tb.Layer(image(seed)), over(values)]) for seed in (1, 4))
    again = changed_tiles(before, after, tmp_path)
    assert again <= tiles_touched((0, SHAPE[0]), (400, SHAPE[1]), 60)
    assert again >= tiles_touched((0, SHAPE[0]), (512, SHAPE[1]), 0)


def test_an_affine_layer(tmp_path: Path) -> None:
    turned = {"affine": [[0.9, 0.1, 100.5], [-0.1, 0.9, 200.25]]}
    small, where = (100, 120), disc(50, 60, 30, (100, 120))
    moved = where.copy()
    moved[0:8, 0:8] = 255

    def composite(values: Array) -> Composite:
        layer = tb.Layer(image(5, small), mask=mask_source(values), feather=tb.Feather.px(2), **turned)
        return tb.Composite([tb.Layer(image(1)), layer])

    again = changed_tiles(composite(where), composite(moved), tmp_path)
    assert again
    assert again <= tiles_touched((190, 220), (90, 120), 30)


def feature(name: str, x: int, y: int, side: int) -> dict[str, Any]:
    ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
    properties = {"classification": {"name": name}}
    return {"type": "Feature", "properties": properties, "geometry": {"type": "Polygon", "coordinates": [ring]}}


@pytest.mark.parametrize("what", ["moved", "class"])
def test_outlines(tmp_path: Path, what: str) -> None:
    """Others in the file do not count, nor that the file is another one."""
    ring = [feature("Tumor", 100, 100, 60), feature("Stroma", 400, 300, 40), feature("Tumor", 500, 420, 30)]
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": ring}))
    if what == "moved":
        ring[0] = feature("Tumor", 110, 100, 60)
    (tmp_path / "b.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": ring}))
    classes = [("Tumor",), ("Tumor",) if what == "moved" else ("Tumor", "Stroma")]

    def composite(name: str, names: tuple[str, ...]) -> Composite:
        source = open_polygons(PolygonSpec(str(tmp_path / name), classes=names))
        return tb.Composite([tb.Layer(image(1)), tb.Layer(image(2), mask=source, feather=tb.Feather.px(3))])

    after = composite("b.geojson", classes[1])
    again = changed_tiles(composite("a.geojson", classes[0]), after, tmp_path)
    halo = after.kernel(after.layers[1]).halo_px[0] + 1
    reach = (
        tiles_touched((100, 160), (100, 170), halo) if what == "moved" else tiles_touched((300, 340), (400, 440), halo)
    )
    assert again
    assert again <= reach
    found = compare(tmp_path / "old.zarr", tmp_path / "new.zarr")
    assert set(found.why) == {"mask"}


def two(values: Array, **options: Any) -> Composite:
    return tb.Composite([tb.Layer(image(1)), over(values, **options)])


@pytest.fixture
def older(tmp_path: Path) -> Path:
    made(two(disc(100, 100, 50)), tmp_path / "old.zarr", OUTPUT)
    return tmp_path / "old.zarr"


CHANGED = disc(100, 104, 50)


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing", "longer"])
def test_damage_is_never_copied(tmp_path: Path, older: Path, damage: str) -> None:
    """Every object of a tile that would be taken, one after the other."""
    made(two(CHANGED), tmp_path / "fresh.zarr", OUTPUT)
    fresh = stored(tmp_path / "fresh.zarr")
    layout = open_older(older).layout
    for key in layout.tile_objects(Tile(0, 4, 4)):
        path = older / key
        whole = path.read_bytes()
        middle = len(whole) // 2
        if damage == "missing":
            path.unlink()
        else:
            flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
            path.write_bytes({"flipped": flipped, "cut": whole[:-1], "longer": whole + b"\0"}[damage])
        made(two(CHANGED), tmp_path / "new.zarr", OUTPUT, older)
        assert stored(tmp_path / "new.zarr") == fresh
        shutil.rmtree(tmp_path / "new.zarr")
        path.write_bytes(whole)


@pytest.mark.parametrize("way", ["reflink", "read"])
def test_every_way_to_copy(tmp_path: Path, older: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> Any:
        raise OSError(95, "not here")

    def cloned(out: int, _: int, source: int) -> None:
        os.pwrite(out, os.pread(source, 1 << 30, 0), 0)  # as a file system with reflinks would

    monkeypatch.setattr(taking.fcntl, "ioctl", cloned if way == "reflink" else refused)
    made(two(CHANGED), tmp_path / "fresh.zarr", OUTPUT)
    _, reused = made(two(CHANGED), tmp_path / "new.zarr", OUTPUT, older)
    assert reused > 10
    assert stored(tmp_path / "new.zarr") == stored(tmp_path / "fresh.zarr")


def test_an_older_result_that_goes_in_mid_run(tmp_path: Path, older: Path) -> None:
    made(two(CHANGED), tmp_path / "fresh.zarr", OUTPUT)
    seen = []

    def progress(event: Any) -> None:
        seen.append(event.done_tiles)
        if len(seen) == 8:
            shutil.rmtree(older)

    report = write(two(CHANGED), str(tmp_path / "new.zarr"), output=OUTPUT, reuse=older, progress=progress)
    assert 0 < report.reused_tiles < report.tiles - 8
    assert stored(tmp_path / "new.zarr") == stored(tmp_path / "fresh.zarr")


def test_a_stopped_run_goes_on(tmp_path: Path, older: Path) -> None:
    import threading

    made(two(CHANGED), tmp_path / "fresh.zarr", OUTPUT)
    stop = threading.Event()
    arguments: dict[str, Any] = {"output": OUTPUT, "reuse": older}
    with pytest.raises(tb.InterruptedRun):
        write(two(CHANGED), str(tmp_path / "new.zarr"), **arguments, stop=stop, progress=lambda _: stop.set())
    report = write(two(CHANGED), str(tmp_path / "new.zarr"), **arguments, resume=True)
    assert report.resumed_tiles > 0
    assert stored(tmp_path / "new.zarr") == stored(tmp_path / "fresh.zarr")
    assert keys_of(tmp_path / "new.zarr") == keys_of(tmp_path / "fresh.zarr")
    history = root(tmp_path / "new.zarr")["history"]
    assert [revision["reused"] for revision in history] == ["old.zarr"]


def test_a_repaired_result_keeps_its_keys_and_its_history(tmp_path: Path, older: Path) -> None:
    out = tmp_path / "new.zarr"
    write(two(CHANGED), str(out), output=OUTPUT, reuse=older)
    keys, history = keys_of(out), root(out)["history"]
    (out / "0/c/0/3/3").unlink()
    write(two(CHANGED), str(out), output=OUTPUT, resume=True)
    assert verify(str(out), "full").ok
    assert keys_of(out) == keys
    assert root(out)["history"] == history


def root(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "zarr.json").read_text())["attributes"]["tiledblend"]
    return found


def test_replace_in_place(tmp_path: Path, older: Path) -> None:
    """The older result is whole until the commit, and what follows reuses what was exchanged."""
    made(two(CHANGED), tmp_path / "fresh.zarr", OUTPUT)
    whole = []

    def progress(_: Any) -> None:
        whole.append(read_result(open_store(older)) is not None)

    report = write(two(CHANGED), str(older), output=OUTPUT, replace=True, reuse=older, progress=progress)
    assert report.reused_tiles > 10
    assert whole
    assert all(whole)
    assert stored(older) == stored(tmp_path / "fresh.zarr")
    write(two(CHANGED, opacity=0.5), str(older), output=OUTPUT, replace=True, reuse=older)
    history = root(older)["history"]
    assert [len(revision["changed"]) > 0 for revision in history] == [True, True]
    assert len({revision["job"] for revision in history}) == 2
    assert history[1]["changed"] == ["layers[1].opacity was 1.0, is now 0.5"]
    assert verify(str(older), "full").ok


def test_verify_covers_the_history(tmp_path: Path, older: Path) -> None:
    out = tmp_path / "new.zarr"
    write(two(CHANGED), str(out), output=OUTPUT, reuse=older)
    document = json.loads((out / "zarr.json").read_text())
    document["attributes"]["tiledblend"]["history"][0]["when"] = "1999-01-01T00:00:00+00:00"
    (out / "zarr.json").write_text(json.dumps(document))
    assert not verify(str(out), "fast").ok


def test_a_fresh_run_tells_no_time(tmp_path: Path, older: Path) -> None:
    """Two fresh runs store the same bytes, documents and all."""
    assert "history" not in root(older)


def test_two_runs_reuse_one(tmp_path: Path, older: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def one(number: int) -> RunReport:
        path = str(tmp_path / f"new{number}.zarr")
        return write(two(CHANGED, opacity=0.5 + number / 4), path, output=OUTPUT, reuse=older)

    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(one, range(2)))
    for number, report in enumerate(reports):
        made(two(CHANGED, opacity=0.5 + number / 4), tmp_path / f"fresh{number}.zarr", OUTPUT)
        assert report.reused_tiles > 10
        assert stored(tmp_path / f"new{number}.zarr") == stored(tmp_path / f"fresh{number}.zarr")


def test_what_cannot_be_reused_is_said(tmp_path: Path, older: Path, caplog: pytest.LogCaptureFixture) -> None:
    report = write(two(CHANGED), str(tmp_path / "a.zarr"), output=replace(OUTPUT, codec="zstd:3"), reuse=older)
    assert report.reused_tiles == 0
    assert "stored in another way" in caplog.text
    with pytest.raises(BadInputError, match="no result of tiledblend"):
        write(two(CHANGED), str(tmp_path / "b.zarr"), output=OUTPUT, reuse=tmp_path / "nothing.zarr")
    assert not (tmp_path / "b.zarr").exists()
    made(two(CHANGED), tmp_path / "c.zarr", OutputSpec(64, 256))
    with pytest.raises(BadInputError, match="not cut alike"):
        compare(older, tmp_path / "c.zarr")
    manifest = older.with_name(older.name + ".manifest")
    manifest.unlink()
    with pytest.raises(BadInputError, match="no manifest"):
        write(two(CHANGED), str(tmp_path / "d.zarr"), output=OUTPUT, reuse=older)


def test_the_command_line(tmp_path: Path, tiledblend: Command) -> None:
    rng = np.random.default_rng(1)
    for name in ("base.tif", "over.tif"):
        tifffile.imwrite(tmp_path / name, rng.integers(0, 255, (*SHAPE, 3), np.uint8), photometric="rgb", tile=(64, 64))
    job = ["base.tif", "over.tif", "--feather", "4px", "--chunk", "64", "--shard", "128"]
    for name, values in (("m1.tif", disc(100, 100, 50)), ("m2.tif", disc(100, 104, 50))):
        tifffile.imwrite(tmp_path / name, values)
    assert tiledblend("blend", *job, "--mask", "m1.tif", "-o", "old.ome.zarr").code == 0
    changed_job = [*job, "--mask", "m2.tif"]
    told = json.loads(tiledblend("plan", *changed_job, "--reuse", "old.ome.zarr", "--json").out)["reuse"]
    done = tiledblend("blend", *changed_job, "-o", "new.ome.zarr", "--reuse", "old.ome.zarr", "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert told["reused_tiles"] == report["reused_tiles"] > 10
    assert told["made_tiles"] == report["tiles"] - report["reused_tiles"]
    assert tiledblend("blend", *changed_job, "-o", "fresh.ome.zarr").code == 0
    assert stored(tmp_path / "new.ome.zarr") == stored(tmp_path / "fresh.ome.zarr")
    assert tiledblend("verify", "new.ome.zarr").code == 0
    found = tiledblend("diff", "old.ome.zarr", "new.ome.zarr", "-o", "changed.geojson", "--json")
    assert found.code == 0, found.err
    difference = json.loads(found.out)
    assert difference["why"] == {"mask": difference["changed_tiles"]}
    assert any("m2.tif" in line for line in difference["changes"])
    outlines = json.loads((tmp_path / "changed.geojson").read_text())
    assert [feature["properties"]["classification"]["name"] for feature in outlines["features"]] == ["changed: mask"]
    assert "of 25 tiles differ" in tiledblend("diff", "old.ome.zarr", "new.ome.zarr").out
    assert tiledblend("preview", "new.ome.zarr", "p.png", "--changed", "old.ome.zarr").code == 0
    again = tiledblend(
        "blend", *changed_job, "--opacity", "0.5", "-o", "new.ome.zarr", "--replace", "--reuse", "new.ome.zarr"
    )
    assert again.code == 0, again.err
    assert "reused" in again.out
    refused = tiledblend("blend", *changed_job, "-o", "x.ome.zarr", "--reuse", "nothing.ome.zarr")
    assert refused.code == 4
    assert "no result of tiledblend" in refused.error
    assert not (tmp_path / "x.ome.zarr").exists()


def test_files_that_were_copied_are_known_by_their_content(tmp_path: Path, tiledblend: Command) -> None:
    rng = np.random.default_rng(1)
    (tmp_path / "copied").mkdir()
    for name in ("base.tif", "over.tif"):
        tifffile.imwrite(tmp_path / name, rng.integers(0, 255, (*SHAPE, 3), np.uint8), photometric="rgb", tile=(64, 64))
    tifffile.imwrite(tmp_path / "mask.tif", disc(100, 100, 50))
    shared = ["--feather", "4px", "--chunk", "64", "--shard", "128", "--deep-fingerprint", "--json"]
    for folder, more in ((".", []), ("copied", ["--reuse", "1.ome.zarr"])):
        for name in ("base.tif", "over.tif", "mask.tif"):
            if folder != ".":
                shutil.copy(tmp_path / name, tmp_path / folder)
        base, over, mask = (f"{folder}/{name}.tif" for name in ("base", "over", "mask"))
        out = f"{1 + len(more)}.ome.zarr"
        done = tiledblend("blend", base, over, "--mask", mask, *shared, *more, "-o", out)
        assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["reused_tiles"] == report["tiles"]


def test_changed_is_drawn_and_outlined(tmp_path: Path, older: Path) -> None:
    from PIL import Image

    made(two(CHANGED), tmp_path / "new.zarr", OUTPUT)
    tb.preview(tmp_path / "new.zarr", tmp_path / "plain.png", scale_bar=False)
    tb.preview(tmp_path / "new.zarr", tmp_path / "changed.png", scale_bar=False, changed=older)
    plain, drawn = (np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int) for name in ("plain", "changed"))
    rows, columns = np.nonzero((plain != drawn).any(axis=2))
    regions = [change.region for change in compare(older, tmp_path / "new.zarr").changed]
    assert abs(rows.min() - min(at.y0 for at in regions)) < 8
    assert abs(columns.max() - max(at.x1 for at in regions)) < 8


def test_an_ome_tiff_is_made_anew(tmp_path: Path, older: Path, caplog: pytest.LogCaptureFixture) -> None:
    from tiledblend.run.driver import Share
    from tiledblend.run.ometiff import blend_ometiff

    planned = plan(two(CHANGED), OUTPUT, samples=0)
    for name in ("new", "fresh"):
        (tmp_path / name).mkdir()
    report, _ = blend_ometiff(planned, tmp_path / "new/x.ome.tif", share=Share(reuse=str(older)))
    blend_ometiff(planned, tmp_path / "fresh/x.ome.tif")
    assert report.reused_tiles == 0
    assert "only an OME-Z" in caplog.text
    assert (tmp_path / "new/x.ome.tif").read_bytes() == (tmp_path / "fresh/x.ome.tif").read_bytes()
