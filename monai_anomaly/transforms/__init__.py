"""Slicing and normalising scans; proxies and pseudo anomalies."""

from __future__ import annotations

from .coarse_noise import *  # noqa: F403
from .erasing import *  # noqa: F403
from .intensity import *  # noqa: F403
from .proxies import *  # noqa: F403
from .pseudo_abnormal import *  # noqa: F403
from .slice_grid import *  # noqa: F403
from .synthetic_lesions import *  # noqa: F403
from .volume_grid import *  # noqa: F403
