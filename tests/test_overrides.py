"""Overrides that name nothing are rejected, at any depth."""

from __future__ import annotations

from typing import Any

import pytest

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
