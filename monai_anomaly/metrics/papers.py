"""Figures that one paper reports and the others do not, each as its paper defines it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from .intervals import mean_and_spread
from .scans import checked_scans

__all__ = ["score_gap", "selection_summary", "training_stability"]


def score_gap(labels: Sequence[int | None], scores: Sequence[float]) -> dict[str, Any]:
    """How far the mean scores of normal and of abnormal scans lie apart: ProxyAno's Table II.

    The gap is in the unit of the scores and grows with them; ``gap_in_sd`` (not in the paper) is in standard deviations
    of the normal scans' scores and thus compares between detectors.

    Args:
        labels: per scan 0 (normal), 1 (abnormal) or None (unknown; the scan is left out).
        scores: the scans' anomaly scores (the paper's A_img, Eq. 13).

    Returns:
        ``normal`` and ``abnormal``, the mean scores, ``gap``, the second less the first, and ``gap_in_sd``;
        ``undefined``: by key the reason for each None.

    Raises:
        ValueError: if a score of a labelled scan is NaN, a label is neither 0, 1 nor None, or the lengths differ.

    References:
        Zhou et al., "Proxy-bridged Image Reconstruction Network for Anomaly Detection in Medical Images", IEEE
        Transactions on Medical Imaging, 2022, section IV-C2 and Table II.
    """
    values, truth = checked_scans(labels, scores)
    normal, abnormal = values[~truth], values[truth]
    undefined: dict[str, str] = {}
    if not normal.size:
        undefined |= dict.fromkeys(("normal", "gap", "gap_in_sd"), "no normal scan")
    if not abnormal.size:
        undefined |= dict.fromkeys(("abnormal", "gap", "gap_in_sd"), "no abnormal scan")
    low = float(normal.mean()) if normal.size else None
    high = float(abnormal.mean()) if abnormal.size else None
    gap = high - low if low is not None and high is not None else None
    sd = float(np.std(normal, ddof=1)) if normal.size > 1 else 0.0
    if gap is not None and not sd:
        undefined["gap_in_sd"] = "the scores of normal scans do not vary"
    return {
        "normal": low,
        "abnormal": high,
        "gap": gap,
        "gap_in_sd": gap / sd if gap is not None and sd else None,
        "undefined": undefined,
    }


def training_stability(epochs: Sequence[int], values: Sequence[float | None], last: float = 0.25) -> dict[str, Any]:
    """How steady a figure is along one training: what ITAE's Figures 8 and 9 show.

    The paper tests every 5 epochs and looks at the end of the curve, without a number for it; here the end is the
    last quarter of the tests. Its Table 6, the spread over ten trainings, is ``mean_and_spread``.

    Args:
        epochs: of the tests, rising.
        values: the figure at each, such as AUROC; None where it is undefined.
        last: the share of the tests that make the end, in (0, 1]; one test at least.

    Returns:
        ``final``, the last test's value; ``last``: ``mean_and_spread`` of the end; ``best`` and ``best_epoch``
        (oracles, as the epoch is chosen by the test's labels; the first of equals); ``below_best``, by how much the
        final value falls short; ``undefined``: by key the reason for each None.

    Raises:
        ValueError: if the epochs do not rise, the lengths differ, there is no test, or ``last`` is out of range.

    References:
        Huang et al., "Inverse-Transform AutoEncoder for Anomaly Detection", arXiv:1911.10676, section 4.5, Table 6,
        appendix D and Figures 8 and 9.
    """
    if not epochs or len(epochs) != len(values):
        raise ValueError(f"{len(epochs)} epochs and {len(values)} values: give one of each a test, one test at least")
    if any(b <= a for a, b in pairwise(epochs)):
        raise ValueError("the epochs do not rise")
    if not 0 < last <= 1:
        raise ValueError(f"last is in (0, 1], got {last}")
    end = max(1, round(last * len(values)))
    known = [(value, -epoch) for epoch, value in zip(epochs, values) if value is not None]
    best, best_epoch = max(known) if known else (None, None)
    final = values[-1]
    undefined: dict[str, str] = {}
    if final is None:
        undefined |= dict.fromkeys(("final", "below_best"), "undefined in the last test")
    if best is None:
        undefined |= dict.fromkeys(("best", "best_epoch"), "undefined in every test")
    return {
        "final": final,
        "last": mean_and_spread(values[-end:]),
        "best": best,
        "best_epoch": None if best_epoch is None else -best_epoch,
        "below_best": best - final if best is not None and final is not None else None,
        "undefined": undefined,
    }


def selection_summary(
    selected: Sequence[str],
    latent: Sequence[float | None],
    restoration: Sequence[float | None],
    total: Sequence[float | None] | None = None,
) -> dict[str, Any]:
    """What DDR-ID's Algorithm 2 selected over several detectors, and what it was worth: Table 6 and its text.

    Args:
        selected: ``"latent"`` (AS_l) or ``"restoration"`` (AS_r) for each detector, one a normal class in the paper.
        latent: the AUROC of AS_l (Eq. 7) for each.
        restoration: the AUROC of AS_r (Eq. 8) for each.
        total: the AUROC of AS_l + AS_r for each, or None.

    Returns:
        ``num_latent`` and ``num_restoration``, the counts; ``num_better``, how often the selected score has the higher
        AUROC, ties left out, of ``num_compared``; and ``mean_and_spread`` of the AUROC under ``latent``,
        ``restoration``, ``total`` (None where it was not given) and ``selected``, the rows of Table 6.

    Raises:
        ValueError: if the lengths differ or a selection is neither of the two.

    References:
        Lin et al., "DDR-ID: Dual Deep Reconstruction Networks Based Image Decomposition for Anomaly Detection",
        Algorithm 2 and Table 6.
    """
    number = len(selected)
    if any(len(part) != number for part in (latent, restoration, *([] if total is None else [total]))):
        raise ValueError("give one selection and one AUROC of each score for every detector")
    if unknown := set(selected) - {"latent", "restoration"}:
        raise ValueError(f"a selection is latent or restoration, got {', '.join(sorted(map(str, unknown)))}")
    chosen = [a if name == "latent" else b for name, a, b in zip(selected, latent, restoration)]
    left = [b if name == "latent" else a for name, a, b in zip(selected, latent, restoration)]
    pairs = [(a, b) for a, b in zip(chosen, left) if a is not None and b is not None and a != b]
    return {
        "num_latent": sum(name == "latent" for name in selected),
        "num_restoration": sum(name == "restoration" for name in selected),
        "num_better": sum(a > b for a, b in pairs),
        "num_compared": len(pairs),
        "latent": mean_and_spread(latent),
        "restoration": mean_and_spread(restoration),
        "total": None if total is None else mean_and_spread(total),
        "selected": mean_and_spread(chosen),
    }
