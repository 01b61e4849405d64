"""Whether new scans are still those that the calibration speaks of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .fitted import FittedBuffers

if TYPE_CHECKING:
    from monai.data import MetaTensor

__all__ = ["FACTS", "CohortFacts", "drift_report", "scan_facts"]

FACTS = (
    "intensity_mean",
    "intensity_spread",
    "foreground_share",
    "spacing_r",
    "spacing_a",
    "spacing_s",
    "extent_r",
    "extent_a",
    "extent_s",
)

# A new patient lies outside where it is further from the calibration patients' range than this share of its end.
_TOLERANCE = 0.1


def scan_facts(scan: MetaTensor, foreground: np.ndarray) -> np.ndarray:
    """What is compared between cohorts.

    Args:
        scan: as loaded, shape (C, X, Y, Z), with its affine.
        foreground: shape (X, Y, Z), bool.

    Returns:
        Shape (9,), in the order of ``FACTS``: mean and standard deviation of the foreground's intensity over all
        channels, in the scan's unit; share of foreground voxels; voxel spacing and field of view along the axes
        closest to R, A and S in mm (rows and columns of images: pixels). Rounded to four digits, so that headers
        that differ in the seventh agree.
    """
    import nibabel

    # plane by plane: the scan is not copied
    planes = [(plane, inside) for channel in scan.cpu().numpy() for plane, inside in zip(channel, foreground)]
    voxels = max(1, len(scan) * int(foreground.sum()))
    mean = sum(plane[inside].sum(dtype=np.float64) for plane, inside in planes) / voxels
    spread = np.sqrt(sum(np.square(plane[inside] - mean, dtype=np.float64).sum() for plane, inside in planes) / voxels)
    affine = np.asarray(scan.affine, dtype=np.float64)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    axes = nibabel.orientations.io_orientation(affine)[:, 0].astype(int)
    along, extent = np.empty(3), np.empty(3)
    along[axes], extent[axes] = spacing, spacing * np.asarray(scan.shape[1:])
    values = (mean, spread, float(foreground.mean()), *along, *extent)
    return np.array([float(f"{value:.4g}") for value in values])


class CohortFacts(FittedBuffers):
    """What the scans of the calibration patients are like.

    Attributes:
        values: shape (n, 9), float32: per patient the mean over its scans of ``scan_facts``; empty where not known.
    """

    def __init__(self) -> None:
        super().__init__({"values": 2}, optional=("values",))
        # declared here and not in the class body, which TorchScript reads
        self.values: Tensor

    @torch.jit.unused
    def fit(self, patients: Mapping[str, Sequence[np.ndarray]]) -> None:
        """Keep each patient's mean.

        Args:
            patients: per patient the ``scan_facts`` of its scans.
        """
        self.fill(values=torch.from_numpy(_means(patients, sorted(patients))))


def drift_report(
    calibration_scores: Tensor,
    calibration_facts: Tensor,
    scores: Mapping[str, float],
    facts: Mapping[str, Sequence[np.ndarray]],
    normals: Sequence[str] | None = None,
    level: float = 0.01,
) -> dict[str, Any]:
    """Compare new patients with the calibration patients.

    Scores and facts are compared by two-sample Kolmogorov-Smirnov tests, one value per patient, at ``level`` shared
    evenly among them (Bonferroni). One or two new patients can never be told apart by such a test; a fact therefore
    also counts as drifted where more than half of the new patients lie beyond the calibration patients' range, widened
    by a tenth of its ends.

    Args:
        calibration_scores: shape (n,), per calibration patient.
        calibration_facts: shape (n, 9), or empty where a detector has none.
        scores: per new patient the highest score.
        facts: per new patient the ``scan_facts`` of its scans.
        normals: the new patients known to be normal; None where no label is known, and all are compared. Disease, too,
            changes scores, so that only normals can show a drift of the scores for certain.
        level: chance of a false warning by the tests for a cohort like the calibration patients; the comparison with
            the range adds about 2 / (n + 1) for a single new patient.

    Returns:
        JSON-able: ``drift`` (bool), ``statement`` (a sentence), ``drifted`` (names), ``level``, the numbers of
        patients, ``scores`` and, per fact, range and median of both cohorts, the statistic and its p-value.

    Raises:
        ValueError: without calibration or new patients.

    References:
        N. V. Smirnov, *Table for estimating the goodness of fit of empirical distributions*, Annals of Mathematical
        Statistics 19, 1948.
    """
    from scipy.stats import ks_2samp

    known = calibration_scores.double().cpu().numpy()
    if not known.size or not scores:
        raise ValueError("a drift is between calibration patients and new ones: one side is empty")
    patients = sorted(scores)
    compared = patients if normals is None else sorted(normals)
    new_facts = _means(facts, patients)
    tests = 1 + (len(FACTS) if calibration_facts.numel() else 0)

    def compare(old: np.ndarray, new: np.ndarray) -> dict[str, Any]:
        found = ks_2samp(old, new)
        return {
            "statistic": float(found.statistic),
            "p_value": float(found.pvalue),
            "calibration": _summary(old),
            "new": _summary(new),
        }

    about = "all new patients" if normals is None else "new patients labelled normal"
    of_scores: dict[str, Any] = {"compared": about, "patients": len(compared)}
    drifted = []
    if compared:
        of_scores |= compare(known, np.array([scores[patient] for patient in compared], dtype=np.float64))
        if of_scores["p_value"] < level / tests:
            drifted.append("scores")
    else:
        of_scores["reason"] = "no new patient is labelled normal"
    of_facts: dict[str, Any] = {}
    for column, name in enumerate(FACTS) if calibration_facts.numel() else ():
        old, new = calibration_facts[:, column].double().cpu().numpy(), new_facts[:, column].astype(np.float64)
        of_facts[name] = compare(old, new)
        low, high = float(old.min()), float(old.max())
        outside = (new < low - _TOLERANCE * abs(low)) | (new > high + _TOLERANCE * abs(high))
        of_facts[name]["outside"] = float(outside.mean())
        if of_facts[name]["p_value"] < level / tests or outside.mean() > 0.5:
            drifted.append(name)
    return {
        "drift": bool(drifted),
        "drifted": drifted,
        "statement": _statement(drifted, normals is None),
        "level": level,
        "calibration_patients": int(known.size),
        "new_patients": len(patients),
        "scores": of_scores,
        "facts": of_facts if of_facts else None,
        "facts_reason": None if of_facts else "the detector was calibrated by a version that kept none",
    }


def _means(facts: Mapping[str, Sequence[np.ndarray]], patients: Sequence[str]) -> np.ndarray:
    """Shape (n, 9), float32: each patient's mean over its scans, cut to what float32 and JSON can hold."""
    means = np.array([np.mean(facts[patient], axis=0) for patient in patients], dtype=np.float64)
    largest = np.finfo(np.float32).max
    return means.reshape(-1, len(FACTS)).clip(-largest, largest).astype(np.float32)


def _statement(drifted: Sequence[str], unlabelled: bool) -> str:
    if not drifted:
        return "No drift was found, which is no proof that there is none: few patients show little."
    names = ", ".join(drifted)
    text = f"These patients differ from the calibration patients ({names}): the stated error rates no longer hold."
    if list(drifted) == ["scores"] and unlabelled:
        text += " Unless many of them are abnormal: no label says which are normal."
    return text


def _summary(values: np.ndarray) -> dict[str, float]:
    return {"least": float(values.min()), "median": float(np.median(values)), "most": float(values.max())}
