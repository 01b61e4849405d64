"""Benchmarks: published sets, the methods of the papers' tables, one runner, and tables beside the papers' figures."""

from __future__ import annotations

import importlib
from typing import Any

_PLACES = {
    "SCALES": "suites",
    "BenchmarkRun": "runner",
    "Method": "suites",
    "Outcome": "runner",
    "Suite": "suites",
    "Unit": "runner",
    "load_methods": "suites",
    "load_suite": "suites",
    "read_results": "results",
    "suite_names": "suites",
}
__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    # The command line reads its arguments before anything heavy is loaded.
    if name in _PLACES:
        return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
