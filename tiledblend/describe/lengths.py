"""Lengths on the canvas, in pixels or micrometres, and the feather that is one; numbers as descriptions take them."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tiledblend.errors import UsageError
from tiledblend.geometry import LARGEST, is_square
from tiledblend.kernels.bands import Bands
from tiledblend.kernels.gaussian import FeatherKernel

SMALLEST_PIXEL_UM, LARGEST_PIXEL_UM = 1e-9, 1e12

_LENGTH = re.compile(r"^\s*([-+0-9.eE]+)\s*(px|um|µm|μm|)\s*$")


@dataclass(frozen=True, slots=True)
class Length:
    """A distance on the canvas: pixels of the full canvas, or micrometres.

    >>> Length.parse("12um"), Length.parse(3)
    (Length(value=12.0, unit='um'), Length(value=3.0, unit='px'))
    """

    value: float
    unit: Literal["px", "um"] = "px"

    def __post_init__(self) -> None:
        set_number(self, "value", float, "length")
        if not abs(self.value) <= LARGEST:
            raise UsageError(f"length {self.value} {self.unit} must be a number up to {LARGEST:g}")
        if self.unit not in ("px", "um"):
            raise UsageError(f"length unit {self.unit!r} must be px or um")

    @classmethod
    def parse(cls, value: Any) -> Length:
        """From a number of pixels, or text such as "16px" or "8um". Raises ValueError for anything else."""
        if isinstance(value, Length):
            return value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return cls(float(value))
        match = _LENGTH.match(value) if isinstance(value, str) else None
        if match is None:
            raise ValueError(f"{value!r} is no length")
        return cls(float(match[1]), "px" if match[2] in ("px", "") else "um")

    def pixels(self, pixel_um: float | None, what: str) -> float:
        """In pixels of `pixel_um` micrometres. Raises UsageError naming `what` when that is not known."""
        if self.unit == "px":
            return self.value
        if pixel_um is None:
            raise UsageError(
                f"{what} {self} needs a pixel size, and the canvas has none; give it in px, or the size with --mpp"
            )
        return self.value / pixel_um

    def __str__(self) -> str:
        return f"{self.value:g}{self.unit}"


@dataclass(frozen=True, slots=True)
class Feather:
    """Width of a layer's edge: a Gaussian's sigma in pixels of the canvas or in micrometres, OpenCV's kernel size, or
    so many bands, each of which fades over its own width.

    >>> Feather.parse("16px") == Feather.px(16), Feather.parse("ksize:5") == Feather.ksize(5)
    (True, True)
    >>> Feather.parse("bands:6") == Feather.bands(6)
    True
    """

    sigma: float = 0.0
    unit: Literal["px", "um"] = "px"
    kernel_size: int | None = None
    band_count: int | None = None

    def __post_init__(self) -> None:
        set_number(self, "sigma", float, "feather sigma")
        if self.kernel_size is not None:
            set_number(self, "kernel_size", operator.index, "feather ksize")
        if self.band_count is not None:
            set_number(self, "band_count", operator.index, "feather bands")
            if self.sigma or self.kernel_size is not None:
                raise UsageError("feather has bands and a width; give one of them")
            Bands(self.band_count)
        if not 0 <= self.sigma <= LARGEST:
            raise UsageError(f"feather sigma {self.sigma} must be 0 or more; use for example --feather 16px")
        if self.unit not in ("px", "um"):
            raise UsageError(f"feather unit {self.unit!r} must be px or um")
        FeatherKernel(0.0 if self.kernel_size is None else self.sigma, self.kernel_size)

    @classmethod
    def px(cls, sigma: float) -> Feather:
        """Sigma in canvas pixels."""
        return cls(sigma)

    @classmethod
    def um(cls, sigma: float) -> Feather:
        """Sigma in micrometres; needs a canvas with a pixel size."""
        return cls(sigma, "um")

    @classmethod
    def ksize(cls, size: int) -> Feather:
        """OpenCV's `GaussianBlur(mask, (size, size), 0)`."""
        return cls(0.0, "px", size)

    @classmethod
    def bands(cls, count: int) -> Feather:
        """Multi-band: `count` - 1 bands of detail and the rest (Burt & Adelson 1983); of one band: a hard edge."""
        return cls(band_count=count)

    @classmethod
    def parse(cls, value: Any) -> Feather:
        """From a job file or a flag: 0, 16, "16px", "8um", "ksize:5", "bands:6", {"sigma": "16px"}, {"ksize": 5},
        {"bands": 6}."""
        if isinstance(value, Feather):
            return value
        if isinstance(value, dict) and len(value) == 1:
            key, inner = next(iter(value.items()))
            if key == "sigma":
                return cls.parse(inner)
            if key == "ksize" and isinstance(inner, int) and not isinstance(inner, bool):
                return cls.ksize(inner)
            if key == "bands" and isinstance(inner, int) and not isinstance(inner, bool):
                return cls.bands(inner)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            return cls.px(value)
        elif isinstance(value, str):
            if value.startswith("ksize:") and value[6:].strip().isdecimal():
                return cls.ksize(int(value[6:]))
            if value.startswith("bands:") and value[6:].strip().isdecimal():
                return cls.bands(int(value[6:]))
            try:
                length = Length.parse(value)
            except ValueError:
                raise UsageError(f"feather {value!r} is not understood; use 16px, 8um, bands:6 or ksize:5") from None
            return cls(length.value, length.unit)
        raise UsageError(f"feather {value!r} is not understood; use 16px, 8um, bands:6 or ksize:5")

    def kernel(self, pixel_size_um: tuple[float, float] | None, reduction: float = 1.0) -> FeatherKernel:
        """The filter on the grid of a canvas with pixels of this size, or of one that is `reduction` times smaller.

        There OpenCV's kernel is the Gaussian that OpenCV takes it for.
        """
        if reduction != 1:
            full = self.kernel(pixel_size_um)
            # cv2.getGaussianKernel's sigma for a given size; at 1 it leaves the pixels alone
            if full.ksize is not None:
                return FeatherKernel(0.0 if full.ksize == 1 else (0.3 * ((full.ksize - 1) * 0.5 - 1) + 0.8) / reduction)
            y, x = full.sigmas
            return FeatherKernel((y / reduction, x / reduction))
        if self.kernel_size is not None:
            return FeatherKernel(0.0, self.kernel_size)
        if self.unit == "px" or self.sigma == 0:
            return FeatherKernel(self.sigma)
        if pixel_size_um is None:
            raise UsageError(
                f"feather {self.sigma:g}um needs a pixel size, and the canvas has none; give the feather in px"
            )
        y, x = pixel_size_um
        if not is_square(pixel_size_um):
            return FeatherKernel((self.sigma / y, self.sigma / x))
        return FeatherKernel(self.sigma / math.sqrt(y * x))


def set_number(described: Any, name: str, made: Callable[[Any], Any], what: str) -> None:
    """A field of a frozen description as a number of Python's own. Raises UsageError."""
    given = getattr(described, name)
    try:
        if isinstance(given, (str, bool)):
            raise TypeError
        object.__setattr__(described, name, made(given))
    except (TypeError, ValueError):
        raise UsageError(f"{what} {given!r} must be {'a number' if made is float else 'a whole number'}") from None


def checked_grow(given: Any) -> Length | None:
    """None for nothing."""
    try:
        length = Length.parse(given)
    except UsageError:
        raise
    except ValueError:
        raise UsageError(f"grow {given!r} is not understood; use 8px, -3um") from None
    return length if length.value else None


def checked_offset(given: Any) -> tuple[int, int] | tuple[Length, Length]:
    try:
        if isinstance(given, str):
            raise ValueError("one text is no pair")
        y, x = (Length.parse(v) if isinstance(v, (str, Length)) else operator.index(v) for v in given)
    except UsageError:
        raise
    except (TypeError, ValueError):
        raise UsageError(
            f"offset {given!r} must be two whole numbers of pixels, (y, x), or two lengths such as 12um"
        ) from None
    if isinstance(y, int) and isinstance(x, int):
        return y, x
    return Length.parse(y), Length.parse(x)


def checked_pixel_size(given: Any, name: str) -> tuple[float, float]:
    try:
        y, x = (float(given),) * 2 if np.ndim(given) == 0 else (float(size) for size in given)
    except (TypeError, ValueError):
        y = x = math.nan
    if not all(is_pixel_size(size) for size in (y, x)):
        raise UsageError(
            f"pixel size {given!r} of {name} must be one or two ([y, x]) numbers of micrometres, "
            f"from {SMALLEST_PIXEL_UM:g} to {LARGEST_PIXEL_UM:g}"
        )
    return y, x


def is_pixel_size(um: float) -> bool:
    """True for what can be the size of a pixel, from a part of an atom to a country: arithmetic with it is finite."""
    return SMALLEST_PIXEL_UM <= um <= LARGEST_PIXEL_UM
