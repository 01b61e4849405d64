"""Trivial statistics of images, and whether one of them alone tells a test set's classes apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from monai_anomaly.transforms import foreground_mask

if TYPE_CHECKING:
    from monai.data import MetaTensor

__all__ = ["IMAGE_STATISTICS", "ConfounderTable", "confounders", "image_statistics"]

# By name, how sentences speak of them.
IMAGE_STATISTICS = {
    "mean": "the mean intensity",
    "standard_deviation": "the standard deviation (contrast)",
    "foreground_area": "the foreground's area",
    "sharpness": "the sharpness",
    "file_size": "the file's size",
    "slice_position": "the slice's position",
}

# The rule, stated in docs/protocol.md and in ``confounders``.
_LEAST_AUROC = 0.7
_ERROR_RATE = 0.05


class ConfounderTable(NamedTuple):
    """What image statistics say of a test set.

    Attributes:
        rows: one for each statistic: ``statistic``, ``auroc`` (the larger of the statistic's and of its negative's, in
            [0.5, 1]), ``abnormal_is`` (``"higher"`` or ``"lower"``), ``low`` and ``high`` (its 95 % interval),
            ``p_value``, ``normal_scans`` and ``abnormal_scans`` (numbers of scans), ``separates`` and ``reason``. What
            is undefined is None, and ``reason`` says why.
        separates: whether some statistic tells the classes apart.
        sentence: the same in plain words.
    """

    rows: list[dict[str, Any]]
    separates: bool
    sentence: str


def image_statistics(scan: MetaTensor, item: Mapping[str, Any]) -> dict[str, float | None]:
    """Six statistics of a scan that know nothing of anatomy.

    Args:
        scan: as loaded, (C, X, Y, Z), intensities as stored.
        item: the cohort's: ``image``, and ``slice_position`` or ``slice``, a number, where it is known.

    Returns:
        ``mean`` and ``standard_deviation`` over all channels and voxels, in the scan's unit; ``foreground_area``, the
        share of voxels whose mean over channels lies in ``foreground_mask``, in [0, 1]; ``sharpness``, the variance of
        the Laplacian over that of the intensities, of the mean over channels (a change of contrast does not change it);
        ``file_size`` in bytes, of all channels' files; ``slice_position``, what the item says, else of a volume of one
        slice its place along the slice's normal in mm, else None.
    """
    from scipy.ndimage import laplace

    values = scan.as_tensor().double()
    gray = values.mean(dim=0)
    array = np.squeeze(gray.numpy())
    variance = float(array.var())
    sharpness = float(laplace(array, mode="nearest").var()) / variance if variance > 0 else 0.0
    return {
        "mean": float(values.mean()),
        "standard_deviation": float(values.std(correction=0)),
        "foreground_area": float(foreground_mask(gray).double().mean()),
        "sharpness": sharpness,
        "file_size": float(_file_size(item["image"])),
        "slice_position": _slice_position(scan, item),
    }


def confounders(rows: Sequence[Mapping[str, Any]]) -> ConfounderTable:
    """Score a test set by each image statistic, both ways.

    A statistic is said to separate the classes where its AUROC, high or low values taken for abnormal, is at least 0.7,
    the lower bound of the AUROC's 95 % interval exceeds 0.5, and a two-sided Mann-Whitney test over patients rejects
    chance at 0.05 divided by the number of statistics that could be scored.

    Args:
        rows: for each scan ``label`` (0 or 1; others are passed over), ``patient`` and what ``image_statistics``
            gave.

    Returns:
        The table, and what it means.

    Notes:
        The interval allows for several scans of a patient. The test takes each patient's mean over its scans of a class
        as one value; a patient with scans of both classes counts in each.

    References:
        N. A. Obuchowski, "Nonparametric analysis of clustered ROC curve data", Biometrics 53, 1997: the variance.
    """
    known = [row for row in rows if row.get("label") in (0, 1)]
    table = [_score(name, known) for name in IMAGE_STATISTICS]
    scored = [row for row in table if row["auroc"] is not None]
    for row in scored:
        row["separates"] = bool(
            row["auroc"] >= _LEAST_AUROC
            and row["low"] is not None
            and row["low"] > 0.5
            and row["p_value"] <= _ERROR_RATE / len(scored)
        )
    return ConfounderTable(table, any(row["separates"] for row in scored), _sentence(table, scored))


def _sentence(table: Sequence[Mapping[str, Any]], scored: Sequence[Mapping[str, Any]]) -> str:
    if not scored:
        return f"Image statistics cannot be scored: {table[0]['reason']}."

    def said(row: Mapping[str, Any]) -> str:
        bounds = "" if row["low"] is None else f", 95 % interval {row['low']:.3f} to {row['high']:.3f}"
        return (
            f"{IMAGE_STATISTICS[row['statistic']]} (AUROC {row['auroc']:.3f}{bounds}; "
            f"{row['abnormal_is']} in abnormal scans)"
        )

    ranked = sorted(scored, key=lambda row: -row["auroc"])
    separating = [row for row in ranked if row["separates"]]
    if separating:
        listed = "; ".join(said(row) for row in separating)
        return (
            f"Normal and abnormal scans of this test set are told apart by trivial statistics, each alone: {listed}. "
            "Image-level figures of any method prove little here."
        )
    text = f"No image statistic alone tells normal from abnormal scans surely; the strongest is {said(ranked[0])}."
    if ranked[0]["auroc"] >= _LEAST_AUROC:
        text += " With so few patients that may be chance, or not: give more before trusting image-level figures."
    return text


def _score(name: str, known: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    from scipy.stats import mannwhitneyu
    from sklearn.metrics import roc_auc_score

    having = [row for row in known if row.get(name) is not None]
    labels = np.array([row["label"] for row in having], dtype=int)
    values = np.array([row[name] for row in having], dtype=np.float64)
    row: dict[str, Any] = {
        "statistic": name,
        **dict.fromkeys(("auroc", "abnormal_is", "low", "high", "p_value")),
        "normal_scans": int((labels == 0).sum()),
        "abnormal_scans": int((labels == 1).sum()),
        "separates": False,
        "reason": "",
    }
    missing = [word for label, word in ((0, "normal"), (1, "abnormal")) if not (labels == label).any()]
    if missing:
        of = "" if len(having) == len(known) else " whose value is known"
        row["reason"] = " and ".join(f"there is no {word} scan{of}" for word in missing)
        if known and not having:
            row["reason"] = "it is known of no scan"
        return row
    auroc = float(roc_auc_score(labels, values))
    sign = 1.0 if auroc >= 0.5 else -1.0
    row["auroc"], row["abnormal_is"] = max(auroc, 1.0 - auroc), "higher" if sign > 0 else "lower"
    patients = [row["patient"] for row in having]
    spread = _standard_error(sign * values[labels == 1], sign * values[labels == 0], patients, labels)
    if spread is None:
        row["reason"] = "an interval needs two patients of each class"
    else:
        row["low"], row["high"] = (
            min(max(row["auroc"] + z * spread, 0.0), 1.0) for z in (-1.959963984540054, 1.959963984540054)
        )
    units: dict[tuple[Any, int], list[float]] = {}
    for patient, label, value in zip(patients, labels.tolist(), values.tolist()):
        units.setdefault((patient, label), []).append(value)
    groups = [[float(np.mean(v)) for (_, label), v in units.items() if label == which] for which in (1, 0)]
    row["p_value"] = float(mannwhitneyu(*groups, alternative="two-sided").pvalue)
    return row


def _standard_error(
    abnormal: np.ndarray, normal: np.ndarray, patients: Sequence[Any], labels: np.ndarray
) -> float | None:
    """Of the AUROC of scans that come in clusters, the patients; None with fewer than two patients in a class."""
    from scipy.stats import rankdata

    m, n = len(abnormal), len(normal)
    both = rankdata(np.concatenate([abnormal, normal]))
    # of each abnormal scan the share of normal ones below it, of each normal scan that of abnormal ones above it
    above = (both[:m] - rankdata(abnormal)) / n
    below = 1.0 - (both[m:] - rankdata(normal)) / m
    auroc = above.mean()
    clusters = {patient: number for number, patient in enumerate(dict.fromkeys(patients))}
    of = np.array([clusters[patient] for patient in patients])
    k = len(clusters)
    sums = [np.bincount(of[labels == label], part - auroc, k) for label, part in ((1, above), (0, below))]
    with_abnormal, with_normal = (len(np.unique(of[labels == label])) for label in (1, 0))
    if with_abnormal < 2 or with_normal < 2:
        return None
    variance = (
        with_abnormal / (with_abnormal - 1) * float(sums[0] @ sums[0]) / m**2
        + with_normal / (with_normal - 1) * float(sums[1] @ sums[1]) / n**2
        + 2.0 * k / (k - 1) * float(sums[0] @ sums[1]) / (m * n)
    )
    return math.sqrt(max(variance, 0.0))


def _file_size(image: str | Sequence[str]) -> int:
    paths = [Path(image)] if isinstance(image, str) else [Path(path) for path in image]
    files = [file for path in paths for file in (path.iterdir() if path.is_dir() else [path]) if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _slice_position(scan: MetaTensor, item: Mapping[str, Any]) -> float | None:
    for key in ("slice_position", "slice"):
        try:
            value = float(item[key])
        except (KeyError, TypeError, ValueError):
            continue
        if math.isfinite(value):
            return value
    thin = [axis for axis, size in enumerate(scan.shape[1:]) if size == 1]
    if scan.meta.get("scan_kind") != "volume" or len(thin) != 1:
        return None
    affine = np.asarray(scan.affine, dtype=np.float64)
    # the normal of the slice's plane, pointing along the world's axis that it is nearest to
    first, second = (affine[:3, axis] for axis in range(3) if axis != thin[0])
    normal = np.cross(first, second)
    normal /= np.linalg.norm(normal) * np.sign(normal[np.abs(normal).argmax()])
    return float(normal @ affine[:3, 3])
