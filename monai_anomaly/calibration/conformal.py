"""p-values and thresholds with a stated error rate, from held-out normal subjects alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from monai_anomaly.exceptions import InputError

from .drift import CohortFacts
from .fitted import FittedBuffers
from .place_statistics import PlaceStatistics
from .tail_table import TailTable

__all__ = [
    "ConformalCalibration",
    "check_rate",
    "conformal_p_value",
    "conformal_quantile",
    "least_normals",
]

# Keeps (n + 1)(1 - alpha) = 19.000000000000004 at rank 19.
_ROUNDING = 1e-9


def least_normals(alpha: float) -> int:
    """The least number of calibration patients that can carry an error rate.

    Args:
        alpha: error rate, in (0, 1).

    Returns:
        The least n with 1 / (n + 1) <= alpha (alpha = 0.05 needs 19).

    Raises:
        ValueError: if ``alpha`` is outside (0, 1).
    """
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha is a rate between 0 and 1, got {alpha}")
    return max(1, math.ceil(1.0 / alpha - _ROUNDING) - 1)


def check_rate(alpha: float, patients: int, otherwise: str = "") -> None:
    """Reject an error rate that is finer than the calibration patients can carry.

    Args:
        alpha: error rate, in (0, 1).
        patients: number n of calibration patients.
        otherwise: a further way out, for the error's text.

    Raises:
        InputError: if alpha < 1 / (n + 1); says how many normals it needs, and which rates there are enough for.
        ValueError: if ``alpha`` is outside (0, 1).
    """
    needed = least_normals(alpha)
    if patients < needed:
        remedy = ["Calibrate on more"]
        if patients:
            # rounded up: the rate that is named is one that they can carry
            finest = 1 / (patients + 1)
            digit = 10.0 ** (math.floor(math.log10(finest)) - 2)
            remedy.append(f"choose alpha {math.ceil(finest / digit - _ROUNDING) * digit:.3g} or above")
        remedy += [otherwise] if otherwise else []
        problem = f"needs {needed} normal calibration patients, there are {patients}"
        raise InputError(f"alpha {alpha:g}", problem, f"{', or '.join(remedy)}.")


def conformal_quantile(scores: Tensor, alpha: float) -> float | None:
    """The split-conformal threshold of normal scores.

    A new normal unit, exchangeable with the calibration units, exceeds the returned value with a probability of at
    most ``alpha``.

    Args:
        scores: shape (n,), one score per independent unit (patient).
        alpha: wanted error rate, in (0, 1).

    Returns:
        The k-th smallest score with k = ceil((n + 1)(1 - alpha)), or None where k > n: the units are too few for this
        rate (alpha = 0.05 needs 19).

    Raises:
        ValueError: if ``alpha`` is outside (0, 1).

    References:
        V. Vovk, A. Gammerman, G. Shafer, *Algorithmic Learning in a Random World*, Springer, 2005, chapter 2.
    """
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha is a rate between 0 and 1, got {alpha}")
    n = int(scores.numel())
    rank = max(1, math.ceil((n + 1) * (1.0 - alpha) - _ROUNDING))
    if rank > n:
        return None
    return float(scores.flatten().sort().values[rank - 1])


def conformal_p_value(scores: Tensor, score: float) -> float:
    """The conformal p-value of one unit: (1 + number of calibration scores at or above its own) / (n + 1).

    Of a normal unit that is exchangeable with the calibration units it is at most alpha with a probability of at most
    alpha, for every alpha.

    Args:
        scores: shape (n,), one score per independent unit (patient).
        score: of the new unit.

    Returns:
        A value in [1 / (n + 1), 1]; 1 without calibration units.

    References:
        V. Vovk, A. Gammerman, G. Shafer, *Algorithmic Learning in a Random World*, Springer, 2005, chapter 2;
        S. Bates, E. Candes, L. Lei, Y. Romano, M. Sesia, *Testing for outliers with conformal p-values*, Annals of
        Statistics 51(1), 2023, section 1.
    """
    return (1 + int((scores >= score).sum())) / (int(scores.numel()) + 1)


class ConformalCalibration(FittedBuffers):
    """What a detector keeps of its calibration normals, as buffers of its ``state_dict``.

    The unit is the patient. ``tail``, ``places`` and ``facts`` say what the maps and the scans of these patients are
    like; they are empty in detectors of older versions.

    Attributes:
        scores: shape (n,), float32, each calibration patient's highest anomaly score.
        map_maxima: shape (n,), float32, the highest value of each patient's anomaly maps on the scans' own grids.
        item_scores: shape (N,), float32, the scores of all scans.
        item_patients: shape (N,), int64, the patient of each, an index into ``scores``.
        tail: how often normal tissue voxels reach a map value (see ``TailTable``).
        places: the map of normals at each place (see ``PlaceStatistics``).
        facts: intensity, spacing and field of view per patient (see ``CohortFacts``).
    """

    def __init__(self) -> None:
        super().__init__(
            {"scores": 1, "map_maxima": 1, "item_scores": 1, "item_patients": 1},
            integers=("item_patients",),
            optional=("item_scores", "item_patients"),
        )
        self.tail = TailTable()
        self.places = PlaceStatistics()
        self.facts = CohortFacts()
        # declared here and not in the class body, which TorchScript reads
        self.scores: Tensor
        self.map_maxima: Tensor
        self.item_scores: Tensor
        self.item_patients: Tensor

    @torch.jit.unused
    def fit(
        self,
        scores: Mapping[str, float],
        map_maxima: Mapping[str, float],
        items: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        """Keep the calibration values of each patient.

        Args:
            scores: per patient the highest anomaly score.
            map_maxima: per patient the highest voxel of the anomaly maps.
            items: per patient the scores of its scans; None: one scan each.

        Raises:
            ValueError: if they do not name the same patients, or a patient's highest score is not that of its scans.
        """
        items = {patient: [score] for patient, score in scores.items()} if items is None else items
        if not scores.keys() == map_maxima.keys() == items.keys():
            raise ValueError("scores and map maxima must name the same patients")
        if any(max(items[patient]) != score for patient, score in scores.items()):
            raise ValueError("a patient's score is the highest of its scans")
        patients = sorted(scores)
        self.fill(
            scores=torch.tensor([scores[p] for p in patients], dtype=torch.float32),
            map_maxima=torch.tensor([map_maxima[p] for p in patients], dtype=torch.float32),
            item_scores=torch.tensor([score for p in patients for score in items[p]], dtype=torch.float32),
            item_patients=torch.tensor([i for i, p in enumerate(patients) for _ in items[p]], dtype=torch.int64),
        )

    def item_p_values(self, scores: Tensor) -> Tensor:
        """The p-value of single scans or images: (1 + sum_k share_k) / (K + 1).

        share_k is the share of patient k's scans at or above the score. Scans of one patient are alike, so that only
        patients are exchangeable, and each counts once, however many scans there are.

        Args:
            scores: shape (B,).

        Returns:
            Shape (B,), float64. A detector of an older version kept patients' highest scores alone: they stand in for
            the scans', which can only make the values larger.

        References:
            Y. Lee, R. F. Barber, R. Willett, *Distribution-free inference with hierarchical data*, 2023, section 3.
        """
        items, patients = self.item_scores, self.item_patients
        if items.numel() == 0:
            items, patients = self.scores, torch.arange(self.scores.numel(), device=self.scores.device)
        count = self.scores.numel()
        weight = 1.0 / torch.bincount(patients, minlength=count).to(torch.float64)
        reached = (items[None, :] >= scores.to(items)[:, None]).to(torch.float64)
        return (1.0 + (reached * weight[patients][None, :]).sum(dim=1)) / (count + 1)

    @torch.jit.unused
    def p_value(self, score: float) -> float | None:
        """The p-value of one scan's score; None for a detector that is not calibrated."""
        return float(self.item_p_values(torch.tensor([score]))[0]) if self.scores.numel() else None

    @torch.jit.unused
    def patient_p_value(self, score: float) -> float | None:
        """The p-value of a patient's highest score; None for a detector that is not calibrated.

        Args:
            score: the highest of the patient's scans, who has about as many as calibration patients have.
        """
        return conformal_p_value(self.scores, score) if self.scores.numel() else None

    @torch.jit.unused
    def map_p_value(self, peak: float) -> float | None:
        """The family-wise p-value of a map's peak, or of a lesion's; None for a detector that is not calibrated.

        Args:
            peak: highest map value.

        Returns:
            (1 + number of calibration patients whose map anywhere reaches the peak) / (n + 1).
        """
        return conformal_p_value(self.map_maxima, peak) if self.map_maxima.numel() else None

    @torch.jit.unused
    def score_threshold(self, alpha: float) -> float | None:
        """At most ``alpha`` of normal patients have a highest score above it; None where they are too few."""
        return conformal_quantile(self.scores, alpha)

    @torch.jit.unused
    def map_threshold(self, alpha: float) -> float | None:
        """The family-wise threshold of anomaly maps: at most ``alpha`` of normal patients show any voxel above it.

        Args:
            alpha: error rate per patient, in (0, 1).

        Returns:
            The threshold, or None where the calibration patients are too few for this rate.
        """
        return conformal_quantile(self.map_maxima, alpha)

    @torch.jit.unused
    def voxel_threshold(self, alpha: float) -> float | None:
        """The voxel-wise threshold of anomaly maps: ``alpha`` of normal tissue voxels lie above it.

        Args:
            alpha: rate of voxels, in (0, 1).

        Returns:
            The threshold, or None without a table of normal voxels or where it does not reach down to this rate.
        """
        return self.tail.threshold(alpha)
