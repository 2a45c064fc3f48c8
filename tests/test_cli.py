"""The command itself, as a user runs it: verbs, exit codes, one-line errors, nothing written on bad input."""

from __future__ import annotations

import errno
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
import zarr
from conftest import ROOT, Command, Ran
from PIL import Image

from tiledblend.bytes.objects import DirectoryStore, storage_error
from tiledblend.cli.main import VERBS
from tiledblend.cli.sections import SECTIONS
from tiledblend.demo.tissue import Slides
from tiledblend.look.lines import _bar
from tiledblend.run.report import ProgressEvent
from tiledblend.sources import open_source
from tiledblend.sources.base import Alpha


def write_png(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def left_over(folder: Path, before: set[Path]) -> set[str]:
    return {path.name for path in set(folder.iterdir()) - before}


# --- the main job


def test_blend_writes_a_pyramid_that_zarr_opens(slides: Slides, tiledblend: Command, tmp_path: Path) -> None:
    out = tmp_path / "out.ome.zarr"
    flags = ("--mask", slides.mask, "--feather", "8um", "--chunk", 128, "--shard", 512)
    ran = tiledblend("blend", slides.base, slides.overlay, *flags, "-o", out, "--json")
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    assert (report["uri"], report["shape"], report["pixels"]) == (str(out), [1000, 1000], 1_000_000)
    assert sum(report["chunks"].values()) == 64
    assert report["chunks"]["blended"] > 0
    group = zarr.open_group(str(out), mode="r")
    assert group["0"].shape == (3, 1000, 1000)
    base, overlay = tifffile.imread(slides.base), tifffile.imread(slides.overlay)
    inside = np.kron(tifffile.imread(slides.mask) > 0, np.ones((16, 16), bool))[:1000, :1000]
    pixels = np.moveaxis(np.asarray(group["0"]), 0, 2)
    assert np.array_equal(pixels[:32, :32], base[:32, :32])  # a corner without mask comes through bit for bit
    deep = cv2.erode(inside.astype(np.uint8), np.ones((160, 160), np.uint8), borderValue=0) > 0
    assert deep.any()
    assert np.array_equal(pixels[deep], overlay[deep])

    again = tiledblend("blend", slides.base, slides.overlay, *flags, "-o", out)
    assert again.code == 3
    assert "exists" in again.error

    checked = tiledblend("verify", out, "--json")
    assert (checked.code, json.loads(checked.out)["ok"]) == (0, True)
    again = tiledblend("verify", out, "--against-inputs", "all")
    assert again.code == 0, again.err
    assert "rendered again are the same" in again.out
    drawn = tiledblend("preview", out, "p.png", "--max-size", 200)
    assert drawn.code == 0
    assert np.asarray(Image.open(tmp_path / "p.png")).shape == (200, 200, 3)

    shard = next(path for path in (out / "0" / "c").rglob("*") if path.is_file())
    shard.write_bytes(shard.read_bytes()[:-1])
    broken = tiledblend("verify", out)
    assert broken.code == 7
    assert "torn" in broken.error


def test_job_file_gives_the_same_pixels_as_flags(slides: Slides, tiledblend: Command, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(
        f"layers:\n - image: {slides.base}\n - {{image: {slides.overlay}, mask: {slides.mask}, feather: 5px}}\n"
        "output: {path: from_job.ome.zarr, chunk: 128, shard: 256}\n"
    )
    assert tiledblend("blend", "--job", job).code == 0
    flags = ("--mask", slides.mask, "--feather", "5px", "--chunk", 256, "--shard", 512, "--workers", 2)
    assert tiledblend("blend", slides.base, slides.overlay, *flags, "-o", "from_flags.ome.zarr").code == 0
    one, other = (zarr.open_group(str(tmp_path / f"from_{name}.ome.zarr"), mode="r")["0"] for name in ("job", "flags"))
    assert np.array_equal(np.asarray(one), np.asarray(other))


def test_parts_then_finish(slides: Slides, command: Command, tmp_path: Path) -> None:
    flags = (slides.base, "-o", "out.ome.zarr", "--chunk", 128, "--shard", 256)
    part = command("blend", *flags, "--part", "1/2").out
    assert "not complete yet" in part
    assert re.search(r"stored   \S+ [kM]B so far; it will be \d+ objects", part)
    early = command("blend", *flags, "--finish")
    assert early.code == 3
    assert "run their parts first" in early.error
    assert command("blend", *flags, "--part", "2/2").code == 0
    assert not (tmp_path / "out.ome.zarr" / "zarr.json").exists()
    assert command("blend", *flags, "--finish").code == 0
    pixels = np.asarray(zarr.open_group(str(tmp_path / "out.ome.zarr"), mode="r")["0"])
    assert np.array_equal(np.moveaxis(pixels, 0, 2), tifffile.imread(slides.base))


def test_plan_says_what_would_happen_and_writes_nothing(slides: Slides, command: Command, tmp_path: Path) -> None:
    flags = (slides.base, slides.overlay, "--mask", slides.mask, "--chunk", 128, "--shard", 256)
    facts = json.loads(command("plan", *flags, "--json", "--exact").out)
    assert (facts["shape"], facts["exact"]) == ([1000, 1000], True)
    assert sum(facts["classes"].values()) == pytest.approx(1)
    text = command("plan", *flags).out
    assert "1,000 x 1,000 px" in text
    assert "memory" in text
    assert list(tmp_path.iterdir()) == []


def test_plan_does_not_wait_for_an_output_that_does_not_answer(
    slides: Slides, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_: object) -> None:
        time.sleep(20)

    monkeypatch.setattr("tiledblend.containers.output.refuse_taken", silent)
    monkeypatch.setattr("tiledblend.bytes.waiting.ANSWER_SECONDS", 0.5)
    planned = command("plan", slides.base, "-o", "s3://bucket/out.ome.zarr", "--json")
    assert (planned.code, json.loads(planned.out)["refused"]) == (0, "s3://bucket/out.ome.zarr: no answer in 0.5 s")


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_at_the_interpreters_end_changes_nothing(number: str) -> None:
    program = f"""
        import os, signal, sys
        from tiledblend.cli.main import main

        class Late:
            def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.{number}):
                kill(pid, number)

        # The interpreter clears `sys` last.
        sys.late, sys.argv = Late(), ["tiledblend", "--version"]
        main()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")


def test_plan_says_what_blend_would_refuse(slides: Slides, command: Command, tmp_path: Path) -> None:
    flags = (slides.base, "--chunk", 128, "--shard", 512)

    def refused(*more: object) -> str | None:
        ran, text = command("plan", *flags, *more, "--json"), command("plan", *flags, *more)
        assert (ran.code, text.code) == (0, 0), ran.err
        found: str | None = json.loads(ran.out)["refused"]
        assert text.out.rpartition("\n")[0].rpartition("\n")[2].startswith("refused  ") == (found is not None)
        done = command("blend", *flags, *more, *(() if "-o" in more else ("-o", tmp_path / "new.ome.zarr")))
        assert found is None or (done.code in (3, 5, 6) and done.error == f"tiledblend: error: {found}"), done.err
        return found

    out, part = tmp_path / "out.ome.zarr", tmp_path / "part.ome.zarr"
    assert refused("-o", out) is None
    assert "output exists" in str(refused("-o", out))
    assert command("blend", *flags, "-o", part, "--part", "1/2").code == 0
    assert "an unfinished run is there" in str(refused("-o", part))
    assert "lies inside the input" in str(refused("-o", slides.base / "out.ome.zarr"))
    (tmp_path / "own.ome.zarr.manifest").write_text("mine")
    assert "is no manifest of tiledblend" in str(refused("-o", tmp_path / "own.ome.zarr"))
    (tmp_path / "out.ome.tif").touch()
    assert "exists" in str(refused("-o", tmp_path / "out.ome.tif"))
    (tmp_path / "out.png").touch()
    assert "exists" in str(refused("-o", tmp_path / "out.png"))
    assert "but is allowed 100 MB" in str(refused("--memory-limit", "100MB"))
    assert "but is allowed 150 MB" in str(refused("--workers", 1, "--memory-limit", "150MB"))
    assert command("plan", *flags, "-o", "s3://bucket").code == 2


# --- small results as one image file


@pytest.mark.parametrize("ending", ["png", "tif", "jpg"])
def test_small_results_as_one_image(ending: str, slides: Slides, command: Command, tmp_path: Path) -> None:
    out = tmp_path / f"out.{ending}"
    ran = command("blend", slides.base, slides.overlay, "--mask", slides.mask, "-o", out, "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["bytes_written"] == out.stat().st_size
    pixels = tifffile.imread(out) if ending == "tif" else np.asarray(Image.open(out))
    base, overlay = tifffile.imread(slides.base), tifffile.imread(slides.overlay)
    inside = np.kron(tifffile.imread(slides.mask) > 0, np.ones((16, 16), bool))[:1000, :1000]
    expected = np.where(inside[:, :, None], overlay, base)
    assert np.abs(pixels.astype(int) - expected).mean() <= (2 if ending == "jpg" else 0)
    if ending == "tif":
        with tifffile.TiffFile(out) as tiff:
            assert tiff.pages[0].tags["XResolution"].value == (20000, 1)
    assert {path.name for path in tmp_path.iterdir()} == {out.name}
    assert command("blend", slides.base, "-o", out).code == 3


@pytest.mark.parametrize("offset", ["1.5,2", "2,-.5", "3.,1"])
def test_a_bare_fraction_of_a_pixel_is_no_offset(command: Command, slides: Slides, offset: str) -> None:
    ran = command("plan", slides.base, slides.overlay, f"--offset={offset}")
    assert ran.code == 2
    assert "whole pixels or lengths" in ran.error
    assert command("plan", slides.base, slides.overlay, "--offset=1.5px,2").code == 0


def test_formats_that_cannot_hold_the_result(command: Command, tmp_path: Path) -> None:
    deep = tmp_path / "deep.tif"
    tifffile.imwrite(deep, np.zeros((8, 8), np.float32))
    assert "PNG holds" in command("blend", deep, "-o", "o.png").error
    assert "JPEG holds" in command("blend", deep, "-o", "o.jpg").error
    for verb, name in (("blend", "o.svs"), ("plan", "o.svs"), ("blend", "o.jp2"), ("blend", "o.ome.zarr.zip")):
        ran = command(verb, deep, "-o", name)
        assert (ran.code, "cannot be written in this format" in ran.error) == (2, True)
    unset = command("blend", deep, "-o", "")  # an empty variable of a script, not the folder that it runs in
    assert (unset.code, "no output" in unset.error) == (2, True)
    assert command("blend", deep, "-o", "o.tif").code == 0
    assert tifffile.imread(tmp_path / "o.tif").dtype == np.float32


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize(("colours", "has_alpha"), [(1, True), (2, False), (3, True), (4, False)])
def test_only_alpha_is_written_as_alpha(
    command: Command, tmp_path: Path, dtype: type, colours: int, has_alpha: bool
) -> None:
    pixels = np.random.default_rng(0).integers(0, 2, (16, 16, colours + has_alpha)).astype(dtype)
    extra = [0] * (colours - 1 - 2 * has_alpha * (colours == 3)) + [2] * has_alpha
    kind = "rgb" if has_alpha and colours == 3 else "minisblack"
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric=kind, planarconfig="contig", extrasamples=extra)
    assert command("blend", "a.tif", "-o", "o.tif").code == 0
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "o.tif"), pixels)
    written = open_source(str(tmp_path / "o.tif"))
    assert (written.channels, written.alpha is Alpha.STRAIGHT) == (colours + has_alpha, has_alpha)
    ran = command("blend", "a.tif", "-o", "o.png")
    if has_alpha and dtype is not np.float32:
        assert ran.code == 0
        np.testing.assert_array_equal(imagecodecs.png_decode((tmp_path / "o.png").read_bytes()), pixels)
    else:
        assert (ran.code, "PNG holds" in ran.error, (tmp_path / "o.png").exists()) == (2, True, False)


# --- bad input: one line, the right code, nothing written


Case = Callable[[Path, Slides], list[object]]

BAD_INPUT: dict[str, tuple[int, str, Case]] = {
    "missing file": (4, "no such file", lambda d, s: ["none.tif"]),
    "missing mask": (4, "no such file", lambda d, s: [s.base, s.overlay, "--mask", "none.tif"]),
    "not an image": (4, "not an image", lambda d, s: [text_file(d)]),
    "a directory": (4, "without zarr metadata", lambda d, s: [d]),
    "sizes": (4, "1000 x 1000", lambda d, s: [s.base, small(d, (30, 40, 3))]),
    "channels": (4, "colour channels", lambda d, s: [s.base, small(d, (1000, 1000))]),
    "dtypes": (4, "uint16", lambda d, s: [s.base, small(d, (1000, 1000, 3), np.uint16)]),
    "unsupported dtype": (4, "int32", lambda d, s: [small(d, (16, 16), np.int32)]),
    "mask of another aspect": (4, "63 x 20", lambda d, s: [s.base, s.overlay, "--mask", small(d, (63, 20))]),
    "NaN mask": (4, "region", lambda d, s: [s.base, s.overlay, "--mask", nan_mask(d)]),
    "12-bit mask in 16 bits": (4, "--mask-values", lambda d, s: [s.base, s.overlay, "--mask", twelve_bit(d)]),
    "alpha that is not there": (4, "no alpha", lambda d, s: [s.base, s.overlay, "--mask", "alpha"]),
    "negative sigma": (2, "sigma", lambda d, s: [s.base, "--feather", "-3px"]),
    "even kernel": (2, "ksize", lambda d, s: [s.base, "--feather", "ksize:4"]),
    "opacity": (2, "opacity", lambda d, s: [s.base, "--opacity", "1.5"]),
    "chunk and shard": (2, "--shard 1000", lambda d, s: [s.base, "--chunk", "500", "--shard", "1200"]),
    "codec": (2, "codec", lambda d, s: [s.base, "--codec", "zip"]),
    "unknown flag": (2, "--fether", lambda d, s: [s.base, "--fether", "3"]),
    "not a number": (2, "--chunk", lambda d, s: [s.base, "--chunk", "big"]),
    "unknown layer key": (2, "'fether'", lambda d, s: ["--layer", f"{{image: {s.base}, fether: 3}}"]),
    "unknown job key": (2, "'layer'", lambda d, s: ["--job", job_file(d, "layer: []")]),
    "missing job": (4, "cannot be read", lambda d, s: ["--job", "none.yaml"]),
    "part": (2, "--part", lambda d, s: [s.base, "--part", "3/2"]),
    "part of odd digits": (2, "is not of the form I/N", lambda d, s: [s.base, "--part", "²/3"]),
    "canvas of odd digits": (4, "²,3", lambda d, s: [s.base, "--canvas", "²,3"]),
    "TLS by halves": (2, "--tls-cert", lambda d, s: [s.base, "--tls-ca-file", "ca.pem"]),
    "nothing": (2, "nothing to blend", lambda d, s: []),
    "umlaut and blanks": (4, "ä b\u00a0c.tif: no such file", lambda d, s: ["ä b\u00a0c.tif"]),
}


def text_file(folder: Path) -> Path:
    path = folder / "text.tif"
    path.write_text("not\nan\nimage\n" * 10)
    return path


def small(folder: Path, shape: tuple[int, ...], dtype: type = np.uint8) -> Path:
    path = folder / "small.tif"
    tifffile.imwrite(path, np.full(shape, 255, dtype), photometric="rgb" if shape[-1] == 3 else "minisblack")
    return path


def nan_mask(folder: Path) -> Path:
    mask = np.ones((1000, 1000), np.float32)
    mask[700, 300] = np.nan
    path = folder / "nan.tif"
    tifffile.imwrite(path, mask, tile=(256, 256))
    return path


def twelve_bit(folder: Path) -> Path:
    mask = np.zeros((1000, 1000), np.uint16)
    mask[200:300] = 4095
    path = folder / "twelve.tif"
    tifffile.imwrite(path, mask)
    return path


def job_file(folder: Path, text: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input(case: str, slides: Slides, tiledblend: Command, command: Command, tmp_path: Path) -> None:
    code, says, make = BAD_INPUT[case]
    arguments = make(tmp_path, slides)
    before = set(tmp_path.iterdir())
    # what only shows in a tile's task needs the cluster, in a process of its own
    run = tiledblend if case == "NaN mask" else command
    ran = run("blend", *arguments, "-o", "out.ome.zarr")
    assert (ran.code, says in ran.error) == (code, True), ran.err
    assert ran.out == ""
    assert "Traceback" not in ran.err
    if case != "NaN mask":  # met while tiles are made: what is done can be resumed or cleaned, and is no result
        assert left_over(tmp_path, before) == set()
    assert not (tmp_path / "out.ome.zarr" / "zarr.json").exists()


def test_unreadable_slides(shared_data: Path, tiledblend: Command, tmp_path: Path) -> None:
    damaged = tiledblend("blend", shared_data / "unreadable.svs", "-o", "a.ome.zarr")
    assert damaged.code == 4
    assert re.search(r"unreadable\.svs: level 0, region \[.*cannot be decoded", damaged.error)
    assert not (tmp_path / "a.ome.zarr" / "zarr.json").exists()
    refused = tiledblend("blend", shared_data / "unopenable.tiff", "-o", "b.ome.zarr")
    assert refused.code == 4
    assert "compression 52479" in refused.error
    assert not (tmp_path / "b.ome.zarr").exists()


def test_outputs_that_are_refused(slides: Slides, command: Command, tmp_path: Path) -> None:
    source = zarr.open_group(str(tmp_path / "in.zarr"), mode="w", zarr_format=3)
    source.create_array("0", data=np.zeros((64, 64), np.uint8), chunks=(32, 32))
    inside = command("blend", tmp_path / "in.zarr" / "0", "-o", tmp_path / "in.zarr" / "0" / "out.ome.zarr")
    assert inside.code == 3
    assert "lies inside" in inside.error
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    taken = command("blend", slides.base, "-o", tmp_path / "mine", "--replace")
    assert taken.code == 3
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"
    assert command("blend", slides.base, "-o", slides.mask).code == 3
    assert command("blend", slides.base).code == 2
    assert command("blend", slides.base, "-o", "none/out.png").code == 5


# --- the command's manners


def test_info(slides: Slides, command: Command) -> None:
    text = command("info", slides.base, slides.mask)
    assert text.code == 0
    assert "OME-TIFF" in text.out
    assert "0.5 x 0.5 µm" in text.out
    ran = command("info", slides.base, "none.tif", "--json")
    assert ran.code == 4
    assert "none.tif" in ran.error
    (image,) = json.loads(ran.out)["images"]
    assert (image["shape"], image["channels"], image["pixel_size_um"]) == ([1000, 1000], 3, [0.5, 0.5])


def test_help_names_every_verb_and_is_quick(tiledblend: Command) -> None:
    started = time.perf_counter()
    ran = tiledblend("--help")
    assert time.perf_counter() - started < 2  # 0.1 s on an idle machine; far below what any library would add
    for verb in ("demo", "info", "plan", "blend", "preview", "verify", "clean"):
        assert f"\n  {verb} " in ran.out
        assert tiledblend(verb, "--help").code == 0


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_in_sections(verb: str, command: Command) -> None:
    """In one order, every option under one of them; -h itself is the last."""
    ran = command(verb, "-h")
    assert ran.code == 0
    sections = re.findall(r"^(\w[\w ]*):$", ran.out, re.MULTILINE)
    assert sections == [name for name in SECTIONS if name in sections]
    assert sections[-1] == "Reporting"
    if verb in ("blend", "plan"):
        assert sections[-7:] == ["What", "Mask and edge", "Place", "Output", "Running", "Cluster", "Reporting"]
    assert ran.out.splitlines()[-1].lstrip().startswith("-h, --help")
    listed = re.findall(r"^  \S", ran.out[ran.out.index(f"\n{sections[0]}:\n") :], re.MULTILINE)
    assert set(listed) == {"  -"}  # options only, no argument


def test_version_usage_and_unknown_verbs(command: Command) -> None:
    assert re.fullmatch(r"tiledblend \d+\.\d+\.\d+\n", command("--version").out)
    assert command("nothing").code == 2
    assert "No such command" in command("nothing").error
    assert command("preview", "a").code == 2
    assert "nothing to draw" in command("preview", "a").error


def test_debug_shows_where(command: Command) -> None:
    ran = command("info", "x", "--debug")
    assert ran.code == 4
    traced = command("preview", "none.tif", "p.png", "--debug")
    assert traced.code == 4
    assert "Traceback" in traced.err


def test_unexpected_errors_are_one_line(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("some\nthing")

    monkeypatch.setattr(importlib.import_module("tiledblend.look.preview"), "preview", fail)
    ran = command("preview", "a.tif", "b.png")
    assert ran.code == 1
    assert ran.error == "tiledblend: error: unexpected ValueError: some thing; run again with --debug to see where"


@pytest.mark.parametrize("verb", ["blend", "preview"])
def test_resume_is_advised_only_where_there_is_one(
    verb: str, command: Command, slides: Slides, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise storage_error(OSError(errno.ENOSPC, "No space left on device"), "create", "small.png")

    monkeypatch.setattr(DirectoryStore, "put_new", full)
    ran = command(verb, slides.base, *(["-o"] if verb == "blend" else []), "small.png")
    assert ran.code == 5
    assert ran.error == "tiledblend: error: cannot create small.png: no space left; free some, then run again"
    ran = command("blend", slides.base, "-o", "large.ome.zarr", "--shard", 512)
    assert ran.error.endswith("no space left; free some, then run again with --resume")
    assert "--part" not in command("demo", "--help").out + command("export", "--help").out


def test_a_small_image_does_not_ignore_a_cluster(command: Command, slides: Slides) -> None:
    ran = command("blend", slides.base, "-o", "small.png", "--scheduler", "tcp://127.0.0.1:9")
    assert ran.code == 2
    assert ran.error.endswith("small.png: one image is made in this process, on no cluster; leave out --scheduler")


def test_a_reader_that_leaves_early_is_no_error(slides: Slides) -> None:
    line = f"'{sys.executable}' -m tiledblend info {'{} ' * 40}| head -n 1".format(*[slides.base] * 40)
    done = subprocess.run(line, shell=True, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert "Traceback" not in done.stderr
    assert "error" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_runs_say_how_to_go_on(number: signal.Signals, slides: Slides, tmp_path: Path) -> None:
    big = tmp_path / "big.tif"
    tifffile.imwrite(big, np.random.default_rng(0).integers(0, 256, (6000, 6000), np.uint8), tile=(256, 256))
    command = [sys.executable, "-m", "tiledblend", "blend", str(big), "-o", "out.ome.zarr", "--codec", "zstd:19"]
    command += ["--chunk", "128", "--shard", "256"]
    run = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "out.ome.zarr" / "0").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    run.send_signal(number)
    out, err = run.communicate(timeout=60)
    done = Ran(run.returncode, out, err)
    assert done.code == 75, err
    assert "--resume" in done.error
    assert "Traceback" not in err
    assert not (tmp_path / "out.ome.zarr" / "zarr.json").exists()


def test_tiles_never_written_are_refused_unless_allowed(tiledblend: Command, tmp_path: Path) -> None:
    slide = tmp_path / "sparse.tif"
    tifffile.imwrite(slide, np.full((64, 64, 3), 200, np.uint8), tile=(32, 32), photometric="rgb")
    with tifffile.TiffFile(slide, mode="r+b") as file:
        for name in ("TileByteCounts", "TileOffsets"):
            tag = file.pages.first.tags[name]
            tag.overwrite([0, *tag.value[1:]])
    arguments = ["blend", slide, "-o", "out.ome.zarr", "--chunk", "32", "--shard", "64"]
    refused = tiledblend(*arguments)
    assert refused.code == 4
    assert "--allow-sparse" in refused.error
    assert not (tmp_path / "out.ome.zarr").exists()
    assert tiledblend(*arguments, "--allow-sparse").code == 0
    stored = zarr.open_group(tmp_path / "out.ome.zarr", mode="r")["0"][:]
    assert (stored[:, :32, :32] == 0).all()
    assert (stored[:, 32:] == 200).all()


def test_a_bare_call_shows_the_help(tiledblend: Command) -> None:
    bare = tiledblend()
    assert bare.code == 0
    assert "Commands:" in bare.out


def test_a_narrow_terminal_still_shows_the_share(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"COLUMNS": "40", "FORCE_COLOR": "1", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    with _bar("blending") as update:
        update(ProgressEvent(1, 4, 250_000_000, 1_000_000_000, 8.0))
        update(ProgressEvent(2, 4, 500_000_000, 1_000_000_000, 16.0))
    assert "50%" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)


@pytest.mark.parametrize("out", ["out.svs", "out.NDPI", "out.qptiff", "out.czi", "out.webp", "out.btf", "out.geojson"])
def test_endings_that_cannot_be_written_name_those_that_can(command: Command, tmp_path: Path, out: str) -> None:
    tifffile.imwrite(tmp_path / "base.tif", np.zeros((64, 64, 3), np.uint8), photometric="rgb")
    for verb in ("plan", "blend"):
        ran = command(verb, "base.tif", "-o", out)
        assert (ran.code, "use .ome.tif (QuPath" in ran.error, ".ome.zarr" in ran.error) == (2, True, True)
    assert not (tmp_path / out).exists()


def test_a_large_single_image_is_told_to_have_no_pyramid(command: Command, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "base.tif", np.zeros((40, 4200, 3), np.uint8), photometric="rgb")
    said = "has one level and no pyramid, so viewers load it as a whole; out.ome.tif has one"
    assert said in command("plan", "base.tif", "-o", "out.tif").out
    assert said in command("blend", "base.tif", "-o", "out.tif").err
    tifffile.imwrite(tmp_path / "small.tif", np.zeros((40, 4096, 3), np.uint8), photometric="rgb")
    assert "pyramid" not in command("blend", "small.tif", "-o", "b.tif").err


@pytest.mark.parametrize(("verb", "advises"), [("blend", True), ("view", False), ("seams", False), ("plan", False)])
def test_only_what_can_be_resumed_advises_it_when_interrupted(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, advises: bool
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tiledblend.describe.job.build", stop)
    ran = command(verb, "base.tif", "over.tif", *(("-o", "out.ome.zarr") if verb == "blend" else ()))
    assert (ran.code, "--resume" in ran.error) == (75, advises)
