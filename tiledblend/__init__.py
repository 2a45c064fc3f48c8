"""Mask-guided blending of gigapixel images, tile by tile on a dask cluster, into an OME-Zarr pyramid.

Names are imported when they are first used: `import tiledblend` alone loads neither dask nor zarr.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

# What each name is for a type checker stands in __init__.pyi; a test keeps the two alike.
_EXPORTS = {
    "Affine": "geometry",
    "Alpha": "sources.base",
    "BadInputError": "errors",
    "Canvas": "describe.canvas",
    "ClusterOptions": "run.options",
    "Composite": "describe.composite",
    "Feather": "describe.lengths",
    "Grid": "geometry",
    "InterruptedRun": "errors",
    "Labels": "describe.layers",
    "Layer": "describe.layers",
    "Length": "describe.lengths",
    "OutputSpec": "containers.omezarr.spec",
    "Plan": "run.plan",
    "ProgressEvent": "run.report",
    "RasterSource": "sources.base",
    "RefusedError": "errors",
    "Region": "geometry",
    "ResourceError": "errors",
    "RunReport": "run.report",
    "SourceSpec": "sources.base",
    "StorageError": "errors",
    "TiffOptions": "containers.ometiff.options",
    "TiledblendError": "errors",
    "UsageError": "errors",
    "VerificationError": "errors",
    "at_level": "describe.levels",
    "blend": "compose.arrays",
    "blend_ometiff": "run.ometiff",
    "export_ometiff": "run.ometiff",
    "feather": "compose.arrays",
    "from_array": "sources.arrays",
    "from_color": "sources.single_colour",
    "open": "sources.opening",
    "panel": "look.preview",
    "plan": "run.plan",
    "preview": "look.preview",
    "to_array": "compose.lazy",
    "to_dask": "compose.lazy",
    "verify": "containers.verify",
    "write": "run.driver",
}
_RENAMED = {"open": "open_source"}

__all__ = ["__version__", *sorted(_EXPORTS)]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'tiledblend' has no attribute {name!r}")
    value = getattr(import_module(f"tiledblend.{_EXPORTS[name]}"), _RENAMED.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})


class _Package(ModuleType):
    """Pickles by its name, with plain pickle too: what a notebook sends to workers may name it."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return import_module, (self.__name__,)


sys.modules[__name__].__class__ = _Package
