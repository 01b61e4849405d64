"""Lay maps of a detector of 2-D brain slices on whole FLAIR volumes, and say what it finds of their lesions.

    python examples/brain_volumes.py OUT/models RESULTS VOLUME MASK [VOLUME MASK ...]

OUT is a training of ``bundles/dae`` with ``brain_slices.yaml`` and calibration patients. Each axial slice is turned as
such image files lie (front up) and goes through the detector as one image. Writes RESULTS/<n>_map.nii.gz, a figure of
the slice with the most lesion, and one JSON line a volume: AUROC and AP of the voxels of the slices with tissue, lesion
volume and how much of it lies above the detector's calibrated threshold. Nothing is fitted here; the reference masks
are only compared with.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from sklearn.metrics import average_precision_score, roc_auc_score

from monai_anomaly.engines import StackInferer, load_detector
from monai_anomaly.transforms import foreground_mask

# Slices with less foreground than this share of the largest one hold too little brain for a detector of brain slices.
LEAST_TISSUE = 0.3


def front_up(volume: np.ndarray) -> np.ndarray:
    """Slices of a volume in RAS order as image files lie: (S, rows, columns), the front up, the right on the left."""
    return volume.transpose(2, 1, 0)[:, ::-1, ::-1]


def back(slices: np.ndarray) -> np.ndarray:
    """The inverse of ``front_up``."""
    return slices[:, ::-1, ::-1].transpose(2, 1, 0)


def map_of(volume: np.ndarray, files: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Map and reconstruction of a volume in RAS order, and which slices were looked at."""
    slices = front_up(volume)
    foreground = front_up(foreground_mask(torch.from_numpy(volume)).numpy()).sum(axis=(1, 2))
    chosen = foreground >= LEAST_TISSUE * foreground.max()
    found, restored = np.zeros(slices.shape, np.float32), slices.astype(np.float32).copy()
    inferer = StackInferer()
    for index in np.flatnonzero(chosen):
        image = MetaTensor(torch.from_numpy(slices[index].astype(np.float32).copy())[None, ..., None])
        image.meta["scan_kind"] = "image"
        stack = files.preprocessing.stack(image)
        output = inferer(stack, files.network)
        found[index] = files.preprocessing.to_scan(output.anomaly_map, stack)[0, ..., 0].numpy()
        restored[index] = files.preprocessing.to_scan(output.restoration, stack, intensities=True)[0, ..., 0].numpy()
    return back(found), back(restored), chosen


def figure(path: Path, volume: np.ndarray, restored: np.ndarray, found: np.ndarray, lesion: np.ndarray) -> None:
    """Input with the lesion's outline, reconstruction and map of the slice with the most lesion."""
    from matplotlib.figure import Figure

    place = int(lesion.sum(axis=(0, 1)).argmax())
    scan, again, anomaly, truth = (front_up(each)[place] for each in (volume, restored, found, lesion))
    canvas = Figure(figsize=(9, 3.2))
    for axes, (title, image) in zip(
        canvas.subplots(1, 3), (("FLAIR, lesion outlined", scan), ("reconstruction", again), ("map", anomaly))
    ):
        top = float(np.percentile(scan, 99.8)) if title != "map" else float(anomaly.max())
        axes.imshow(image, cmap="gray" if title != "map" else "inferno", vmin=float(image.min()), vmax=top)
        if title != "reconstruction":
            axes.contour(truth, [0.5], colors="cyan", linewidths=0.8)
        axes.set_title(title, fontsize=9)
        axes.axis("off")
    canvas.tight_layout()
    canvas.savefig(path, dpi=100)


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("files", nargs="+", help="volume and reference mask, in turn")
    parser.add_argument("--threshold", type=float, help="of the map, for a detector without calibration patients")
    options = parser.parse_args(arguments)
    if len(options.files) % 2:
        parser.error("name a reference mask for each volume")
    options.results.mkdir(parents=True, exist_ok=True)
    files = load_detector(options.models)
    maxima = files.network.calibration.map_maxima
    # the highest value that any calibration patient's map has
    threshold = options.threshold if options.threshold is not None else float(maxima.max()) if maxima.numel() else None
    rows = []
    for number, (volume_file, mask_file) in enumerate(zip(options.files[::2], options.files[1::2]), start=1):
        image = nib.as_closest_canonical(nib.load(volume_file))
        volume = np.array(image.dataobj, dtype=np.float32, order="C")
        lesion = np.asarray(nib.as_closest_canonical(nib.load(mask_file)).dataobj) > 0
        found, restored, chosen = map_of(volume, files)
        truth, values = lesion[..., chosen].ravel(), found[..., chosen].ravel()
        millilitres = float(np.prod(image.header.get_zooms()[:3])) / 1000
        row = {
            "volume": f"{Path(volume_file).parent.name}/{Path(volume_file).name}",
            "lesion_ml": round(lesion.sum() * millilitres, 2),
            "share_of_lesion_voxels": round(float(truth.mean()), 4),
            "auroc": round(float(roc_auc_score(truth, values)), 3),
            "ap": round(float(average_precision_score(truth, values)), 3),
        }
        if threshold is not None:
            flagged = found > threshold
            row |= {
                "threshold": round(threshold, 3),
                "found_ml": round(float((flagged & lesion).sum() * millilitres), 2),
                "flagged_outside_ml": round(float((flagged & ~lesion).sum() * millilitres), 2),
            }
        print(json.dumps(row), flush=True)
        rows.append(row)
        nib.save(nib.Nifti1Image(found, image.affine), options.results / f"{number}_map.nii.gz")
        figure(options.results / f"{number}.png", volume, restored, found, lesion)
    (options.results / "volumes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


if __name__ == "__main__":
    main()
