"""Overrides that name nothing are rejected, at any depth."""

from __future__ import annotations

import contextlib
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from bundle_runs import refusal

from monai_anomaly.bundle import check_overrides, check_values
from monai_anomaly.exceptions import InputError

CONFIG: dict[str, Any] = {
    "output_dir": "out",
    "network_def": {"_target_": "monai_anomaly.networks.ProxyAno", "channels": [4, 8]},
    "train": {
        "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.001},
        "loader": {"_target_": "monai.data.DataLoader", "batch_size": 8},
    },
}


@pytest.mark.parametrize(
    "override",
    [
        "output_dir",
        "network_def#channels",
        "network_def#channels#1",
        "network_def#memory",  # an argument that the config leaves at its default
        "train::optimizer::weight_decay",
        "train#loader#pin_memory",  # the loader takes any argument
    ],
)
def test_known_names_pass(override: str) -> None:
    check_overrides([override], CONFIG, "train.yaml")


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("outputdir", "Did you mean output_dir"),
        ("network_def#chanels", "Did you mean channels"),
        ("train#optimizer#learning_rte", "Known here: .*lr"),
        ("train#lodaer#batch_size", "Did you mean loader"),
        ("network_def#channels#7", "Known here: 0, 1"),
    ],
)
def test_unknown_names_are_refused(override: str, hint: str) -> None:
    with pytest.raises(InputError, match=rf"--{override}: .* names nothing in train.yaml. {hint}"):
        check_overrides([override], CONFIG, "train.yaml")


VALUES: dict[str, Any] = {
    "report": True,
    "max_epochs": 50,
    "alpha": 0.05,
    "image_size": [128, 128],
    "num_workers": 2,
    "threshold": None,
    "device": "$torch.device('cpu')",
    "train": {"optimizer": {"_target_": "torch.optim.Adam", "lr": 0.001}},
}


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("report", "no", "--report: cannot be 'no'. Pass True or False."),
        ("report", 0, "--report: cannot be 0. Pass True or False."),
        ("max_epochs", "abc", "--max_epochs: cannot be 'abc'. Pass a number such as 50."),
        ("max_epochs", True, "--max_epochs: cannot be True. Pass a number such as 50."),
        ("train#optimizer#lr", "1e-3x", "--train#optimizer#lr: cannot be '1e-3x'. Pass a number such as 0.001."),
        ("image_size", 32, r"--image_size: cannot be 32. Pass a list such as \[128, 128\]."),
        ("image_size#0", "32mm", "--image_size#0: cannot be '32mm'. Pass a number such as 128."),
        ("num_workers", -1, "--num_workers: cannot be -1. Pass 0 or more."),
    ],
)
def test_values_of_another_kind_are_refused_in_one_line(name: str, value: Any, line: str) -> None:
    check_overrides([name], VALUES, "train.yaml")
    with pytest.raises(InputError, match=line):
        check_values({name: value}, VALUES)


def test_values_of_the_same_kind_and_expressions_pass() -> None:
    check_values(
        {"report": False, "max_epochs": "$2 * 3", "alpha": [0.05, 0.1], "image_size": (64, 64), "threshold": "otsu"},
        VALUES,
    )
    check_values({"report": "@train", "train#optimizer#weight_decay": 0, "device": "cpu", "num_workers": 0}, VALUES)


def test_cuda_where_there_is_none_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match="--device cuda:0: PyTorch finds no CUDA device here"):
        check_values({"device": "cuda:0"}, VALUES)


@pytest.mark.filterwarnings("ignore:parsing config_file")
@pytest.mark.parametrize(
    ("options", "values"),
    [
        (["--report", "FALSE", "--head", "1"], "False None 1"),
        (["--report=false", "--layout=true"], "False True 0"),
        (["--layout", "False", "--report"], "True False 0"),
        (["--layout", "--head", "true"], "--head: cannot be True. Pass a number such as 0."),
        (["--report", "1x"], "--report: cannot be '1x'. Pass True or False."),
        (["--report", "yes"], "--report: cannot be 'yes'. Pass True or False."),
    ],
)
def test_truth_values_are_taken_in_any_case(
    options: list[str], values: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MONAI's command line alone would take "false" for a text, which is true."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text('{"version": "1.0"}')
    config = tmp_path / "configs" / "run.yaml"
    config.write_text(
        """
bundle_root: .
report: true
layout: null
head: 0
imports: [$import monai_anomaly, $import pathlib]
initialize: [$monai_anomaly.bundle.check_run(@bundle_root)]
run: ["$pathlib.Path('found').write_text(' '.join(map(str, [@report, @layout, @head])))"]
"""
    )
    monkeypatch.chdir(tmp_path)
    # both are changed by the run
    monkeypatch.setattr("sys.excepthook", sys.excepthook)
    monkeypatch.setattr("sys.argv", ["", "run", "--config_file", str(config), "--bundle_root", str(tmp_path), *options])
    if values.startswith("--"):
        assert refusal(runpy.run_module, "monai.bundle", run_name="__main__", alter_sys=True) == values
    else:
        with contextlib.suppress(SystemExit):
            runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
        assert (tmp_path / "found").read_text() == values
