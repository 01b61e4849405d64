"""From scores and maps of normal subjects to p-values and thresholds."""

from __future__ import annotations

from .conformal import *
from .cross_conformal import *
from .drift import *
from .fitted import *
from .mask_cleanup import *
from .place_statistics import *
from .slice_statistics import *
from .tail_table import *
