"""An evaluation as one page, its tables and images; what they show is computed elsewhere."""

from __future__ import annotations

from .evaluation import *
from .findings import *
from .overview import *
from .page import *
from .plots import *
from .slices import *
