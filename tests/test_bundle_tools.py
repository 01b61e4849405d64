"""MONAI's own tools on the bundle: verification, export, property check, handlers, several processes."""

from __future__ import annotations

import sys
from pathlib import Path

import monai.bundle
import pytest
import torch
import yaml
from bundle_runs import BUNDLE, CONFIGS, SMALL, command, refusal, run_bundle, table, train_small

from monai_anomaly.engines import load_detector

pytest_plugins = ["bundle_fixtures"]


@pytest.mark.slow
def test_handlers_come_by_an_override_file(tiny_cohort: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    handler = {
        "_target_": "monai.handlers.TensorBoardStatsHandler",
        "log_dir": str(tmp_path / "events"),
        "tag_name": "loss",
        "output_transform": "$monai.handlers.from_engine(['loss'], first=True)",
    }
    (tmp_path / "tensorboard.yaml").write_text(yaml.safe_dump({"train#handlers": [handler]}))
    train_small(tmp_path / "out", tiny_cohort, str(tmp_path / "tensorboard.yaml"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    # five scans of three slices in batches of eight
    assert len(events.Scalars("loss")) == 2


@pytest.mark.slow
def test_tracking_by_mlflow(tiny_cohort: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    run_bundle("train", tmp_path, tiny_cohort, tracking="mlflow", progress=False, **SMALL)
    assert (tmp_path / "models" / "model.pt").is_file()


@pytest.mark.slow
def test_two_processes_train_one_detector(tiny_cohort: Path, tmp_path: Path) -> None:
    options = [f"--{name}={value}" for name, value in SMALL.items()]
    done = command(
        *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "monai.bundle", "run"),
        *("--config_file", f"['{CONFIGS / 'train.yaml'}','{CONFIGS / 'multi_gpu_train.yaml'}']"),
        *("--bundle_root", BUNDLE, "--dataset_dir", tiny_cohort, "--output_dir", tmp_path, "--batch_size=4", *options),
        folder=tmp_path,
        CUDA_VISIBLE_DEVICES="",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = table(tmp_path / "training" / "losses.csv")
    # 15 slices for two processes in batches of four: two steps each
    assert [(row["stage"], row["steps"]) for row in rows] == [("proxy extraction", "2"), ("image reconstruction", "2")]
    files = load_detector(tmp_path / "models")
    assert files.description["calibration_patients"] == 19
    assert all(torch.isfinite(value).all() for value in files.network.state_dict().values())


@pytest.mark.slow
def test_a_misspelt_override_is_refused_before_anything_is_made(tiny_cohort: Path, tmp_path: Path) -> None:
    done = command(
        *("-m", "monai.bundle", "run", "--config_file", CONFIGS / "train.yaml", "--bundle_root", BUNDLE),
        *("--dataset_dir", tiny_cohort, "--output_dir", tmp_path / "out", "--max_epoch", "1"),
        folder=tmp_path,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last == "error: --max_epoch: max_epoch names nothing in train.yaml. Did you mean max_epochs?"
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_value_that_a_component_refuses_is_told_in_one_line(
    tiny_cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)  # the run puts its own in place
    with pytest.raises(RuntimeError) as caught:
        train_small(tmp_path, tiny_cohort, slice_axis="axiall")
    capsys.readouterr()
    sys.excepthook(caught.type, caught.value, caught.tb)
    told = "slice_axis is one of ['axial', 'coronal', 'sagittal'], got 'axiall'"
    assert capsys.readouterr().err == f"error: monai_anomaly.engines.TrainingData: {told}\n"


@pytest.mark.filterwarnings("ignore:parsing config_file")
def test_a_wrong_bundle_root_is_refused(tiny_cohort: Path, tmp_path: Path) -> None:
    line = refusal(
        monai.bundle.run,
        config_file=str(CONFIGS / "train.yaml"),
        bundle_root=str(tmp_path),
        dataset_dir=str(tiny_cohort),
        logging_file=False,
    )
    assert line == f"bundle_root {tmp_path}: not a bundle: it has no configs/metadata.json. Pass --bundle_root FOLDER."


@pytest.mark.slow
def test_none_is_given_as_an_expression(tiny_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = str([str(CONFIGS / f"{name}.yaml") for name in ("train", "image_to_image")])
    # as on the command line, which the run reads
    program = str(Path(monai.bundle.__file__).with_name("__main__.py"))
    monkeypatch.setattr(sys, "argv", [program, "run", "--config_file", files, "--network_def#memory", "None"])
    options = {name: value for name, value in SMALL.items() if not name.startswith("discriminator")}
    run = (run_bundle, ["train", "image_to_image"], tmp_path / "out", tiny_cohort)
    told = "--network_def#memory: MONAI passes over None on the command line. Write '$None', in quotes."
    assert refusal(*run, progress=False, **options) == told
    assert not (tmp_path / "out").exists()
    sys.argv[-1] = "$None"
    run_bundle(*run[1:], progress=False, **options, **{"network_def#memory": "$None"})
    assert load_detector(tmp_path / "out" / "models").description["network"]["arguments"]["memory"] is None
