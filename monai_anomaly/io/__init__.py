"""Files to arrays and back: scans, reference masks, digests, weights, and the results of a case."""

from __future__ import annotations

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
