"""The three classic mask blends, as the README's commands, held to the formula by plain numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import Command
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float64]


def picture(seed: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Smooth noise: JPEG keeps it."""
    noise = np.random.default_rng(seed).standard_normal(shape)
    return np.clip(128 + 900 * cv2.GaussianBlur(noise, (0, 0), 8), 0, 255).astype(np.uint8)


def save(path: Path, pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Write an image; returns what a decoder makes of it."""
    Image.fromarray(pixels).save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))
    return load(path)


def load(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image)


def mixed(weight: Floats, i1: NDArray[Any], i2: NDArray[Any]) -> Floats:
    """M * I1 + (1 - M) * I2."""
    return weight[:, :, None] * i1.astype(float) + (1 - weight[:, :, None]) * i2.astype(float)


def assert_within_one(result: NDArray[Any], expected: Floats) -> None:
    assert result.shape == expected.shape
    assert np.abs(result - expected).max() <= 1


@pytest.fixture
def mask(tmp_path: Path) -> NDArray[np.uint8]:
    y, x = np.mgrid[:240, :320]
    return save(tmp_path / "mask.png", np.where(np.hypot(y - 120, x - 150) < 80, 255, 0).astype(np.uint8))


def test_binary_mask_and_images_resized_to_its_size(command: Command, tmp_path: Path, mask: NDArray[np.uint8]) -> None:
    i1 = save(tmp_path / "i1.jpg", picture(1, (500, 640, 3)))  # area average down
    i2 = save(tmp_path / "i2.jpg", picture(2, (120, 160, 3)))  # bilinear up
    flags = ("--mask", "mask.png", "--canvas", "mask.png", "--fit", "canvas", "-o", "blended.png")
    assert command("blend", "i2.jpg", "i1.jpg", *flags).code == 0
    small = cv2.resize(i1.astype(np.float64), (320, 240), interpolation=cv2.INTER_AREA)
    large = cv2.resize(i2.astype(np.float64), (320, 240), interpolation=cv2.INTER_LINEAR)
    assert_within_one(load(tmp_path / "blended.png"), mixed(mask / 255.0, small, large))


def test_greyscale_mask_smoothed_by_a_5x5_gaussian(command: Command, tmp_path: Path, mask: NDArray[np.uint8]) -> None:
    grey = save(tmp_path / "grey.png", np.clip(mask * 0.4 + picture(3, (240, 320)) * 0.6, 0, 255).astype(np.uint8))
    i1, i2 = (save(tmp_path / f"i{n}.jpg", picture(n, (240, 320, 3))) for n in (1, 2))
    ran = command("blend", "i2.jpg", "i1.jpg", "--mask", "grey.png", "--feather", "ksize:5", "-o", "blended.png")
    assert ran.code == 0, ran.err
    weight = cv2.GaussianBlur(grey / 255.0, (5, 5), 0, borderType=cv2.BORDER_REFLECT)
    assert_within_one(load(tmp_path / "blended.png"), mixed(weight, i1, i2))


def test_alpha_of_an_rgba_image_over_a_second(command: Command, tmp_path: Path) -> None:
    rgba = save(tmp_path / "i1.png", picture(4, (240, 320, 4)))
    i2 = save(tmp_path / "i2.jpg", picture(2, (240, 320, 3)))
    assert command("blend", "i2.jpg", "i1.png", "-o", "blended.jpg").code == 0
    assert command("blend", "i2.jpg", "i1.png", "-o", "blended.png").code == 0
    expected = mixed(rgba[:, :, 3] / 255.0, rgba[:, :, :3], i2)
    assert_within_one(load(tmp_path / "blended.png"), expected)
    assert np.abs(load(tmp_path / "blended.jpg") - expected).mean() < 2


def test_weighted_merge_of_three_masked_images(command: Command, tmp_path: Path) -> None:
    images = [save(tmp_path / f"i{n}.jpg", picture(n, (240, 320, 3))) for n in (1, 2, 3)]
    masks = [save(tmp_path / f"m{n}.png", picture(10 + n, (240, 320))) for n in (1, 2, 3)]
    opacities = (1.0, 0.5, 0.25)
    layers: list[str] = []
    for number, opacity in zip((1, 2, 3), opacities, strict=True):
        layers += ["--layer", f"{{image: i{number}.jpg, mask: m{number}.png, opacity: {opacity}}}"]
    ran = command("blend", *layers, "--mode", "average", "-o", "blended.png")
    assert ran.code == 0, ran.err
    weights = [opacity * mask / 255.0 for opacity, mask in zip(opacities, masks, strict=True)]
    total = sum(weights)
    summed = sum(weight[:, :, None] * image for weight, image in zip(weights, images, strict=True))
    expected = np.where(total[:, :, None] > 0, summed / np.maximum(total, 1e-12)[:, :, None], 0)
    seen = total > 0.01
    assert seen.mean() > 0.9
    assert np.abs(load(tmp_path / "blended.png") - expected)[seen].max() <= 1


def test_several_images_over_each_other(command: Command, tmp_path: Path, mask: NDArray[np.uint8]) -> None:
    images = [save(tmp_path / f"i{n}.jpg", picture(n, (240, 320, 3))) for n in range(4)]
    top = [f"{{image: i{n}.jpg, mask: mask.png, opacity: 0.{n}}}" for n in (2, 3)]
    flags = ("--mask", "mask.png", "--layer", top[0], "--layer", top[1])
    assert command("blend", "i0.jpg", "i1.jpg", *flags, "-o", "blended.png").code == 0
    expected: Floats = images[0].astype(float)
    for opacity, image in zip((1.0, 0.2, 0.3), images[1:], strict=True):
        expected = mixed(opacity * mask / 255.0, image, expected)
    assert_within_one(load(tmp_path / "blended.png"), expected)
