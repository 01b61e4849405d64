"""Cohorts, datasets, and the demonstration cohort."""

from __future__ import annotations

from .cohort import Cohort, check_cohort, load_cohort, write_datalist
from .demo import make_demo_cohort
from .image_statistics import ConfounderTable, confounders, image_statistics
from .preprocessing import ScanPreprocessing
from .slices import ScanDataset, SliceDataset
from .split import describe_split, seen_scans

__all__ = [
    "Cohort",
    "ConfounderTable",
    "ScanDataset",
    "ScanPreprocessing",
    "SliceDataset",
    "check_cohort",
    "confounders",
    "describe_split",
    "load_cohort",
    "make_demo_cohort",
    "image_statistics",
    "seen_scans",
    "write_datalist",
]
