"""Cohorts, datasets, and the demonstration cohort."""

from __future__ import annotations

from .cohort import Cohort, load_cohort, load_mask, write_datalist
from .content import content_hash
from .demo import make_demo_cohort
from .slices import ScanDataset, SliceDataset
from .weights import PUBLISHED_WEIGHTS, download_weights, fitting_weights, read_weights

__all__ = [
    "Cohort",
    "PUBLISHED_WEIGHTS",
    "ScanDataset",
    "SliceDataset",
    "content_hash",
    "download_weights",
    "fitting_weights",
    "load_cohort",
    "load_mask",
    "make_demo_cohort",
    "read_weights",
    "write_datalist",
]
