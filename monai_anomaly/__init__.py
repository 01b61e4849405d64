"""Lesion maps from normal scans alone, built on MONAI. Research use only, not for diagnosis."""

from __future__ import annotations

import importlib
from types import ModuleType

__version__ = "0.2.0"

_ROOMS = (
    "benchmarks",
    "bundle",
    "calibration",
    "data",
    "engines",
    "exceptions",
    "io",
    "losses",
    "metrics",
    "networks",
    "report",
    "transforms",
)
__all__ = ["__version__", *_ROOMS]


def __getattr__(name: str) -> ModuleType:
    # The rooms load when they are first used, so that importing the package costs next to nothing.
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
