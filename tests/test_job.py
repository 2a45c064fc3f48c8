"""Job files: what they may say, how wrong ones are answered, and that a flag is a key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from conftest import ROOT, Command
from job_page import job_page
from jsonschema.exceptions import ValidationError

import tiledblend as tb
from tiledblend.cli.main import cli
from tiledblend.cli.mapping import job_mapping
from tiledblend.demo.tissue import Slides
from tiledblend.describe import job as jobs
from tiledblend.describe.layers import Labels
from tiledblend.describe.lengths import Feather
from tiledblend.describe.schema import schema
from tiledblend.errors import BadInputError, UsageError


def write_job(folder: Path, text: str, name: str = "job.yaml") -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def test_every_key_reaches_the_composite(slides: Slides, tmp_path: Path) -> None:
    folder = slides.base.parent
    path = write_job(
        folder,
        """
        canvas: {shape: [900, 900], pixel_size_um: [0.5, 0.5], channels: 3}
        mode: average
        icc: base
        background: [1, 2, 3]
        layers:
          - {image: he.ome.tif, offset: [-10, 5]}
          - image: {path: ihc.ome.tif, series: 0, level: 0, channels: [0, 1, 2], plane: {}}
            mask: {path: mask.tif}
            mask_values: {labels: [255]}
            mask_frame: canvas
            invert: true
            feather: {sigma: 8um}
            feather_side: inside
            opacity: 0.5
            fit: canvas
        output: {path: out.ome.zarr, chunk: 64, shard: 128, levels: 3, codec: "zstd:3", ome_zarr: 0.5, layout: planar}
        """,
    )
    mapping = jobs.load_job(path)
    job = jobs.build(mapping)
    assert job.path == str(folder / "out.ome.zarr")
    assert mapping["layers"][0]["image"] == str(folder / "he.ome.tif")
    assert mapping["layers"][1]["mask"]["path"] == str(folder / "mask.tif")
    bottom, top = job.composite.layers
    assert job.composite.shape == (900, 900)
    assert (job.composite.mode, job.composite.background) == ("average", (1, 2, 3))
    assert bottom.offset == (-10, 5)
    assert top.mask_values == Labels((255,))
    assert (top.mask_frame, top.invert, top.side, top.opacity, top.fit) == ("canvas", True, "inside", 0.5, "canvas")
    assert top.feather == Feather.um(8)
    output = job.output
    assert (output.chunk, output.shard, output.levels, output.codec) == (64, 128, 3, "zstd:3")
    assert json.loads(json.dumps(job.mapping)) == job.mapping


def test_defaults(slides: Slides) -> None:
    job = jobs.build({"layers": [{"image": str(slides.base)}]})
    layer = job.composite.layers[0]
    assert (layer.mask, layer.offset, layer.fit, layer.opacity) == (None, None, None, 1.0)
    assert job.composite.shape == (1000, 1000)
    assert (job.path, job.output.chunk, job.output.levels) == (None, 512, "auto")


def test_canvas_like_a_mask(slides: Slides) -> None:
    job = jobs.build(
        {
            "canvas": {"like": str(slides.mask)},
            "layers": [{"image": str(slides.base), "fit": "canvas"}],
        }
    )
    assert job.composite.shape == (63, 63)


def test_json_and_yaml_say_the_same(slides: Slides, tmp_path: Path) -> None:
    value = {"layers": [{"image": str(slides.base), "feather": "ksize:5"}], "mode": "over"}
    as_json = jobs.load_job(write_job(tmp_path, json.dumps(value, indent="\t"), "a.json"))
    as_yaml = jobs.load_job(write_job(tmp_path, f"mode: over\nlayers: [{{image: {slides.base}, feather: ksize:5}}]"))
    assert as_json == as_yaml == value


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("layers: [{image: a.tif, fether: 3}]", "unknown key 'fether' in layers[0]; did you mean 'feather'?"),
        ("layers: [{image: a.tif}]\ncanvass: 3", "unknown key 'canvass'; did you mean 'canvas'?"),
        (
            "layers: [{image: {path: a.tif, serie: 1}}]",
            "unknown key 'serie' in layers[0].image; did you mean 'series'?",
        ),
        ("layers: [{image: a.tif}]\noutput: {shards: 1}", "unknown key 'shards' in output; did you mean 'shard'?"),
        ("layers: [{mask: a.tif}]", "layers[0] has no 'image'"),
        ("mode: over", "the job has no 'layers'"),
        ("layers: []", "layers: "),
        ("layers: [{image: a.tif, opacity: 2}]", "layers[0].opacity: "),
        ("layers: [{image: a.tif, opacity: half}]", 'layers[0].opacity is "half"; it must be of type number'),
        ("layers: [{image: a.tif}]\nmode: add", 'mode is "add"; it must be one of over, average'),
        ("layers: [{image: a.tif, feather: [3]}]", "layers[0].feather [3] is not understood; give 0, 16px"),
        ("layers: [{image: a.tif, mask_values: [1]}]", "layers[0].mask_values: [1] is too short"),
        ("layers: [{image: a.tif}]\ncanvas: {shape: [5]}", "canvas.shape: [5] is too short"),
        ("layers: [{image: a.tif, image: b.tif}]", "key 'image' stands twice"),
        ('{"layers": [], "layers": []}', "key 'layers' stands twice"),
        ("layers: [a", "line 1, column 11: "),
        ("- a\n- b", "holds a list, not a mapping"),
        ("", "holds a NoneType, not a mapping"),
        ("layers: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: &a [*a]\nlayers: *a", "an alias refers to the mapping that it stands in"),
        ("[" * 5000, "nested too deeply"),
        ("layers: [{image: a.tif, feather: -3}]", "feather sigma -3.0 must be 0 or more"),
        ("layers: [{image: a.tif, feather: wide}]", "feather 'wide' is not understood"),
        (
            "layers: [{image: a.tif}]\noutput: {chunk: 500, shard: 1200}",
            "shard 1200 is not a power of two times chunk 500",
        ),
    ],
)
def test_wrong_jobs_are_answered_in_one_line(text: str, says: str, tmp_path: Path) -> None:
    path = write_job(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        jobs.build(jobs.load_job(path))
    message = str(caught.value)
    assert says in message
    assert "\n" not in message
    assert len(message) < 400


def test_alias_bomb_is_refused_quickly(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    with pytest.raises(UsageError, match="aliases expand to more than"):
        jobs.load_job(write_job(tmp_path, "\n".join(lines)))


def test_json_has_yamls_bound(tmp_path: Path) -> None:
    many = {"layers": [{"image": "a.tif", "wrong": index} for index in range(60_000)]}
    with pytest.raises(UsageError, match=r"a\.json: has more than 100,000 entries"):
        jobs.load_job(write_job(tmp_path, json.dumps(many), "a.json"))
    with pytest.raises(UsageError, match="has more than 100,000 entries"):
        jobs.build(many, where="a description")


def test_the_schema_stops_at_its_first_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = {"layers": [{"image": "a.tif", "wrong": index} for index in range(9_000)]}
    made = list[object]()
    init = ValidationError.__init__
    monkeypatch.setattr(ValidationError, "__init__", lambda self, *a, **k: (made.append(self), init(self, *a, **k))[1])
    with pytest.raises(UsageError, match=r"unknown key 'wrong' in layers\[0\]"):
        jobs.load_job(write_job(tmp_path, json.dumps(many), "a.json"))
    assert 0 < len(made) < 10


def test_too_large_missing_and_binary_files(tmp_path: Path) -> None:
    big = tmp_path / "big.yaml"
    big.write_bytes(b"#" * (jobs.MAX_BYTES + 1))
    with pytest.raises(UsageError, match="larger than 4 MB"):
        jobs.load_job(big)
    with pytest.raises(BadInputError, match="cannot be read: No such file"):
        jobs.load_job(tmp_path / "none.yaml")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00layers")
    with pytest.raises(UsageError, match="not UTF-8"):
        jobs.load_job(binary)


def flags_of(*arguments: str) -> dict[str, Any]:
    """The parsed flags of `blend`, as its function gets them."""
    context = cli.commands["blend"].make_context("blend", list(arguments))
    return context.params


def test_a_flag_is_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mapping = job_mapping(
        flags_of(
            *("b.tif", "o.tif", "--mask", "m.tif", "--mask-values", "labels:2,5", "--mask-frame", "canvas"),
            *("--invert-mask", "--grow", "-3um", "--feather", "8um", "--feather-side", "inside", "--opacity", "0.5"),
            *("--offset", "-3,4", "--mode", "average", "--canvas", "100,200", "--background", "1,2,3"),
            *(
                "--layer",
                "{image: top.tif, mask: alpha, affine: [[1, 0, 2.5], [0, 1, 0]]}",
                "-o",
                "out.ome.zarr",
                "--chunk",
                "64",
                "--shard",
                "128",
            ),
            *("--levels", "3", "--codec", "gzip", "--ome-zarr", "0.4", "--layout", "planar", "--level", "2"),
            *("--pixel-size-um", "0.5,0.25", "--operator", "multiply", "--icc", "base"),
            *("--match", "linear", "--match-ring", "64um"),
        )
    )
    path = write_job(
        tmp_path,
        """
        canvas: {shape: [100, 200]}
        mode: average
        icc: base
        background: [1, 2, 3]
        level: 2
        layers:
          - {image: b.tif, pixel_size_um: 0.5}
          - {image: o.tif, pixel_size_um: 0.25, mask: m.tif, mask_values: {labels: [2, 5]}, mask_frame: canvas,
             invert: true, grow: -3um, feather: 8um, feather_side: inside, opacity: 0.5, offset: [-3, 4],
             operator: multiply, match: {by: linear, ring: 64um}}
          - {image: top.tif, mask: alpha, affine: [[1, 0, 2.5], [0, 1, 0]]}
        output: {path: out.ome.zarr, chunk: 64, shard: 128, levels: 3, codec: gzip, ome_zarr: "0.4", layout: planar}
        """,
    )
    assert mapping == jobs.load_job(path)


def test_threshold_is_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mapping = job_mapping(flags_of("b.tif", "o.tif", "--mask", "m.tif", "--threshold", "0.5"))
    text = "layers: [{image: b.tif}, {image: o.tif, mask: m.tif, threshold: 0.5}]"
    assert mapping == jobs.load_job(write_job(tmp_path, text))


def test_affine_is_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.txt").write_text("1 0 2.5 0 1 -3e1")
    mapping = job_mapping(flags_of("b.tif", "o.tif", "--affine", "m.txt"))
    assert mapping == job_mapping(flags_of("b.tif", "o.tif", "--affine", "[[1, 0, 2.5], [0, 1, -30]]"))
    assert mapping == jobs.load_job(write_job(tmp_path, "layers: [{image: b.tif}, {image: o.tif, affine: m.txt}]"))


def test_output_flag_wins_over_the_jobs_path(slides: Slides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_job(tmp_path, f"layers: [{{image: {slides.base}}}]\noutput: {{path: a.ome.zarr, chunk: 64}}")
    mapping = job_mapping(flags_of("--job", str(path), "-o", "b.ome.zarr", "--shard", "256"))
    assert mapping["output"] == {"path": str(tmp_path / "b.ome.zarr"), "chunk": 64, "shard": 256}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--job", "j.yaml", "b.tif", "--feather", "3"], "leave out --feather, BASE"),
        (["--feather", "3", "--layer", "{image: a.tif}"], "--feather belongs to an image; give BASE"),
        (["b.tif", "--offset", "3"], "--offset '3' is not of the form Y,X"),
        (["b.tif", "--mask-values", "some"], "--mask-values 'some' is not understood"),
        (["b.tif", "--levels", "many"], "--levels 'many' must be auto, keep or a number"),
        (["b.tif", "--background", "red"], "--background 'red' is not of the form numbers"),
        (["b.tif", "--layer", "[1]"], "--layer 1: holds a list"),
        ([], "nothing to blend"),
    ],
)
def test_wrong_flags(arguments: list[str], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        job_mapping(flags_of(*arguments))
    assert says in str(caught.value)


def test_schema_is_a_schema_and_covers_the_layer_flags() -> None:
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(schema())
    layer = schema()["$defs"]["layer"]["properties"]
    weight = {"mask", "mask_values", "mask_frame", "invert", "grow", "feather", "feather_side", "opacity", "operator"}
    weight |= {"threshold", "match"}
    assert set(layer) == {"image", "color", "offset", "fit", "affine", "pixel_size_um"} | weight


def test_the_page_of_the_job_file_is_that_of_the_schema() -> None:
    """To make it anew: python tests/job_page.py >docs/job.md"""
    assert (ROOT / "docs" / "job.md").read_text("utf-8") == job_page()


def test_every_key_has_a_meaning_and_examples_that_are_allowed() -> None:
    from jsonschema import Draft202012Validator

    known = schema()
    layer, source = known["$defs"]["layer"]["properties"], known["$defs"]["source"]["oneOf"][1]["properties"]
    canvas = {k: v for form in known["properties"]["canvas"]["oneOf"] for k, v in form["properties"].items()}
    for keys in (known["properties"], layer, source, canvas, known["properties"]["output"]["properties"]):
        for key, value in keys.items():
            whole = known["$defs"][value["$ref"].rpartition("/")[2]] | value if "$ref" in value else value
            assert whole.get("description"), key
            for example in whole.get("examples", []):
                Draft202012Validator({**value, "$defs": known["$defs"]}).validate(example)
            assert whole.get("examples") or key == "output", key


def test_the_example_of_the_page_is_a_job(tmp_path: Path) -> None:
    jobs.load_job(write_job(tmp_path, job_page().partition("```yaml\n")[2].partition("```")[0]))


def test_the_schema_is_printed(command: Command) -> None:
    for words in (["--schema"], ["blend", "--schema"], ["plan", "--schema"]):
        assert json.loads(command(*words).out) == schema()


def test_series_and_channels_are_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base, over = "{path: b.tif, series: 1, channels: [2, 0]}", "{path: o.tif, series: 3, channels: [2, 0]}"
    text = f"layers: [{{image: {base}}}, {{image: {over}}}]"
    expected = jobs.load_job(write_job(tmp_path, text))
    assert job_mapping(flags_of("b.tif", "o.tif", "--series", "1,3", "--channels", "2,0")) == expected
    same = job_mapping(flags_of("b.tif", "o.tif", "--series", "1"))
    assert [layer["image"]["series"] for layer in same["layers"]] == [1, 1]
    with pytest.raises(UsageError, match="has 3 numbers for 2 images"):
        job_mapping(flags_of("b.tif", "o.tif", "--series", "1,2,3"))


def test_a_path_selects_a_series(tmp_path: Path, command: Command) -> None:
    path = tmp_path / "two.ome.tif"
    first, second = (np.full((40, 50, 3), value, np.uint8) for value in (10, 20))
    with tifffile.TiffWriter(path, ome=True) as writer:
        for pixels in (first, second):
            writer.write(pixels, photometric="rgb", metadata={"axes": "YXS"})
    for number, words in enumerate(
        (["two.ome.tif#1"], ["two.ome.tif", "--series", "1"], ["--layer", "{image: two.ome.tif#1}"])
    ):
        ran = command("blend", *words, "-o", f"{number}.tif")
        assert ran.code == 0, ran.err
        assert (tifffile.imread(tmp_path / f"{number}.tif") == 20).all()
    assert (tb.open(f"{path}#0").read(tb.Region(0, 0, 1, 1)) == 10).all()
    assert "series 1" in command("info", "two.ome.tif#1").out
    assert "has no series 7" in command("blend", "two.ome.tif#7", "-o", "x.tif").error
    path.rename(tmp_path / "a.tif#1")
    assert (tb.open(tmp_path / "a.tif#1").read(tb.Region(0, 0, 1, 1)) == 10).all()
    with pytest.raises(UsageError, match="says series 1, and series 2 is asked for"):
        tb.open("b.tif#1", series=2)
