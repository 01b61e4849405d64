"""Frame-level scores of videos: the protocol of ITAE's Table 3, beside one that needs no test episode.

References:
    Huang et al., "Inverse-Transform AutoEncoder for Anomaly Detection", arXiv:1911.10676, section 4.3.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .ranking import auroc

__all__ = ["normality_scores", "video_metrics", "video_metrics_of"]


def normality_scores(errors: npt.ArrayLike) -> np.ndarray:
    """The normality p_u of each frame u of one episode (Eq. 4).

    Transductive: every frame is scaled by the least and the largest error of the whole test episode, so that no frame
    can be judged before the episode is over, and each episode has a frame of normality 0, whether anomalous or not.

    Args:
        errors: e_u, the restoration errors of the frames, shape (U,).

    Returns:
        p_u in [0, 1], shape (U,), float64; close to 0 where a frame is likely anomalous.

    Raises:
        ValueError: if the errors are not one list of finite numbers, or all equal, for which Eq. 4 is not defined.
    """
    e = np.asarray(errors, dtype=np.float64)
    if e.ndim != 1 or not e.size or not np.isfinite(e).all():
        raise ValueError("an episode's errors are one list of finite numbers, one or more")
    least, largest = e.min(), e.max()
    if least == largest:
        raise ValueError(f"the {e.size} error(s) of an episode are all equal: Eq. 4 divides by their range")
    return 1.0 - (e - least) / (largest - least)


def video_metrics(errors: npt.ArrayLike, labels: npt.ArrayLike, episodes: Sequence[Any]) -> dict[str, float | None]:
    """The AUROC of the frames of several episodes, with and without the scaling of Eq. 4.

    Args:
        errors: of all frames, shape (U,).
        labels: 0 (normal) or 1 (anomalous), shape (U,).
        episodes: the episode of each frame, any names, U of them.

    Returns:
        ``auroc``: of the errors as they are, which compares with detectors that judge a frame by itself; and
        ``auroc_transductive``: of 1 - p_u, the protocol of Table 3 alone. None where a class is absent.

    Raises:
        ValueError: if the lengths differ, or as ``normality_scores``, naming the episode.
    """
    e, truth, names = np.asarray(errors, dtype=np.float64), np.asarray(labels), np.asarray([str(n) for n in episodes])
    if not e.shape == truth.shape == names.shape:
        raise ValueError(f"{e.size} errors, {truth.size} labels and {names.size} episodes: give one of each a frame")
    scaled = np.empty_like(e)
    for name in np.unique(names):
        inside = names == name
        try:
            scaled[inside] = 1.0 - normality_scores(e[inside])
        except ValueError as error:
            raise ValueError(f"episode {name}: {error}") from error
    return {"auroc": auroc(e, truth), "auroc_transductive": auroc(scaled, truth)}


def video_metrics_of(predictions: str | Path, episode_regex: str) -> dict[str, float | None]:
    """``video_metrics`` of an evaluated folder of frames.

    Args:
        predictions: the ``predictions.csv`` that ``evaluate.yaml`` wrote.
        episode_regex: finds a frame's episode in its case, in its first group where it has one: ``r"(\\d+_\\d+)_"``
            finds ``01_0014`` in ``01_0014_037``.

    Returns:
        See ``video_metrics``.

    Raises:
        ValueError: if the pattern is not found in a case, or a frame has no label, or as ``video_metrics``.
    """
    with Path(predictions).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    episodes = []
    for row in rows:
        found = re.search(episode_regex, row["case"])
        if found is None:
            raise ValueError(f"{episode_regex!r} finds no episode in the case {row['case']!r}")
        if row["label"] not in ("0", "1"):
            raise ValueError(f"the case {row['case']!r} has no label")
        episodes.append(found[1] if found.re.groups else found[0])
    return video_metrics([float(row["anomaly_score"]) for row in rows], [int(row["label"]) for row in rows], episodes)
