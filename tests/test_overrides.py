"""Overrides that name nothing are rejected, at any depth."""

from __future__ import annotations

from typing import Any

import pytest

from monai_anomaly.bundle import check_overrides
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
