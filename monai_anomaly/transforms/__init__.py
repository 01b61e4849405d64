"""Slicing and normalising scans; proxies and pseudo anomalies."""

from __future__ import annotations

from .coarse_noise import *
from .erasing import *
from .intensity import *
from .proxies import *
from .pseudo_abnormal import *
from .slice_grid import *
from .synthetic_lesions import *
from .volume_grid import *
