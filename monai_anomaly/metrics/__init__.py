"""How well scores and maps find what is abnormal."""

from __future__ import annotations

from .cohort import *
from .figures import *
from .intervals import *
from .lesions import *
from .masks import *
from .ranking import *
from .scans import *
from .score_digest import *
from .video import *
from .voxel_intervals import *
from .voxels import *
