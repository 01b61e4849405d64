"""Calibration where normals are too few to set some aside: each is held out of one of several trainings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .conformal import check_rate

__all__ = ["CrossConformal"]


class CrossConformal:
    """Combines the calibration scores of K detectors, each trained without the patients of its own fold.

    With the patients parted into K folds, detector k is trained on all but fold k and scores the patients of fold k.
    A new unit is scored by all K, and compared with each calibration patient by the detector that did not see it:
    p = (1 + sum_k number of scores of fold k at or above the unit's score by detector k) / (n + 1). All n patients both
    train and calibrate. The price is a weaker bound, ``bound``: about 2 alpha where split calibration has alpha; in
    practice the rate is near alpha.

    Args:
        folds: per detector k the scores of the patients of fold k, each of shape (n_k,), one per patient (the highest
            of its scans).

    Raises:
        ValueError: with fewer than two folds, or an empty one.

    References:
        V. Vovk, *Cross-conformal predictors*, Annals of Mathematics and Artificial Intelligence 74, 2015, section 2;
        R. F. Barber, E. J. Candes, A. Ramdas, R. J. Tibshirani, *Predictive inference with the jackknife+*, Annals of
        Statistics 49(1), 2021, theorems 1 (K = n) and 4.

    Example:
        >>> cross = CrossConformal([torch.tensor([1.0, 2.0]), torch.tensor([1.5, 4.0])])
        >>> cross.p_value([3.0, 3.0])
        0.4
    """

    def __init__(self, folds: Sequence[Tensor]) -> None:
        self.folds = [torch.as_tensor(scores).flatten() for scores in folds]
        if len(self.folds) < 2 or any(not scores.numel() for scores in self.folds):
            raise ValueError("cross-conformal calibration needs two folds or more, each with a patient")

    @property
    def patients(self) -> int:
        """Number n of calibration patients."""
        return sum(int(scores.numel()) for scores in self.folds)

    def p_value(self, scores: Sequence[float]) -> float:
        """The cross-conformal p-value of a new unit.

        Args:
            scores: by each of the K detectors, in the order of the folds.

        Returns:
            A value in [1 / (n + 1), 1].

        Raises:
            ValueError: if there is not one score for each fold.
        """
        if len(scores) != len(self.folds):
            raise ValueError(f"{len(self.folds)} detectors were calibrated, got {len(scores)} scores")
        reached = sum(int((fold >= score).sum()) for fold, score in zip(self.folds, scores))
        return (1 + reached) / (self.patients + 1)

    def flags(self, scores: Sequence[float], alpha: float) -> bool:
        """Whether a new unit's p-value is at most ``alpha``.

        Args:
            scores: by each of the K detectors.
            alpha: nominal rate; of normals at most ``bound(alpha)`` are flagged.

        Raises:
            InputError: if the patients are too few for this rate; says how many it needs.
        """
        check_rate(alpha, self.patients)
        return self.p_value(scores) <= alpha * (1 + 1e-12)

    def bound(self, alpha: float) -> float:
        """The rate of normals flagged at nominal ``alpha`` that is proven, for folds of equal size.

        Args:
            alpha: nominal rate.

        Returns:
            2 alpha + min(2 (1 - 1/K) / (n/K + 1), (1 - K/n) / (K + 1)), at most 1; 2 alpha with one patient in each
            fold.
        """
        n, k = self.patients, len(self.folds)
        return min(1.0, 2 * alpha + min(2 * (1 - 1 / k) / (n / k + 1), (1 - k / n) / (k + 1)))
