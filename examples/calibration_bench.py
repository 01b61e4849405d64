"""Does a stated error rate hold? Draws calibration and test normals again and again from a table of scores.

    python examples/calibration_bench.py predictions.csv --calibration 40 --splits 200 --output rates.jsonl

The table is ``predictions.csv`` of a detector run over normals that it was not trained on (rows with label 1 are left
out). The unit is the patient, its score the highest of its scans. Each split draws ``--calibration`` patients to
calibrate with; the others are tested. Without ties the number of false positives is beta-binomial whatever the scores:
with r = floor(alpha (n + 1)), its mean share is r / (n + 1). One JSON line per alpha says what was found beside that.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monai_anomaly.calibration import check_rate, conformal_quantile
from monai_anomaly.exceptions import InputError


def read_patients(path: Path, column: str = "anomaly_score") -> np.ndarray:
    """The highest score of each normal patient in a table, in the order of their names.

    Args:
        path: CSV with ``patient``, the column of scores, and perhaps ``label`` (1: abnormal, left out).
        column: of the scores.

    Raises:
        InputError: if a column is missing, a score is no finite number, or a patient is both normal and abnormal.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"patient", column} <= rows[0].keys():
        raise InputError(path, f"is no table with the columns patient and {column}", "Give a predictions.csv.")
    abnormal = {row["patient"] for row in rows if row.get("label") == "1"}
    highest: dict[str, float] = {}
    for row in rows:
        if row.get("label") == "1":
            continue
        if row["patient"] in abnormal:
            raise InputError(path, f"patient {row['patient']!r} is normal and abnormal", "Leave it out.")
        try:
            score = float(row[column])
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise InputError(path, f"{column} of {row['patient']!r} is {row[column]!r}", "Score it again.")
        highest[row["patient"]] = max(score, highest.get(row["patient"], -math.inf))
    return np.array([highest[patient] for patient in sorted(highest)], dtype=np.float32)


def resplit(scores: np.ndarray, calibration: int, alpha: float, splits: int, seed: int = 0) -> dict[str, Any]:
    """Draw the calibration patients anew many times, and count the false positives among the others.

    Args:
        scores: shape (N,), one per normal patient.
        calibration: number n of calibration patients; the other m = N - n are tested.
        alpha: error rate.
        splits: number of draws.
        seed: of the draws.

    Returns:
        Counts, the mean false-positive rate with its Monte-Carlo error, the expected one, and both spreads.

    Raises:
        InputError: if nobody is left to test, or the calibration patients are too few for the rate.
    """
    from scipy.stats import betabinom

    tested = len(scores) - calibration
    if tested < 1:
        raise InputError("calibration", f"{calibration} of {len(scores)} patients leave none to test", "Choose fewer.")
    check_rate(alpha, calibration)
    random = np.random.default_rng(seed)
    rates = np.empty(splits)
    for split in range(splits):
        order = random.permutation(len(scores))
        threshold = conformal_quantile(torch.from_numpy(scores[order[:calibration]]), alpha)
        rates[split] = (scores[order[calibration:]] > threshold).mean()
    allowed = math.floor(alpha * (calibration + 1) + 1e-9)
    law = betabinom(tested, allowed, calibration + 1 - allowed)
    error = float(law.std()) / tested / math.sqrt(splits)
    return {
        "alpha": alpha,
        "calibration_patients": calibration,
        "test_patients": tested,
        "splits": splits,
        "mean_fpr": float(rates.mean()),
        "expected_fpr": allowed / (calibration + 1),
        "monte_carlo_error": error,
        "within_two_errors": bool(abs(rates.mean() - allowed / (calibration + 1)) <= 2 * error),
        "spread": float(rates.std(ddof=1)),
        "expected_spread": float(law.std()) / tested,
        "tied_patients": len(scores) - len(np.unique(scores)),
    }


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Read the table, resplit, print, write.

    Args:
        arguments: of the command line; None reads them from the process.

    Returns:
        What was written, one entry per alpha.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--column", default="anomaly_score")
    parser.add_argument("--calibration", type=int, help="calibration patients in each split (default: half)")
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.05, 0.1])
    parser.add_argument("--splits", type=int, default=200, help="at least 100")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON lines are added to this file")
    given = parser.parse_args(arguments)
    if given.splits < 100:
        parser.error(f"--splits is at least 100, got {given.splits}")
    try:
        scores = read_patients(given.table, given.column)
        n = len(scores) // 2 if given.calibration is None else given.calibration
        rows = [resplit(scores, n, alpha, given.splits, given.seed) for alpha in given.alphas]
    except InputError as error:
        parser.exit(1, f"error: {error}\n")
    print(f"{'alpha':>6} {'n':>5} {'m':>5} {'mean FPR':>17} {'expected':>9} {'spread':>7} {'beta-binomial':>13}")
    for row in rows:
        print(
            f"{row['alpha']:6g} {row['calibration_patients']:5d} {row['test_patients']:5d} "
            f"{row['mean_fpr']:8.4f} ± {row['monte_carlo_error']:.4f} {row['expected_fpr']:9.4f} "
            f"{row['spread']:7.4f} {row['expected_spread']:13.4f}"
        )
    if given.output is not None:
        with given.output.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({"table": given.table.name, "seed": given.seed, **row}) + "\n" for row in rows)
    return rows


if __name__ == "__main__":
    main()
