"""Do the stated error rates hold on real scans, and do calibrated maps rank voxels better? Trains a bundle once.

    python examples/calibration_on_real_data.py COHORT OUT --bundle bundles/hfrae --train 20 --calibration 20 \
      --patient-regex '(TCGA_.._....)' --options "image_size=[128,128]" weights=FILE max_epochs=40

Of the normal training patients of COHORT ``--train`` train (a tenth of them give the validation loss) and
``--calibration`` calibrate. The calibration patients, all others and the normal test scans are the normals that the
detector has not been trained on: ``--splits`` times some of them are drawn to calibrate with and the others tested
(see ``calibration_bench.py``), by the scans' scores and by the maps' highest values. Where the test scans have masks,
the average precision of the raw map, of -log10 p and of the z-score are measured on them, once. One JSON object goes
to ``OUT/result.json``.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from calibrated_maps import MapMetrics
from calibration_bench import read_patients, resplit

from monai_anomaly.data import load_cohort
from monai_anomaly.engines import StackInferer, load_detector, scan_loader, still_improving
from monai_anomaly.metrics import image_metrics

Item = dict[str, Any]


def split_normals(normals: Sequence[Item], train: int, calibration: int, seed: int) -> dict[str, list[Item]]:
    """Share out normal items by patient.

    Args:
        normals: items with ``patient``.
        train: patients to train on; a tenth of them, at least one, is the validation side.
        calibration: patients to calibrate on.
        seed: of the order of the patients.

    Returns:
        ``training``, ``validation``, ``calibration`` and ``spare``.
    """
    patients = sorted({item["patient"] for item in normals})
    order = [patients[index] for index in np.random.default_rng(seed).permutation(len(patients))]
    held = max(1, round(train / 10))
    ends = {"training": train - held, "validation": train, "calibration": train + calibration, "spare": len(order)}
    sides: dict[str, list[Item]] = {}
    start = 0
    for name, end in ends.items():
        chosen = set(order[start:end])
        sides[name] = [item for item in normals if item["patient"] in chosen]
        start = end
    return sides


def write_split(path: Path, sides: dict[str, list[Item]]) -> None:
    """Write the sides of a split as a datalist."""
    kept = {
        side: [{key: item[key] for key in ("case", "image", "patient", "label", "mask") if item.get(key) is not None}
               for item in items]
        for side, items in sides.items()
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept, indent=1), encoding="utf-8")


def train(bundle: Path, override_configs: Sequence[str], datalist: Path, output: Path, options: Sequence[str]) -> None:
    """Run the bundle's training."""
    configs = [str(bundle / "configs" / f"{name}.yaml") for name in ("train", *override_configs)]
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(configs)]
    command += ["--bundle_root", str(bundle), "--dataset_dir", str(datalist), "--output_dir", str(output)]
    for name, _, value in (option.partition("=") for option in options):
        command += [f"--{name}", value]
    subprocess.run(command, check=True)


@torch.no_grad()
def score(output: Path, normals: Sequence[Item], test: Sequence[Item]) -> dict[str, Any]:
    """Score what was not trained on: ``OUT/normals.csv``, and the metrics of the test side."""
    detector = load_detector(output / "models")
    preprocessing, inferer = detector.preprocessing, StackInferer()
    maps = MapMetrics(detector.network, preprocessing)
    rows, labels, scores = [], [], []
    normal_cases, tested = ({item["case"] for item in items} for items in (normals, test))
    masked = any(item.get("mask") for item in test)
    together = [*normals, *(item for item in test if item["case"] not in normal_cases)]
    for entry in scan_loader(together, preprocessing):
        item = entry["item"]
        if "error" in entry:
            raise SystemExit(f"error: {item['case']}: {entry['error']}")
        found = inferer(entry["stack"], detector.network, entry["tissue"])
        value = float(found.anomaly_score)
        if item["case"] in normal_cases:
            highest = float(preprocessing.to_scan(found.anomaly_map, entry["stack"]).max())
            rows.append({"patient": item["patient"], "anomaly_score": value, "map_maximum": highest})
        if item["case"] in tested:
            labels.append(item["label"])
            scores.append(value)
            if masked:
                maps.update(entry, found)
    with (output / "normals.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["patient", "anomaly_score", "map_maximum"])
        writer.writeheader()
        writer.writerows(rows)
    return {"image": image_metrics(labels, scores), "pixel": maps.compute()}


def losses(output: Path) -> list[dict[str, Any]]:
    """The loss curves of the training, as written; empty where nothing was trained."""
    found = sorted((output / "training").glob("*.csv"))
    curves = [path for path in found if path.name != "failures.csv"]
    if not curves:
        return []
    with curves[0].open(encoding="utf-8", newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    for row in rows:
        row |= {key: float(row[key]) if row[key] else None for key in ("train_loss", "val_loss")}
    return rows


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Split, train, score, resplit.

    Args:
        arguments: of the command line; None reads them from the process.

    Returns:
        What was written to ``result.json``.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument(
        "--override-configs", nargs="*", default=[], help="config files of the bundle, merged over train.yaml"
    )
    parser.add_argument("--options", nargs="*", default=[], metavar="id=value", help="as on the bundle's command line")
    parser.add_argument("--patient-regex")
    parser.add_argument("--train", type=int, required=True, help="patients to train on")
    parser.add_argument("--calibration", type=int, required=True, help="calibration patients, here and in each split")
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.05, 0.1])
    parser.add_argument("--splits", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)

    cohort = load_cohort(given.cohort, patient_regex=given.patient_regex, calibration_fraction=0.0, seed=given.seed)
    sides = split_normals(cohort.training, given.train, given.calibration, given.seed)
    spare = sides.pop("spare")
    datalist = given.output / "cohort.json"
    write_split(datalist, {**sides, "test": cohort.test})
    train(given.bundle, given.override_configs, datalist, given.output, [*given.options, f"seed={given.seed}"])
    unseen = [*sides["calibration"], *spare, *(item for item in cohort.test if item["label"] == 0)]
    found = score(given.output, unseen, cohort.test)
    rates = {}
    for column in ("anomaly_score", "map_maximum"):
        highest = read_patients(given.output / "normals.csv", column)
        rates[column] = [resplit(highest, given.calibration, alpha, given.splits, given.seed) for alpha in given.alphas]
    description = json.loads((given.output / "models" / "detector.json").read_text(encoding="utf-8"))
    curves = losses(given.output)
    result = {
        "bundle": given.bundle.name,
        "override_configs": given.override_configs,
        "options": given.options,
        "cohort": given.cohort.name,
        "seed": given.seed,
        "network": description["network"]["name"],
        "epochs": description["training"]["epochs"],
        "patients": {side: len({item["patient"] for item in items}) for side, items in sides.items()},
        "unseen_normal_patients": len({item["patient"] for item in unseen}),
        **found,
        "rates": rates,
        "under_trained": still_improving(curves),
        "losses": curves,
    }
    (given.output / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for column, rows in rates.items():
        for row in rows:
            print(
                f"{column}: alpha {row['alpha']:g}: {row['mean_fpr']:.4f} ± {row['monte_carlo_error']:.4f} "
                f"(expected {row['expected_fpr']:.4f}), spread {row['spread']:.4f} ({row['expected_spread']:.4f})"
            )
    for name, metrics in found["pixel"].items():
        print(f"{name}: pixel AP {metrics['ap']:.4f}, AUROC {metrics['auroc']:.4f}")
    return result


if __name__ == "__main__":
    main()
