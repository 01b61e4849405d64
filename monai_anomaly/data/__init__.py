"""Cohorts, datasets, and the demonstration cohort."""

from __future__ import annotations

from .cohort import Cohort, load_cohort, load_mask, write_datalist
from .content import content_hash
from .demo import make_demo_cohort
from .slices import ScanDataset, SliceDataset

__all__ = [
    "Cohort",
    "ScanDataset",
    "SliceDataset",
    "content_hash",
    "load_cohort",
    "load_mask",
    "make_demo_cohort",
    "write_datalist",
]
