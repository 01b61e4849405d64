"""Readers of the published benchmark sets."""

from __future__ import annotations

from .base import Pictures, Problem, PublishedSet, RemoteFile
from .collections import BMAD, MedIAnomaly
from .folders import OCT2017, BrainMRI, ChestXray, Endosome, FolderSet
from .fundus import IDRiD
from .videos import Avenue, Ped2, ShanghaiTech, VideoSet
from .volumes import BraTSCohort, MSLUBCohort, PublishedCohort

__all__ = [
    "BMAD",
    "OCT2017",
    "PUBLISHED_COHORTS",
    "PUBLISHED_SETS",
    "Avenue",
    "BraTSCohort",
    "BrainMRI",
    "ChestXray",
    "Endosome",
    "FolderSet",
    "IDRiD",
    "MSLUBCohort",
    "MedIAnomaly",
    "Ped2",
    "Pictures",
    "Problem",
    "PublishedCohort",
    "PublishedSet",
    "RemoteFile",
    "ShanghaiTech",
    "VideoSet",
]

PUBLISHED_SETS: dict[str, type[PublishedSet]] = {
    "avenue": Avenue,
    "bmad": BMAD,
    "brain_mri": BrainMRI,
    "cxr_kermany": ChestXray,
    "endosome": Endosome,
    "folders": FolderSet,
    "idrid": IDRiD,
    "medianomaly": MedIAnomaly,
    "oct2017": OCT2017,
    "ped2": Ped2,
    "shanghaitech": ShanghaiTech,
}

# Volumes, which run through the bundles: each writes a datalist.
PUBLISHED_COHORTS: dict[str, type[PublishedCohort]] = {
    "brats": BraTSCohort,
    "mslub": MSLUBCohort,
}
