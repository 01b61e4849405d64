"""The runner: every unit once, whatever fails or is killed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmark_sets import SIDE, Stripes, stripes, tiny_suite
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import mannwhitneyu

import monai_anomaly.engines.stages as stages
from monai_anomaly.__main__ import main
from monai_anomaly.benchmarks import BenchmarkRun, load_methods, load_suite, read_results, suite_names
from monai_anomaly.benchmarks.images import ImageSetDataset, ImageSetReader, limited, resized_mask, split_normals
from monai_anomaly.benchmarks.processes import claim, process_share
from monai_anomaly.benchmarks.results import append_line
from monai_anomaly.benchmarks.table import build_tables
from monai_anomaly.data.published import PUBLISHED_SETS, ImageSet
from monai_anomaly.exceptions import InputError

OPTIONS = {"autoencoder": {"max_epochs": 4, "network_def#channels": [4, 4]}, "zscore": {}}


@pytest.fixture(autouse=True)
def _stripes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PUBLISHED_SETS, "stripes", Stripes)


def benchmark(folder: Path, out: str, **options: Any) -> BenchmarkRun:
    suite = options.pop("suite", None) or load_suite(tiny_suite(folder))
    return BenchmarkRun(suite, folder / out, progress=False, **{"options": OPTIONS, **options})


def test_a_unit_says_what_it_was(tmp_path: Path) -> None:
    outcome = benchmark(tmp_path, "out", methods=["autoencoder"], seeds=[3]).run()
    (row,) = read_results([tmp_path / "out"])
    assert outcome.done == [row["unit"]]
    assert not outcome.failures
    assert (row["set"], row["problem"], row["method"], row["seed"], row["scale"]) == (
        "stripes",
        "masks",
        "autoencoder",
        3,
        "smoke",
    )
    assert row["pictures"] == {
        "training": 30,
        "held_out": 6,
        "calibration": 24,
        "test_normal": 12,
        "test_abnormal": 12,
        "whole": True,
        "notes": [],
    }
    assert row["stages"] == [{"stage": "reconstruction", "epochs": 4, "steps": 16}]
    assert [point["epoch"] for point in row["losses"]] == [1, 2, 3, 4]
    assert row["versions"]["torch"] == torch.__version__
    assert row["image_size"] == [SIDE, SIDE]
    assert row["configuration"]["overrides"]["network_def#channels"] == [4, 4]
    saved = np.load(tmp_path / "out" / "scores" / f"{row['unit']}.npz")
    normal, abnormal = (saved["scores"][saved["labels"] == label] for label in (0, 1))
    expected = mannwhitneyu(abnormal, normal).statistic / (len(normal) * len(abnormal))
    assert row["metrics"]["image"]["auroc"] == pytest.approx(expected)
    interval = row["metrics"]["image"]["intervals"]["intervals"]["auroc"]
    assert interval["low"] <= interval["value"] <= interval["high"]
    assert 0 < row["metrics"]["pixel"]["aupro"] <= 1
    assert 0 <= row["metrics"]["decision"]["false_positive_rate"] <= 1
    np.testing.assert_allclose(saved["areas"][12:], [m.mean() for m in stripes(12, 2, True)[1]])
    shown = np.load(tmp_path / "out" / "shown" / f"{row['unit']}.npz")
    assert shown["images"].shape == (12, SIDE, SIDE, 1)
    np.testing.assert_array_equal(shown["scores"], saved["scores"][shown["index"]])
    assert saved["scores"][:12].min() == shown["scores"][0]


def test_clips_are_scored_as_videos(tmp_path: Path) -> None:
    benchmark(tmp_path, "out", methods=["zscore"], problems=["clips"]).run()
    (row,) = read_results([tmp_path / "out"])
    assert row["metrics"]["video"]["auroc"] == row["metrics"]["image"]["auroc"]
    assert row["metrics"]["video"]["auroc_transductive"] is not None
    assert row["facts"] == {"frames": 24}
    assert row["pictures"]["training"] % 5 == 0  # whole clips of five frames
    # five calibration clips carry no rate of 0.05: no figure, and the reason
    assert row["metrics"]["decision"]["false_positive_rate"] is None
    assert "19" in row["metrics"]["decision"]["undefined"]["false_positive_rate"]


@pytest.mark.slow
def test_a_killed_run_ends_as_one_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = load_suite(tiny_suite(tmp_path, scales={"smoke": {"resamples": 0, "calibration": 0.2, "save_interval": 1}}))
    benchmark(tmp_path, "whole", suite=suite).run()
    record, records = stages._StagedRun._record, []

    def kill(self: Any, *arguments: Any) -> None:
        records.append(1)
        if len(records) == 3:
            raise KeyboardInterrupt
        record(self, *arguments)

    monkeypatch.setattr(stages._StagedRun, "_record", kill)
    with pytest.raises(KeyboardInterrupt):
        benchmark(tmp_path, "killed", suite=suite).run()
    assert read_results([tmp_path / "killed"]) == []
    (checkpoint,) = (tmp_path / "killed" / "units").glob("*/checkpoint.pt")
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 2
    outcome = benchmark(tmp_path, "killed", suite=suite).run()
    assert len(outcome.done) == 2
    assert len(records) == 3 + 2  # the two epochs that were left, not four
    one, other = (
        {
            row["method"]: (row["weights_sha256"], row["metrics"], row["losses"])
            for row in read_results([tmp_path / name])
        }
        for name in ("whole", "killed")
    )
    assert one == other
    again = benchmark(tmp_path, "killed", suite=suite).run()
    assert not again.done
    assert sorted(again.skipped) == sorted(outcome.done)
    assert not list((tmp_path / "killed" / "units").glob("*/checkpoint.pt"))


def test_another_configuration_is_another_unit(tmp_path: Path) -> None:
    benchmark(tmp_path, "out", methods=["zscore"]).run()
    outcome = benchmark(tmp_path, "out", methods=["zscore"], options={"zscore": {"network_def#quantile": 0.9}}).run()
    assert len(outcome.done) == 1
    assert len(read_results([tmp_path / "out"])) == 2


def test_a_failing_unit_stops_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = tiny_suite(
        tmp_path, sets={"stripes": {"image_size": [SIDE, SIDE], "problems": ["broken", "masks"]}}, methods=["zscore"]
    )
    code = main(
        ["benchmark", "--suite", str(suite), "--out", str(tmp_path / "out"), "--no-progress", "--device", "cpu"]
    )
    assert code == 1
    assert [row["problem"] for row in read_results([tmp_path / "out"])] == ["masks"]
    (failed,) = read_results([tmp_path / "out"], "failures")
    assert failed["problem"] == "broken"
    assert failed["error"] == "RuntimeError: no such file"
    assert "RuntimeError: no such file" in capsys.readouterr().err


def test_ranks_share_the_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["benchmark", "--suite", str(tiny_suite(tmp_path)), "--out", str(tmp_path / "out"), "--no-progress"]
    arguments += ["--methods", "zscore", "intensity", "--seeds", "0", "1", "--device", "cpu"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    shares = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        assert main(arguments) == 0
        shares.append({row["unit"] for row in read_results([tmp_path / "out" / f"results-rank{rank}.jsonl"])})
    assert [len(share) for share in shares] == [2, 2]
    assert not shares[0] & shares[1]
    rows = read_results([tmp_path / "out"])
    assert {(row["method"], row["seed"]) for row in rows} == {(m, s) for m in ("zscore", "intensity") for s in (0, 1)}
    # one process alone finds all of it done
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")
    assert main(arguments) == 0
    assert not (tmp_path / "out" / "results.jsonl").exists()


def test_a_unit_that_another_process_has_is_left_to_it(tmp_path: Path) -> None:
    run = benchmark(tmp_path, "out", methods=["zscore"])
    (unit,) = run.units()
    with claim(tmp_path / "out" / "units" / unit.name) as ours:
        assert ours
        assert run.run().elsewhere == [unit.name]
    assert run.run().done == [unit.name]


def test_a_claim_of_a_dead_process_is_free(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        with claim(tmp_path / "u") as ours:
            os._exit(0 if ours else 1)
    assert os.waitpid(child, 0)[1] == 0
    with claim(tmp_path / "u") as ours:
        assert ours
        with claim(tmp_path / "u") as second:
            assert not second
    with claim(tmp_path / "u") as ours:
        assert ours


def test_a_folder_that_cannot_be_made_is_no_claim_of_another(tmp_path: Path) -> None:
    (tmp_path / "u").write_text("a file")
    with pytest.raises(InputError), claim(tmp_path / "u"):
        pass


def test_half_a_line_costs_one_line(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    row = dict.fromkeys(("suite", "set", "problem", "method", "seed", "scale"), "x")
    append_line(file, {**row, "unit": "a", "n": 1})
    with file.open("a") as handle:
        handle.write('{"unit": "b", "n"')
    append_line(file, {**row, "unit": "c", "n": 1})
    append_line(file, {**row, "unit": "a", "n": 2})
    assert read_results([tmp_path]) == [{**row, "unit": "a", "n": 2}, {**row, "unit": "c", "n": 1}]
    with pytest.raises(ValueError):
        append_line(file, {"unit": "d", "n": float("nan")})


@pytest.mark.slow
def test_watching_the_test_changes_nothing(tmp_path: Path) -> None:
    for name, track in (("plain", False), ("tracked", True)):
        benchmark(tmp_path, name, methods=["autoencoder"], track_auroc=track).run()
    (plain,), (tracked,) = (read_results([tmp_path / name]) for name in ("plain", "tracked"))
    assert plain["weights_sha256"] == tracked["weights_sha256"]
    assert [point["epoch"] for point in tracked["auroc_over_epochs"]] == [1, 2, 3, 4]
    assert tracked["auroc_over_epochs"][-1]["auroc"] == tracked["metrics"]["image"]["auroc"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--suite", "digit", "--out", "o"], "no suite digit"),
        (["--suite", "digits"], "--out: is not given"),
        (["--suite", "TINY", "--out", "o", "--methods", "zscor"], "Did you mean zscore?"),
        (["--suite", "TINY", "--out", "o", "--sets", "mnist"], "has no set 'mnist'"),
        (["--suite", "TINY", "--out", "o", "--problems", "masks", "9"], "no set has 9"),
        (["--suite", "TINY", "--out", "o", "--device", "gpu"], "'gpu' is no device"),
        (["--suite", "TINY", "--out", "o", "--data", "mnist=x"], "has no set 'mnist'"),
        (["--suite", "TINY", "--out", "o", "--options", "max_epochs"], "sets nothing"),
        (["--suite", "TINY", "--out", "o", "--options", "zscore:epochs=1"], "epochs names nothing"),
    ],
)
def test_a_wrong_command_says_so_in_one_line(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    suite = str(tiny_suite(tmp_path))
    assert main(["benchmark", "--no-progress", *(suite if a == "TINY" else a for a in arguments)]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_every_suite_is_made_of_options_that_exist() -> None:
    from monai_anomaly.benchmarks.suites import SCALES
    from monai_anomaly.benchmarks.training import merged_config

    for name in suite_names():
        suite = load_suite(name)
        for method in (*suite.methods, *suite.ablations):
            for key in suite.sets:
                for scale in SCALES:
                    merged_config(suite.method(method).files, suite.options(key, method, scale))


def test_a_suite_with_a_slip_of_the_pen_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'image_sizes' means nothing"):
        load_suite(tiny_suite(tmp_path, sets={"stripes": {"image_sizes": [8, 8]}}))
    with pytest.raises(InputError, match="'large' is no scale"):
        load_suite(tiny_suite(tmp_path, scales={"large": {}}))
    with pytest.raises(InputError, match="no method"):
        load_suite(tiny_suite(tmp_path, methods=["autoencodr"]))


def test_a_set_that_is_not_at_hand_is_left_out_unless_it_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sets = {"stripes": {"problems": ["masks"]}, "nowhere": {}}
    suite = load_suite(tiny_suite(tmp_path, sets=sets, methods=["zscore"]))
    assert {unit.configuration["set"] for unit in benchmark(tmp_path, "out", suite=suite).units()} == {"stripes"}
    assert "left out" in caplog.text
    with pytest.raises(InputError, match="nowhere: no reader"):
        benchmark(tmp_path, "out", suite=suite, sets=["nowhere"]).units()


@pytest.mark.parametrize("method", ["stfpm", "reverse_distillation", "patchcore_anomalib"])
def test_a_peer_without_its_library_says_what_to_install(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "anomalib", None)
    outcome = benchmark(tmp_path, "out", methods=[method, "zscore"], options={}).run()
    assert len(outcome.done) == 1
    (error,) = outcome.failures.values()
    assert "monai-anomaly[peers]" in error


def picture_folders(root: Path, pictures: int = 32) -> Path:
    """A set in folders, four images a patient, eight images on the test side."""
    images, _ = stripes(pictures, 0, False)
    for i, image in enumerate(images):
        side = 0 if i < pictures - 8 else 1 + i % 2
        folder = root / ("train/normal", "test/normal", "test/abnormal")[side]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"P{i // 4}_{i}.png")
    return root


def test_a_suite_tells_the_reader_of_a_set_what_a_patient_is(tmp_path: Path) -> None:
    picture_folders(tmp_path / "pictures")
    reader = {"patient_regex": "(P[0-9]+)_"}
    runs = {}
    for name, entry in (("known", {"reader": reader}), ("not known", {}), ("wrong", {"reader": {"regex": "P"}})):
        suite = load_suite(tiny_suite(tmp_path, sets={"folders": entry}, methods=["zscore"]))
        runs[name] = benchmark(tmp_path, name, suite=suite, options={}, data={"folders": tmp_path / "pictures"})
    with pytest.raises(InputError, match="no argument 'regex'"):
        runs["wrong"].units()
    (known,), (unknown,) = runs["known"].units(), runs["not known"].units()
    assert known.configuration["reader"] == reader
    assert "reader" not in unknown.configuration
    assert not runs["known"].run().failures
    (row,) = read_results([tmp_path / "known"])
    # of six training patients with four images each
    assert (row["pictures"]["held_out"], row["pictures"]["calibration"]) == (4, 8)
    assert row["facts"]["patients"] == "known"


@pytest.mark.parametrize(("paper", "held_out"), [("itae", 0), ("hfrae", 0), ("proxyano", 0), ("ddrid", 6), ("daad", 6)])
def test_the_papers_scale_trains_on_all_normals(paper: str, held_out: int, tmp_path: Path) -> None:
    limits = load_suite(paper).limits("paper")
    sides = split_normals(Stripes().problem("masks").training, limits["held_out"], limits["calibration"], 0)
    whole = len(Stripes().problem("masks").training)
    assert len(sides.calibration) == 0
    assert len(sides.held_out) == round(limits["held_out"] * whole) == held_out * whole // 60
    assert len(sides.training) == whole - len(sides.held_out)


def test_a_run_without_calibration_has_no_rates_and_says_why(tmp_path: Path) -> None:
    scales = {"smoke": {"resamples": 0, "held_out": 0.0, "calibration": 0.0}}
    suite = load_suite(tiny_suite(tmp_path, scales=scales, methods=["zscore"]))
    assert not benchmark(tmp_path, "out", suite=suite, options={}).run().failures
    (row,) = read_results([tmp_path / "out"])
    assert (row["pictures"]["held_out"], row["pictures"]["calibration"]) == (0, 0)
    assert row["metrics"]["decision"]["true_positive_rate"] is None
    assert "there are 0" in row["metrics"]["decision"]["undefined"]["true_positive_rate"]


def test_several_sets_of_a_suite_may_be_in_one_layout(tmp_path: Path) -> None:
    folders = {"layout": "folders", "channels": 1, "image_size": [16, 16]}
    sets = {
        "brains": {**folders, "reader": {"patient_regex": "(P[0-9]+)_"}},
        "eyes": folders,
        "ears": {"layout": "ear"},
    }
    suite = load_suite(tiny_suite(tmp_path, sets=sets, methods=["zscore"]))
    data = {"brains": picture_folders(tmp_path / "a"), "eyes": picture_folders(tmp_path / "b", 40)}
    with pytest.raises(InputError, match="ear: no reader"):
        benchmark(tmp_path, "out", suite=suite, data=data, options={}, sets=["ears"]).units()
    with pytest.raises(InputError, match="Pass --data eyes=DIR"):
        benchmark(tmp_path, "out", suite=suite, data={"brains": data["brains"]}, options={}, sets=["eyes"]).units()
    assert len(benchmark(tmp_path, "out", suite=suite, data=data, options={}).run().done) == 2
    rows = {row["set"]: row for row in read_results([tmp_path / "out"])}
    sides = {
        name: sum(row["pictures"][side] for side in ("training", "held_out", "calibration"))
        for name, row in rows.items()
    }
    assert sides == {"brains": 24, "eyes": 32}
    assert {row["configuration"]["layout"] for row in rows.values()} == {"folders"}


@pytest.mark.parametrize(
    ("given", "words"), [({"RANK": "1"}, "is 1 with"), ({"RANK": "-1"}, "'-1'"), ({"WORLD_SIZE": "two"}, "'two'")]
)
def test_a_share_that_would_drop_units_is_refused(
    given: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert process_share() == (0, 1, 0)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=words):
        process_share()


@pytest.mark.slow
def test_under_torchrun_a_rank_waits_for_the_others(tmp_path: Path) -> None:
    """The one that is done first must not end, or torchrun would end the others: it sees what the other wrote last."""
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from monai_anomaly.benchmarks.processes import process_share, wait_for_other_ranks\n"
        "written = Path(sys.argv[1])\n"
        "if process_share()[0] == 1:\n"
        "    time.sleep(1)\n"
        "    written.touch()\n"
        "wait_for_other_ranks()\n"
        "sys.exit(0 if written.exists() else 3)\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # what torchrun sets
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "x"}
    ranks = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path / "written"], env={**os.environ, **shared, "RANK": rank})
        for rank in ("0", "1")
    ]
    assert [process.wait(timeout=120) for process in ranks] == [0, 0]


def test_other_pictures_are_other_units(tmp_path: Path) -> None:
    suite = load_suite(tiny_suite(tmp_path, sets={"folders": {}}, methods=["zscore"]))
    root = picture_folders(tmp_path / "pictures")
    for expected in (1, 0):
        run = benchmark(tmp_path, "out", suite=suite, options={}, data={"folders": root})
        assert len(run.run().done) == expected
    test = next((root / "test" / "normal").iterdir())
    Image.fromarray(255 - np.asarray(Image.open(test))).save(test)
    run = benchmark(tmp_path, "out", suite=suite, options={}, data={"folders": root})
    assert len(run.run().done) == 1
    (table,) = build_tables(read_results([tmp_path / "out"]))
    assert table.cells[0].seeds == 1
    assert table.notes == ("Left out, earlier runs with other settings or images: 1 of z-score.",)


def test_a_part_of_a_published_set_is_flagged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_problem(self: Stripes) -> list[str]:
        raise InputError(self.root / "bottle", "is missing", "Fetch it.")

    for name, check, note in (
        ("part", lambda self: [f"{self.root / 'train'}: 12 of 24 images"], "train: 12 of 24 images"),
        ("broken", other_problem, "bottle: is missing. Fetch it."),
    ):
        monkeypatch.setattr(Stripes, "check", check)
        assert not benchmark(tmp_path, name, methods=["zscore"], options={}).run().failures
        row = read_results([tmp_path / name])[0]
        assert row["pictures"]["notes"] == [note]
        assert row["pictures"]["whole"] is False


def test_a_set_in_another_layout_says_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    suite = load_suite(tiny_suite(tmp_path, sets={"mvtec_ad": {}}, methods=["zscore"]))
    with pytest.raises(InputError, match="holds nothing in the layout of MVTec AD"):
        benchmark(tmp_path, "out", suite=suite, data={"mvtec_ad": tmp_path / "empty"}, options={}).units()


def test_named_methods_stand_beside_the_baselines(tmp_path: Path) -> None:
    command = ["benchmark", "--no-progress", "--suite", str(tiny_suite(tmp_path)), "--methods", "zscore"]
    for name, further, expected in (("with", [], {"zscore", "intensity"}), ("bare", ["--no-baselines"], {"zscore"})):
        assert main([*command, "--out", str(tmp_path / name), *further]) == 0
        assert {row["method"] for row in read_results([tmp_path / name])} == expected


def test_a_file_among_the_options_is_told_by_its_content(tmp_path: Path) -> None:
    names = []
    for folder, content in (("here", b"a"), ("there", b"a"), ("elsewhere", b"b")):
        (tmp_path / folder).mkdir()
        weights = tmp_path / folder / "encoder.pth"
        weights.write_bytes(content)
        suite = load_suite(tiny_suite(tmp_path, methods=["hfrae"]))
        run = benchmark(tmp_path, "out", suite=suite, options={"hfrae": {"weights": str(weights)}})
        unit = run.units()[0]
        assert str(tmp_path) not in json.dumps(unit.configuration)
        assert run._parser(unit, 2).config["weights"] == str(weights)
        names.append(unit.name)
    assert names[0] == names[1] != names[2]


def test_a_method_that_a_set_is_without_is_not_run_on_it(tmp_path: Path) -> None:
    sets = {"stripes": {"problems": ["masks"], "without": ["autoencoder"]}}
    suite = load_suite(tiny_suite(tmp_path, sets=sets))
    assert [unit.configuration["method"] for unit in benchmark(tmp_path, "out", suite=suite).units()] == ["zscore"]


def test_the_papers_scale_is_the_bundles_own_schedule() -> None:
    assert not [key for key, method in load_methods().items() if method.scales.get("paper")]


def pictures(count: int, groups: int) -> ImageSet:
    return ImageSet(
        [str(i) for i in range(count)],
        np.zeros(count, dtype=int),
        lambda i: np.full((4, 4), i, np.uint8),
        groups=[f"g{i % groups}" for i in range(count)],
    )


@settings(deadline=None, max_examples=40)
@given(count=st.integers(12, 60), groups=st.integers(4, 12), seed=st.integers(0, 5))
def test_no_group_is_on_two_sides(count: int, groups: int, seed: int) -> None:
    sides = split_normals(pictures(count, groups), 0.2, 0.3, seed)
    assert sorted(int(name) for side in sides for name in side.names) == list(range(count))
    found = [set(side.groups) for side in sides]
    assert all(found)
    assert sum(map(len, found)) == len(set.union(*found))


def test_too_few_groups_are_refused() -> None:
    with pytest.raises(InputError, match="2 group"):
        split_normals(pictures(8, 2), 0.1, 0.1, 0)


def test_a_limit_keeps_both_classes_and_the_order() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    side = ImageSet([f"{i:03d}" for i in range(100)], labels, lambda i: np.zeros((2, 2), np.uint8))
    part = limited(side, 20)
    assert (part.labels == 0).sum() == 18
    assert (part.labels == 1).sum() == 2
    assert list(part.names) == sorted(part.names)
    assert limited(side, None) is side
    assert limited(side, 20).names == part.names


def test_pictures_are_read_as_the_network_takes_them() -> None:
    gray = ImageSetReader((2, 2), 1, "unit", 255.0)
    colour = np.zeros((2, 2, 3), np.uint8)
    colour[..., 1] = 255
    torch.testing.assert_close(gray(colour), torch.full((1, 2, 2), 0.587))
    torch.testing.assert_close(ImageSetReader((2, 2), 3, "unit", 255.0)(colour)[1], torch.ones(2, 2))
    assert ImageSetReader((2, 2), 3, "unit", 255.0)(colour[..., 0]).shape == (3, 2, 2)
    # 16 bits: the brightest training normal is 1, and what is brighter too
    deep = ImageSet(["a"], np.array([0]), lambda i: np.array([[0, 400]], np.uint16))
    reader = ImageSetReader((1, 2), 1, "unit").fit(deep)
    torch.testing.assert_close(reader(np.array([[100, 800]], np.uint16)), torch.tensor([[[0.25, 1.0]]]))
    foreground = ImageSetReader((8, 8), 1, "foreground")(np.arange(64, dtype=np.uint8).reshape(8, 8))
    assert foreground.min() == 0
    assert foreground.max() <= 1
    np.testing.assert_array_equal(resized_mask(np.eye(2, dtype=bool), (4, 4)), np.kron(np.eye(2), np.ones((2, 2))) > 0)


def test_a_donor_is_of_another_group() -> None:
    images = torch.arange(12.0).reshape(12, 1, 1, 1)
    dataset = ImageSetDataset(images, [str(i % 3) for i in range(12)], donors="other")
    dataset.set_random_state(1)
    drawn = [[int(item["donor"]) for item in dataset.__getitems__(list(range(12)))] for _ in range(3)]
    assert all(donor % 3 != i % 3 for row in drawn for i, donor in enumerate(row))
    dataset.set_random_state(1)
    assert [int(item["donor"]) for item in dataset.__getitems__(list(range(12)))] == drawn[0]
