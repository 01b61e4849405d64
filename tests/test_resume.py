"""Runs that were killed, repeated or shared out give the tables, the page and the maps of one undisturbed run."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle_runs import cohort_evaluator, command, refusal, table, write_nifti
from monai.transforms import Lambdad
from torch import Tensor

from monai_anomaly.calibration import ScanTail
from monai_anomaly.data import ScanPreprocessing
from monai_anomaly.engines import CohortEvaluator, described, scan_loader
from monai_anomaly.exceptions import InputError
from monai_anomaly.networks import AnomalyDetector, AnomalyOutput

GRID = ScanPreprocessing(image_size=(24, 28))
# Who ran it and when differs from run to run.
OF_THE_PROCESS = ("run.json", ".lock")


class Counting(AnomalyDetector):
    """The map is the image, and every slice that is run is counted."""

    def __init__(self, weight: float = 3.0) -> None:
        super().__init__(2, in_channels=1)
        self.weight = torch.nn.Parameter(torch.tensor(weight))
        self.slices = 0
        maxima = {str(i): 2.0 + 0.01 * i for i in range(19)}
        tail = ScanTail.of(torch.linspace(0, 2.4, 1000).numpy())
        self.calibration.fit(maxima, maxima)
        self.calibration.tail.fit({"a": [tail]})

    def detect(self, image: Tensor) -> AnomalyOutput:
        self.slices += len(image)
        return AnomalyOutput(image * self.weight, image.flatten(1).amax(1) * self.weight, image / 2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Four scans of three patients, and one that cannot be read."""
    folder = tmp_path_factory.mktemp("scans")
    items = []
    for index in range(5):
        path = write_nifti(folder / f"s{index}.nii.gz", 2 * index)
        items.append(
            {"case": f"s{index}", "image": str(path), "patient": f"p{index // 2}", "label": None, "mask": None}
        )
    Path(items[3]["image"]).write_text("no scan")
    return items


def run(
    data: list[dict[str, Any]], out: Path, network: Counting | None = None, workers: int = 0, **options: Any
) -> tuple[CohortEvaluator, int]:
    """The evaluator after its run, and how many slices the detector saw."""
    network = network or Counting()
    network.slices = 0
    evaluator = cohort_evaluator(network, GRID, scan_loader(data, GRID, workers), out, output_dir=out, **options)
    evaluator.run()
    return evaluator, network.slices


def content(folder: Path) -> dict[str, bytes]:
    """By path what each file holds."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if Path(name).name not in OF_THE_PROCESS}


@pytest.fixture(scope="module")
def undisturbed(data: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed")
    run(data, out)
    found = content(out)
    assert {"report.html", "predictions.csv", "failures.csv", "lesions.csv", "drift.json"} <= set(found)
    assert {"s0/anomaly_map.nii.gz", "s0/case.json", "s0/case.npz"} <= set(found)
    return found


def test_finished_scans_are_not_computed_again(
    data: list[dict[str, Any]], tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    assert run(data, tmp_path / "out")[1] == 4 * 3
    assert run(data, tmp_path / "out")[1] == 0
    assert content(tmp_path / "out") == undisturbed
    # one that is incomplete is, and one whose record is broken
    (tmp_path / "out" / "s1" / "restoration.nii.gz").unlink()
    (tmp_path / "out" / "s4" / "case.npz").write_bytes(b"half")
    assert run(data, tmp_path / "out")[1] == 2 * 3
    assert content(tmp_path / "out") == undisturbed
    assert run(data, tmp_path / "out", resume=False)[1] == 4 * 3
    assert content(tmp_path / "out") == undisturbed
    assert json.loads((tmp_path / "out" / "run.json").read_text())["state"] == "complete"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_run_again_is_equal_to_the_bit(
    data: list[dict[str, Any]], tmp_path: Path, undisturbed: dict[str, bytes], workers: int
) -> None:
    run(data, tmp_path, workers=workers)
    assert content(tmp_path) == undisturbed


def test_a_scan_that_changed_is_computed_again_wherever_it_lies(data: list[dict[str, Any]], tmp_path: Path) -> None:
    moved = [{**item, "image": str(shutil.copy(item["image"], tmp_path))} for item in data]
    run(data, tmp_path / "out")
    assert run(moved, tmp_path / "out")[1] == 0
    assert table(tmp_path / "out" / "predictions.csv")[0]["image"] == moved[0]["image"]
    write_nifti(Path(moved[0]["image"]), 20)
    assert run(moved, tmp_path / "out")[1] == 3


@pytest.mark.slow
@pytest.mark.parametrize("what", ["weights", "mask", "clean-up", "overview", "report"])
def test_other_settings_compute_all_again(data: list[dict[str, Any]], tmp_path: Path, what: str) -> None:
    options: dict[str, Any] = {
        "weights": {"network": Counting(2.5)},
        "mask": {"mask_rule": "voxel"},
        "clean-up": {"least_lesion_mm3": 30},
        "overview": {"overview_slices": 1},
        "report": {},
    }[what]
    run(data, tmp_path / "out", report=what != "report")
    (tmp_path / "out" / "s0" / "notes.txt").write_text("mine")
    assert run(data, tmp_path / "out", **options)[1] == 4 * 3
    run(data, tmp_path / "fresh", **options)
    (tmp_path / "out" / "s0" / "notes.txt").unlink()
    for name, found in content(tmp_path / "out").items():
        if name != "s0/case.json":  # it knows of the notes
            assert found == content(tmp_path / "fresh")[name], name


def test_settings_are_told_apart() -> None:
    assert described(Counting(1.0)) == described(Counting(1.0)) != described(Counting(2.0))
    assert described([1, 1.0]) != described([1.0, 1])
    assert described(GRID) != described(ScanPreprocessing(image_size=(24, 28), headroom=2))
    above = [lambda x: x > 0.5, lambda x: x > 0.5, lambda x: x > 0.7]
    one, again, other = (described(Lambdad("a", function)) for function in above)
    assert one == again != other


def test_a_run_that_stops_leaves_no_table_of_another(data: list[dict[str, Any]], tmp_path: Path) -> None:
    run(data, tmp_path, Counting(2.5))
    before = json.loads((tmp_path / "run.json").read_text())

    class Stopping(Counting):
        def detect(self, image: Tensor) -> AnomalyOutput:
            if self.slices == 2 * 3:
                raise KeyboardInterrupt
            return super().detect(image)

    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path, Stopping())
    assert [row["case"] for row in table(tmp_path / "predictions.csv")] == ["s0", "s1"]
    assert not (tmp_path / "report.html").exists()
    assert not (tmp_path / "drift.json").exists()
    manifest = json.loads((tmp_path / "run.json").read_text())
    assert (manifest["state"], manifest["pid"]) == ("interrupted", os.getpid())
    runs = [json.loads((tmp_path / f"s{i}" / "case.json").read_text())["run"] for i in (0, 1, 2, 4)]
    assert runs == [manifest["run"]] * 2 + [before["run"]] * 2


@pytest.mark.slow
def test_handlers_of_metrics_have_scans_computed_again(data: list[dict[str, Any]], tmp_path: Path) -> None:
    labelled = [{**item, "label": int(item["case"] > "s1")} for item in data]
    assert [run(labelled, tmp_path, evaluate=True)[1] for _ in range(2)] == [12, 12]
    with pytest.raises(InputError, match="MetricsHandler cannot be put together from shards"):
        run(labelled, tmp_path, evaluate=True, shard="1/2")


@pytest.mark.slow
@pytest.mark.parametrize("shards", [2, 7])
def test_shards_are_merged_to_one_run(
    data: list[dict[str, Any]], tmp_path: Path, undisturbed: dict[str, bytes], shards: int
) -> None:
    slices = 0
    for number in range(shards, 0, -1):
        evaluator, seen = run(data, tmp_path, shard=f"{number}/{shards}")
        slices += seen
        assert not (tmp_path / "predictions.csv").exists()
        if any(failure["case"] == "s3" for failure in evaluator.failures):
            with pytest.raises(SystemExit, match="s3"):
                evaluator.finish(tmp_path / "failures.csv")
    assert slices == 4 * 3
    evaluator, seen = run(data, tmp_path, shard="merge")
    assert seen == 0
    assert content(tmp_path).keys() == {*undisturbed, *(f".lock.{n + 1}-of-{shards}" for n in range(shards))}
    assert {name: found for name, found in content(tmp_path).items() if name in undisturbed} == undisturbed
    with pytest.raises(SystemExit, match=r"s3: .*failures\.csv|s3"):
        evaluator.finish(tmp_path / "failures.csv")


@pytest.mark.slow
def test_what_is_no_whole_of_shards_is_not_merged(data: list[dict[str, Any]], tmp_path: Path) -> None:
    for shard in ("0/2", "3/2", "1", "half"):
        with pytest.raises(InputError, match="is no share of a cohort"):
            run(data, tmp_path, shard=shard)
    assert "holds no shards" in refusal(run, data, tmp_path, shard="merge")
    run(data, tmp_path, shard="1/2")
    assert "shard 2/2 is missing" in refusal(run, data, tmp_path, shard="merge")
    run(data, tmp_path, shard="2/2", alpha=0.1)
    assert "shard 2/2 was run with other settings" in refusal(run, data, tmp_path, shard="merge")
    run(data, tmp_path, shard="2/2")
    manifest = tmp_path / "run.2-of-2.json"
    manifest.write_text(manifest.read_text().replace('"complete"', '"running"'))
    assert "shard 2/2 is running" in refusal(run, data, tmp_path, shard="merge")
    run(data, tmp_path, shard="2/2")
    shutil.rmtree(tmp_path / "s2")
    assert "case s2: no shard has finished it" in refusal(run, data, tmp_path, shard="merge")
    # the whole run takes what is there, and computes the rest
    assert run(data, tmp_path)[1] == 3
    assert len(table(tmp_path / "predictions.csv")) == 4


# ---- processes ---------------------------------------------------------------------------------------------------

# Forked, so that a process is at work at once.
FORK = multiprocessing.get_context("fork")


@pytest.mark.slow
def test_a_second_run_into_the_same_folder_is_refused(data: list[dict[str, Any]], tmp_path: Path) -> None:
    many = [{**data[0], "case": f"c{i}"} for i in range(400)]
    first = FORK.Process(target=run, args=(many, tmp_path))
    first.start()
    try:
        while not (tmp_path / "run.json").is_file():
            time.sleep(0.01)
        line = refusal(run, data, tmp_path)
        assert f"another run writes into it (process {first.pid} on {os.uname().nodename}, since 20" in line
        assert json.loads((tmp_path / "run.json").read_text())["pid"] == first.pid
        # nor does a shard come in between
        assert "another run" in refusal(run, data, tmp_path, shard="1/2")
    finally:
        first.kill()
        first.join()
    run(data, tmp_path)
    assert len(table(tmp_path / "predictions.csv")) == 4


@pytest.mark.slow
def test_processes_of_torchrun_share_the_scans(
    data: list[dict[str, Any]], tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    program = f"""
import os, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_resume
# a file for each rank: on one pipe their lines would mix
Path("slices" + os.environ["RANK"]).write_text(str(test_resume.run({data!r}, Path("out"))[1]))
"""
    (tmp_path / "program.py").write_text(program)
    done = command(
        *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "program.py"), folder=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert sorted(int(path.read_text()) for path in tmp_path.glob("slices*")) == [3, 9]
    assert {name: found for name, found in content(tmp_path / "out").items() if name in undisturbed} == undisturbed


@pytest.mark.slow
def test_kills_at_any_moment_leave_no_trace(
    data: list[dict[str, Any]], tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    # what is caught in the act is a matter of the machine; what must hold is asserted within
    kill_and_compare(data, tmp_path / "out", undisturbed, kills=10, seed=0)


def kill_and_compare(
    data: list[dict[str, Any]], out: Path, undisturbed: dict[str, bytes], kills: int, seed: int
) -> dict[str, int]:
    """Kill runs at random moments, some of them over what an earlier run with other settings left; compare the next."""
    generator = random.Random(seed)
    counts = dict.fromkeys(("killed", "killed while writing", "compared", "resumed"), 0)
    started = time.monotonic()
    run(data, out)
    length = time.monotonic() - started
    while counts["killed"] < kills:
        options = {"alpha": 0.1} if generator.random() < 0.3 else {}
        process = FORK.Process(target=run, args=(data, out), kwargs=options)
        process.start()
        time.sleep(generator.uniform(0, length))
        process.kill()
        process.join()
        counts["killed"] += process.exitcode == -signal.SIGKILL
        counts["killed while writing"] += any(path.name.endswith((".new", ".old")) for path in out.glob(".*"))
        check_whole(out)
        if generator.random() < 0.4:
            _, slices = run(data, out)
            counts["compared"] += 1
            counts["resumed"] += slices < 4 * 3
            assert content(out) == undisturbed
            if generator.random() < 0.7:
                shutil.rmtree(out)
    run(data, out)
    assert content(out) == undisturbed
    return counts


def check_whole(out: Path) -> None:
    """No case folder is half written, and no table names a case of another run."""
    for folder in out.glob("s?"):
        names = {path.name for path in folder.iterdir()}
        assert {"anomaly_map.nii.gz", "restoration.nii.gz", "anomaly_mask.nii.gz", "case.json"} <= names
    if (out / "predictions.csv").exists():
        this = json.loads((out / "run.json").read_text())["run"]
        for row in table(out / "predictions.csv"):
            assert json.loads((out / row["case"] / "case.json").read_text())["run"] == this
