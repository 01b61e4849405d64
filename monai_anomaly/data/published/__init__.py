"""Readers of the published benchmark sets."""

from __future__ import annotations

from .base import ImageSet, Problem, PublishedSet
from .cifar import CIFAR10, CIFAR100
from .collections import BMAD, MedIAnomaly
from .digits import Digits
from .download import RemoteFile
from .folders import OCT2017, BrainMRI, ChestXray, Endosome, FolderSet
from .fundus import IDRiD
from .idx import MNIST, FashionMNIST
from .imagenet import ImageNetSuperclasses
from .industrial import BTAD, MVTecAD, VisA
from .traffic import GTSRBStopSigns
from .videos import Avenue, Ped2, ShanghaiTech, VideoSet
from .volumes import BraTSCohort, MSLUBCohort, PublishedCohort

__all__ = [
    "Avenue",
    "BMAD",
    "BTAD",
    "BraTSCohort",
    "BrainMRI",
    "CIFAR10",
    "CIFAR100",
    "ChestXray",
    "Digits",
    "Endosome",
    "FashionMNIST",
    "FolderSet",
    "GTSRBStopSigns",
    "IDRiD",
    "ImageNetSuperclasses",
    "MNIST",
    "MSLUBCohort",
    "MVTecAD",
    "MedIAnomaly",
    "OCT2017",
    "PUBLISHED_COHORTS",
    "PUBLISHED_SETS",
    "Ped2",
    "ImageSet",
    "Problem",
    "PublishedCohort",
    "PublishedSet",
    "RemoteFile",
    "ShanghaiTech",
    "VideoSet",
    "VisA",
]

PUBLISHED_SETS: dict[str, type[PublishedSet]] = {
    kind.key: kind
    for kind in (
        Avenue,
        BMAD,
        BrainMRI,
        BTAD,
        CIFAR10,
        CIFAR100,
        ChestXray,
        Digits,
        Endosome,
        FashionMNIST,
        FolderSet,
        GTSRBStopSigns,
        IDRiD,
        ImageNetSuperclasses,
        MedIAnomaly,
        MNIST,
        MVTecAD,
        OCT2017,
        Ped2,
        ShanghaiTech,
        VisA,
    )
}

# Volumes, which run through the bundles: each writes a datalist.
PUBLISHED_COHORTS: dict[str, type[PublishedCohort]] = {kind.key: kind for kind in (BraTSCohort, MSLUBCohort)}
