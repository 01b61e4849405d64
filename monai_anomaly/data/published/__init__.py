"""Readers of the published benchmark sets."""

from __future__ import annotations

from .base import *
from .cifar import *
from .collections import *
from .digits import *
from .download import *
from .folders import *
from .fundus import *
from .idx import *
from .imagenet import *
from .industrial import *
from .traffic import *
from .videos import *
from .volumes import *

PUBLISHED_SETS = {key: kind for key, kind in KINDS.items() if issubclass(kind, PublishedSet)}
# Volumes, which run through the bundles: each writes a datalist.
PUBLISHED_COHORTS = {key: kind for key, kind in KINDS.items() if issubclass(kind, PublishedCohort)}
