"""What inference of one volume costs: seconds and peak memory against the number of slices.

    python examples/inference_cost.py --slices 40 155 310

A full-width ProxyAno at 256 x 256 (its weights do not matter to the cost) reads, maps and writes a simulated volume of
240 x 240 voxels, each in a process of its own. The volume's own size is printed beside the memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIDE = 240


def measure(slices: int) -> None:
    """Run one volume in this process and print its cost as JSON."""
    import nibabel as nib
    import numpy as np

    from monai_anomaly.engines import CohortEvaluator, scan_loader
    from monai_anomaly.networks import ProxyAno
    from monai_anomaly.transforms import ScanPreprocessing

    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        axis = np.linspace(-1, 1, SIDE, dtype=np.float32)
        disc = (axis[:, None] ** 2 + axis**2 < 0.7).astype(np.float32)
        noise = np.random.default_rng(0).normal(1, 0.1, (SIDE, SIDE, slices)).astype(np.float32)
        image = folder / "volume.nii.gz"
        nib.Nifti1Image(disc[..., None] * noise, np.eye(4)).to_filename(image)
        del noise
        network, preprocessing = ProxyAno(), ScanPreprocessing((256, 256))
        item = {"case": "volume", "image": str(image), "patient": "volume", "label": None, "mask": None}
        loaded, start = peak(), time.perf_counter()
        evaluator = CohortEvaluator(
            network, preprocessing, scan_loader([item], preprocessing), folder / "out", progress=False
        )
        evaluator.run()
        evaluator.finish()
        seconds = time.perf_counter() - start
    volume = SIDE * SIDE * slices * 4
    print(
        json.dumps(
            {
                "slices": slices,
                "seconds": round(seconds, 1),
                "peak_MB": round(peak() / 1e6),
                "before_MB": round(loaded / 1e6),
                "volume_MB": round(volume / 1e6),
                "growth_in_volumes": round((peak() - loaded) / volume, 1),
            }
        )
    )


def main() -> None:
    """Measure each number of slices in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, nargs="+", default=[40, 155, 310])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        measure(given.one)
        return
    for slices in given.slices:
        subprocess.run([sys.executable, __file__, "--one", str(slices)], check=True)


if __name__ == "__main__":
    main()
