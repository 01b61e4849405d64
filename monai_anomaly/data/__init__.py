"""Cohorts, datasets, and the demonstration cohort."""

from __future__ import annotations

from .cohort import *
from .demo import *
from .image_statistics import *
from .preprocessing import *
from .slices import *
from .split import *
