"""Readers of the published benchmark sets."""

from __future__ import annotations

from .base import Pictures, Problem, PublishedSet, RemoteFile
from .cifar import CIFAR10, CIFAR100
from .digits import Digits
from .idx import MNIST, FashionMNIST
from .imagenet import ImageNetSuperclasses
from .industrial import BTAD, MVTecAD, VisA
from .traffic import GTSRBStopSigns

__all__ = [
    "BTAD",
    "CIFAR10",
    "CIFAR100",
    "Digits",
    "FashionMNIST",
    "GTSRBStopSigns",
    "ImageNetSuperclasses",
    "MNIST",
    "MVTecAD",
    "PUBLISHED_SETS",
    "Pictures",
    "Problem",
    "PublishedSet",
    "RemoteFile",
    "VisA",
]

PUBLISHED_SETS: dict[str, type[PublishedSet]] = {
    "btad": BTAD,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "digits": Digits,
    "fashion_mnist": FashionMNIST,
    "gtsrb_stop_signs": GTSRBStopSigns,
    "imagenet": ImageNetSuperclasses,
    "mnist": MNIST,
    "mvtec_ad": MVTecAD,
    "visa": VisA,
}
