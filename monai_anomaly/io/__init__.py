"""Files to arrays and back: scans, reference masks, digests, weights, and the results of a case."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .case import write_case
    from .content import content_hash
    from .load import LoadScan, LoadScanD, LoadScand, LoadScanDict
    from .reference_masks import load_mask
    from .tables import write_csv, write_json
    from .weights import PUBLISHED_WEIGHTS, download_weights, fitting_weights, read_weights

__all__ = [
    "PUBLISHED_WEIGHTS",
    "LoadScan",
    "LoadScanD",
    "LoadScanDict",
    "LoadScand",
    "content_hash",
    "download_weights",
    "fitting_weights",
    "load_mask",
    "read_weights",
    "write_case",
    "write_csv",
    "write_json",
]

# Readers bring torch and MONAI, which atomic writing and tables do without: each module is loaded where it is used.
_MODULES = {
    **dict.fromkeys(("LoadScan", "LoadScanD", "LoadScanDict", "LoadScand"), "load"),
    **dict.fromkeys(("PUBLISHED_WEIGHTS", "download_weights", "fitting_weights", "read_weights"), "weights"),
    **dict.fromkeys(("write_csv", "write_json"), "tables"),
    "content_hash": "content",
    "load_mask": "reference_masks",
    "write_case": "case",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
