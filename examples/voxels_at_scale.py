"""Pixel metrics of a thousand million voxels: memory, time, and how far they are from the truth.

    python examples/voxels_at_scale.py --voxels 1000000000 --output DIR

Scores of normal voxels are drawn from a normal law around 0, those of the one abnormal voxel in a hundred from one
around 1.5, so that the AUROC of the law is known. The voxels come in volumes of ten million, as scans do.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import time
from pathlib import Path

import numpy as np

from monai_anomaly.metrics import PixelMetrics

SHIFT, SHARE, VOLUME = 1.5, 0.01, (215, 215, 216)


def main() -> None:
    """Draw, count, compute, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voxels", type=float, default=1e9)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    random = np.random.default_rng(0)
    metrics = PixelMetrics({"threshold": 3.0})
    start_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counted, seconds = 0, 0.0
    while counted < given.voxels:
        truth = np.zeros(VOLUME, dtype=bool)
        side = round((SHARE * truth.size) ** (1 / 3))
        corner = random.integers(0, [extent - side for extent in VOLUME])
        truth[tuple(slice(first, first + side) for first in corner)] = True
        scores = random.standard_normal(VOLUME, dtype=np.float32)
        scores[truth] += np.float32(SHIFT)
        start = time.perf_counter()
        metrics.update(scores, truth)
        seconds += time.perf_counter() - start
        counted += truth.size
    start = time.perf_counter()
    found = metrics.compute()
    law = 0.5 * (1 + math.erf(SHIFT / 2))
    result = {
        "voxels": counted,
        "update_seconds": round(seconds),
        "compute_seconds": round(time.perf_counter() - start, 1),
        "peak_MB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "before_MB": round(start_memory / 1024),
        "auroc": found["auroc"],
        "auroc_of_the_law": law,
        "metrics": found,
    }
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "voxels_at_scale.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
