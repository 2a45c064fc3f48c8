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
    "Canvas": "composite",
    "ClusterOptions": "cluster",
    "Composite": "composite",
    "Feather": "composite",
    "Grid": "geometry",
    "InterruptedRun": "errors",
    "Labels": "composite",
    "Layer": "composite",
    "Length": "composite",
    "OutputSpec": "store.spec",
    "Plan": "plan",
    "ProgressEvent": "run",
    "RasterSource": "sources.base",
    "RefusedError": "errors",
    "Region": "geometry",
    "ResourceError": "errors",
    "RunReport": "run",
    "SourceSpec": "sources.base",
    "StorageError": "errors",
    "TiffOptions": "ometiff.options",
    "TiledblendError": "errors",
    "UsageError": "errors",
    "VerificationError": "errors",
    "at_level": "levels",
    "blend": "lazy",
    "blend_ometiff": "ometiff.blend",
    "export_ometiff": "ometiff.export",
    "feather": "lazy",
    "from_array": "sources.array",
    "open": "sources.opening",
    "panel": "preview",
    "plan": "plan",
    "preview": "preview",
    "to_array": "lazy",
    "to_dask": "lazy",
    "write": "run",
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
    """The import system binds a loaded submodule as an attribute of its package: `tiledblend.plan`, loaded by
    anyone, would then hide the function of that name. Exported names win; the modules stay importable.

    It pickles by name, which cloudpickle does by itself for plain modules only: what a notebook sends to workers may
    name it.
    """

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return import_module, (self.__name__,)

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _EXPORTS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
