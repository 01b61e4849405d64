"""A cohort in shards for the jobs of a cluster, and their tables put together again.

    python examples/shard_cohort.py split COHORT SHARDS --shards 500     # SHARDS/shard000.json, ...
    python examples/shard_cohort.py join RESULTS --output predictions.csv

Each shard is a datalist of the test scans alone, so that a job reads nothing else; a patient's scans are in one shard,
since a patient's p-value is that of its highest score. Shards have about the same number of scans, and cases keep their
names, whatever folder a job writes into. ``join`` reads every ``predictions.csv`` below RESULTS.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai_anomaly.data import load_cohort
from monai_anomaly.exceptions import InputError
from monai_anomaly.io.atomic import atomic_path


def split(source: Path, folder: Path, count: int, patient_regex: str | None = None) -> list[Path]:
    """Write the shards of a cohort's test side.

    Args:
        source: as ``load_cohort`` takes it.
        folder: for the datalists.
        count: of shards.
        patient_regex: see ``load_cohort``.

    Returns:
        The datalists.

    Raises:
        InputError: if there are fewer patients than shards.
    """
    by_patient: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for item in load_cohort(source, patient_regex=patient_regex).test:
        by_patient[item["patient"]].append(item)
    if not 1 <= count <= len(by_patient):
        raise InputError(source, f"{len(by_patient)} patients cannot fill {count} shards", "Ask for fewer shards.")
    shards: list[list[dict[str, Any]]] = [[] for _ in range(count)]
    # the largest first, each to the shard with the fewest scans
    for patient in sorted(by_patient, key=lambda name: (-len(by_patient[name]), name)):
        min(shards, key=len).extend(by_patient[patient])
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, items in enumerate(shards):
        # what is unknown is left out, as a datalist has it
        entries = [{key: value for key, value in item.items() if value is not None} for item in items]
        path = folder / f"shard{index:0{len(str(count - 1))}d}.json"
        path.write_text(json.dumps({"test": entries}, indent=1) + "\n", encoding="utf-8")
        paths.append(path)
    return paths


def join(folder: Path, output: Path) -> int:
    """Put the tables of all shards together, in the order of their cases.

    Args:
        folder: with a ``predictions.csv`` in each shard's folder.
        output: the table to write.

    Returns:
        How many scans it has.

    Raises:
        InputError: if there is none, their columns differ, or a case is in two.
    """
    rows: dict[str, dict[str, str]] = {}
    columns: list[str] | None = None
    for path in sorted(folder.rglob("predictions.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            found = list(reader.fieldnames or [])
            if columns not in (None, found):
                raise InputError(path, f"has the columns {found}, not {columns}", "Join results of one version.")
            columns = found
            for row in reader:
                if row["case"] in rows:
                    raise InputError(path, f"{row['case']} is in another table too", "Join each shard once.")
                rows[row["case"]] = row
    if columns is None:
        raise InputError(folder, "holds no predictions.csv", "Name the folder of the shards' results.")
    with atomic_path(output) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows[case] for case in sorted(rows))
    return len(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Split or join."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    splitting = commands.add_parser("split")
    splitting.add_argument("cohort", type=Path)
    splitting.add_argument("folder", type=Path)
    splitting.add_argument("--shards", type=int, required=True)
    splitting.add_argument("--patient-regex")
    joining = commands.add_parser("join")
    joining.add_argument("folder", type=Path)
    joining.add_argument("--output", type=Path, required=True)
    given = parser.parse_args(arguments)
    try:
        if given.command == "split":
            paths = split(given.cohort, given.folder, given.shards, given.patient_regex)
            print(f"{len(paths)} shards in {given.folder}")
        else:
            print(f"{join(given.folder, given.output)} scans in {given.output}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
