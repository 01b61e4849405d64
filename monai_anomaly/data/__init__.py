"""Cohorts, datasets, and the demonstration cohort."""

from __future__ import annotations

from .cohort import Cohort, check_cohort, load_cohort, write_datalist
from .content import content_hash
from .demo import make_demo_cohort
from .picture_statistics import ConfoundTable, confounds, picture_statistics
from .reference_masks import load_mask
from .slices import ScanDataset, SliceDataset
from .split import describe_split, seen_scans
from .weights import PUBLISHED_WEIGHTS, download_weights, fitting_weights, read_weights

__all__ = [
    "Cohort",
    "ConfoundTable",
    "PUBLISHED_WEIGHTS",
    "ScanDataset",
    "SliceDataset",
    "check_cohort",
    "confounds",
    "content_hash",
    "describe_split",
    "download_weights",
    "fitting_weights",
    "load_cohort",
    "load_mask",
    "make_demo_cohort",
    "picture_statistics",
    "read_weights",
    "seen_scans",
    "write_datalist",
]
