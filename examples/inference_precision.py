"""How much float16 and the memory format channels_last change the maps and scores of trained detectors.

    python examples/inference_precision.py OUT/ddrid/models OUT/hfrae/models --output precision.json

Each argument is a folder of a detector (``detector.json`` and its weights). The images are smooth noise. Float16 is
that of autocast, on a GPU where there is one, else as the CPU computes it, which is slow. Research use only, not for
diagnosis.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import torch
from torch import Tensor

from monai_anomaly.engines import load_detector
from monai_anomaly.engines.inferer import set_memory_format
from monai_anomaly.networks import AnomalyOutput


def largest_change(plain: Tensor, other: Tensor) -> float | None:
    """The largest difference, relative to the plain side's largest value; None where it is no number."""
    change = float((plain - other.float()).abs().max() / plain.abs().max())
    return change if change == change else None


def changes(folder: Path, pictures: int) -> dict[str, object]:
    """Of one detector: the largest change of map and score by each form."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    detector = load_detector(folder, None)
    network = detector.network.eval().to(device)
    sides = detector.preprocessing.config["image_size"]
    noise = torch.rand(pictures, network.in_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    image = torch.nn.functional.interpolate(noise, size=tuple(sides), mode="bilinear").to(device)

    last = copy.deepcopy(network)
    set_memory_format(last, torch.channels_last)
    outputs: dict[str, AnomalyOutput] = {}
    with torch.no_grad():
        plain = network.detect(image)
        outputs["channels_last"] = last.detect(image.contiguous(memory_format=torch.channels_last))
        with torch.autocast(device, dtype=torch.float16):
            outputs["float16"] = network.detect(image)
    return {
        "detector": type(network).__name__,
        "size": list(sides),
        "device": device,
        **{
            form: {
                "map": largest_change(plain.anomaly_map, output.anomaly_map),
                "score": largest_change(plain.anomaly_score, output.anomaly_score),
            }
            for form, output in outputs.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("detectors", type=Path, nargs="+", help="folders of detectors")
    parser.add_argument("--pictures", type=int, default=2)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    rows = [changes(folder, given.pictures) for folder in given.detectors]
    given.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
