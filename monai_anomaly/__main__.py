"""``python -m monai_anomaly``: bundles, packages, datalists, a comparison of detectors, benchmarks."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from monai_anomaly import __version__
from monai_anomaly.bundle import bundles_folder
from monai_anomaly.exceptions import InputError

__all__ = ["bundles_folder", "main"]


def write_bundles(destination: Path) -> list[Path]:
    """Copy the bundles into a folder.

    Args:
        destination: made where it is missing.

    Returns:
        The bundles' folders.

    Raises:
        InputError: if one of them is there already, or the folder cannot be written to.
    """
    from monai_anomaly.io.atomic import ensure_writable

    ensure_writable(destination)
    written = []
    for bundle in sorted(path for path in bundles_folder().iterdir() if (path / "configs").is_dir()):
        target = destination / bundle.name
        if target.exists():
            raise InputError(target, "exists already", "Name another folder, or remove it first.")
        shutil.copytree(bundle, target, ignore=shutil.ignore_patterns("output", "models", "__pycache__"))
        written.append(target)
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Args:
        arguments: without the program's name; None reads them from the process.

    Returns:
        The exit code: 0, or 1 after an error that was printed in one line.
    """
    parser = argparse.ArgumentParser(
        prog="python -m monai_anomaly", description="Research use only, not for diagnosis."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)

    bundles = commands.add_parser("bundles", help="write the bundles into a folder")
    bundles.add_argument("destination", type=Path)

    package = commands.add_parser("package", help="make a bundle of a trained detector")
    package.add_argument("run", type=Path, help="the output_dir of a training (and of its evaluation)")
    package.add_argument("destination", type=Path, help="the bundle's folder, or a file that ends with .zip")
    package.add_argument("--bundle", type=Path, help="the bundle that it was trained with, where it is none of ours")
    package.add_argument("--figure", type=Path, help="an image for its page; no scan is shown without")
    package.add_argument("--data-license", type=Path, help="a text on the training scans' licence")
    package.add_argument("--large_files", "--large-files", metavar="URL", help="where the weights will be, not in it")

    datalist = commands.add_parser("datalist", help="describe a folder of scans as a datalist, split by patient")
    datalist.add_argument("folder", type=Path)
    datalist.add_argument("-o", "--output", type=Path, required=True, help="the JSON to write")
    datalist.add_argument("--patient-regex", help="its first group, found in a scan's path, is the patient")
    datalist.add_argument("--calibration-fraction", type=float, default=0.2, help="share of normal patients held out")
    datalist.add_argument("--test-fraction", type=float, default=0.0, help="share of normal patients for the test")
    datalist.add_argument("--seed", type=int, default=0)
    datalist.add_argument("--series", help="of DICOM studies, the series with this UID or description")

    recommended = commands.add_parser("recommend", help="compare detectors on normal scans: which one to take")
    recommended.add_argument("dataset_dir", type=Path, help="a folder of normal scans, or a datalist")
    recommended.add_argument("--out", type=Path, required=True, help="folder of the trainings and recommend.csv")
    recommended.add_argument("--methods", nargs="+", help="some of the detectors")
    recommended.add_argument("--minutes", type=float, default=5.0, help="of training for each; CPU time on a CPU")
    recommended.add_argument("--labelled", type=Path, help="labelled scans, none of them of the later test")
    recommended.add_argument("--options", nargs="+", default=[], metavar="[METHOD:]id=value", help="of train.yaml")
    recommended.add_argument("--seed", type=int, default=0)
    series = commands.add_parser("series", help="list the DICOM series below a folder, and what is wrong with each")
    series.add_argument("folder", type=Path)
    series.add_argument("--json", action="store_true", help="JSON instead of a table")

    from monai_anomaly.benchmarks.cli import add_arguments, run

    add_arguments(commands.add_parser("benchmark", help="train and test methods on published sets"))
    given = parser.parse_args(arguments)
    try:
        if given.command == "benchmark":
            return run(given)
        if given.command == "bundles":
            for path in write_bundles(given.destination):
                print(path)
        elif given.command == "recommend":
            _recommend(given)
        elif given.command == "package":
            from monai_anomaly.packaging import package_detector

            parts = (given.bundle, given.figure, given.data_license, given.large_files)
            for line in package_detector(given.run, given.destination, *parts):
                print(line)
            print(given.destination)
        elif given.command == "series":
            _print_series(given.folder, given.json)
        else:
            _write_datalist(given)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _print_series(folder: Path, as_json: bool) -> None:
    from monai_anomaly.io.series import list_series, series_columns

    found, others = list_series(folder)
    rows = [series_columns(series) for series in found]
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        print("\t".join(("uid", "modality", "description", "files", "slices", "size", "spacing", "problem")))
        for row in rows:
            values = (
                " x ".join(map(str, v)) if isinstance(v, list) else " ".join(str(v).split()) for v in row.values()
            )
            print("\t".join(values))
    if others:
        listed = ", ".join(f"{what}: {count}" for what, count in sorted(others.items()))
        print(f"passed over: {listed}", file=sys.stderr)


def _write_datalist(given: argparse.Namespace) -> None:
    from monai_anomaly.data.cohort import write_datalist

    written = write_datalist(
        given.folder,
        given.output,
        patient_regex=given.patient_regex,
        calibration_fraction=given.calibration_fraction,
        test_fraction=given.test_fraction,
        seed=given.seed,
        series=given.series,
    )
    for side in ("training", "calibration", "test"):
        items = written.get(side, [])
        print(f"{side}: {len(items)} scans of {len({item['patient'] for item in items})} patients")


def _recommend(given: argparse.Namespace) -> None:
    from monai_anomaly.benchmarks.cli import parsed_options
    from monai_anomaly.benchmarks.recommend import DEFAULT_METHODS, recommend, recommendation_text

    candidates = recommend(
        given.dataset_dir,
        given.out,
        given.methods or DEFAULT_METHODS,
        minutes=given.minutes,
        labelled=given.labelled,
        options=parsed_options(given.options),
        seed=given.seed,
    )
    print(recommendation_text(candidates))
    print(f"{given.out / 'recommend.csv'}; research use only, not for diagnosis")


if __name__ == "__main__":
    sys.exit(main())
