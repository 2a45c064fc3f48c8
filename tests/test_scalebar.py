"""Scale bars: round lengths that fit, drawn as long as they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import Command
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tiledblend.look.preview import preview
from tiledblend.look.scalebar import MIN_HEIGHT, MIN_WIDTH, SHARE, fitting_bar, with_scale_bar
from tiledblend.sources.arrays import from_array


@given(st.floats(1e-4, 1e4), st.integers(MIN_WIDTH, 8192))
def test_a_bar_is_round_and_the_longest_that_fits(pixel_um: float, width: int) -> None:
    bar = fitting_bar(pixel_um, width)
    assert bar is not None
    assert bar.length_px == pytest.approx(bar.length_um / pixel_um)
    assert f"{bar.length_um:.6e}"[1:8] == ".000000"
    assert f"{bar.length_um:.6e}"[0] in "125"
    assert bar.length_px <= width * SHARE * (1 + 1e-6)
    assert bar.length_px * 2.5 > width * SHARE * (1 - 1e-6)


@pytest.mark.parametrize(
    ("pixel_um", "label"),
    [(0.25, "50 µm"), (0.001, "200 nm"), (25.0, "5 mm"), (3.3333333333, "500 µm"), (0.3, "50 µm")],
)
def test_labels(pixel_um: float, label: str) -> None:
    bar = fitting_bar(pixel_um, 1024)
    assert bar is not None
    assert bar.label == label


def test_narrow_pictures_have_none() -> None:
    assert fitting_bar(0.5, MIN_WIDTH - 1) is None


@pytest.mark.parametrize("width", [MIN_WIDTH, 300, 4000])
def test_a_flat_picture_has_a_whole_one_or_none(width: int, tmp_path: Path) -> None:
    for height in (MIN_HEIGHT - 1, MIN_HEIGHT, 60, 90):
        flat = from_array(np.full((height, width, 3), 200, np.uint8), axes="yxc", pixel_size_um=(0.5, 0.4))
        done = preview(flat, tmp_path / f"{height}.png", width)
        touched = (np.asarray(Image.open(tmp_path / f"{height}.png")) != 200).any(2)
        assert (done["scale_bar_um"] is not None) == touched.any() == (height >= MIN_HEIGHT)
        assert not touched[0].any()
        assert not touched[:, -1].any()


@pytest.mark.parametrize("ground", [0, 255])
def test_the_drawn_bar_is_as_long_as_it_says(ground: int) -> None:
    picture = np.full((300, 800, 3), ground, np.uint8)
    bar = fitting_bar(0.5, 800)
    assert bar is not None
    drawn = with_scale_bar(picture, bar)
    assert drawn.shape == picture.shape
    assert (drawn[:150] == ground).all()  # only the corner is touched
    rows = (drawn == 255).all(2)[150:, : round(bar.length_px) + 40]
    runs = [len(max("".join("#" if v else " " for v in row).split(), key=len, default="")) for row in rows]
    bars = [run for run in runs if run < rows.shape[1] and run > 100]
    assert set(bars) == {round(bar.length_px)}


def test_preview_draws_it_where_the_pixel_size_is_known(tmp_path: Path, command: Command) -> None:
    pixels = np.full((400, 600, 3), 200, np.uint8)
    known = from_array(pixels, axes="yxc", pixel_size_um=(0.5, 0.25))
    done = preview(known, tmp_path / "a.png", 300)  # 0.5 um a picture pixel across
    assert done["scale_bar_um"] == 20
    assert (np.asarray(Image.open(tmp_path / "a.png")) != 200).any()
    assert preview(known, tmp_path / "b.png", 300, scale_bar=False)["scale_bar_um"] is None
    assert (np.asarray(Image.open(tmp_path / "b.png")) == 200).all()
    assert preview(from_array(pixels, axes="yxc"), tmp_path / "c.png", 300)["scale_bar_um"] is None
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    ran = command("preview", "plain.png", "d.png", "--json")
    assert ran.code == 0
    assert '"scale_bar_um": null' in ran.out
