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
    "avenue": Avenue,
    "bmad": BMAD,
    "brain_mri": BrainMRI,
    "btad": BTAD,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "cxr_kermany": ChestXray,
    "digits": Digits,
    "endosome": Endosome,
    "fashion_mnist": FashionMNIST,
    "folders": FolderSet,
    "gtsrb_stop_signs": GTSRBStopSigns,
    "idrid": IDRiD,
    "imagenet": ImageNetSuperclasses,
    "medianomaly": MedIAnomaly,
    "mnist": MNIST,
    "mvtec_ad": MVTecAD,
    "oct2017": OCT2017,
    "ped2": Ped2,
    "shanghaitech": ShanghaiTech,
    "visa": VisA,
}

# Volumes, which run through the bundles: each writes a datalist.
PUBLISHED_COHORTS: dict[str, type[PublishedCohort]] = {
    "brats": BraTSCohort,
    "mslub": MSLUBCohort,
}
