"""Detectors of anomalib in a benchmark: run where anomalib is installed, rejected in one line where it is not."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmark_sets import Stripes, tiny_suite
from torch import Tensor, nn

import monai_anomaly.engines.stages as stages
from monai_anomaly.__main__ import main
from monai_anomaly.benchmarks import BenchmarkRun, load_methods, load_suite, read_results
from monai_anomaly.benchmarks.peers import CoresetPeer
from monai_anomaly.benchmarks.training import merged_config
from monai_anomaly.data.published import PUBLISHED_SETS
from monai_anomaly.data.slices import describe_failure
from monai_anomaly.networks import HFRAE
from monai_anomaly.networks.blocks.resnet import resnet_features

INSTALLED = find_spec("anomalib") is not None
# By method the part of its network that is the pretrained encoder.
PEERS = {
    "stfpm": "teacher_model",
    "reverse_distillation_resnet18": "encoder",
    "patchcore_resnet18": "feature_extractor",
}
SIDE = 32


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights in torchvision's format, with statistics that are not those of a new network."""
    torch.manual_seed(0)
    state = {
        name: torch.rand_like(value) + 0.5 if name.endswith("running_var") else value
        for name, value in resnet_features("resnet18").state_dict().items()
    }
    state["fc.weight"] = torch.zeros(10, 512)  # as classifiers have it
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(state, path)
    return path


@pytest.fixture(autouse=True)
def _stripes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PUBLISHED_SETS, "stripes", Stripes)


def run(folder: Path, out: str, weights: Path, methods: list[str]) -> BenchmarkRun:
    sets = {"stripes": {"image_size": [SIDE, SIDE], "problems": ["masks"], "metrics": ["image.auroc", "pixel.auroc"]}}
    scales = {"smoke": {"resamples": 0, "shown": 2, "calibration": 0.4, "save_interval": 1}}
    suite = load_suite(tiny_suite(folder, sets=sets, methods=methods, scales=scales))
    options: dict[str, dict[str, Any]] = {method: {"weights": str(weights)} for method in methods}
    for method in methods:
        if not method.startswith("patchcore"):
            options[method] |= {"max_epochs": 2, "batch_size": 16}
    return BenchmarkRun(suite, folder / out, options=options, progress=False)


def peer(method: str, weights: Path | None, **overrides: Any) -> Any:
    entry = load_methods()[method]
    options = {**entry.options, "image_size": [SIDE, SIDE], "in_channels": 1, **overrides}
    parser = merged_config(entry.files, {**options, "weights": None if weights is None else str(weights)})
    return parser.get_parsed_content("network")


def refusal(method: str, weights: Path | None) -> str:
    with pytest.raises(RuntimeError) as caught:
        peer(method, weights)
    return describe_failure(caught.value)


@pytest.mark.parametrize("method", PEERS)
def test_a_peer_runs_as_any_method_or_says_what_to_install(
    method: str, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = run(tmp_path, "whole", weights, [method]).run()
    if not INSTALLED:
        (error,) = outcome.failures.values()
        assert 'Run pip install "monai-anomaly[peers]".' in error
        assert "\n" not in error
        return
    assert not outcome.failures
    (row,) = read_results([tmp_path / "whole"])
    assert set(row["versions"]) == {"monai_anomaly", "torch", "monai", "anomalib", "timm"}
    assert [stage["epochs"] for stage in row["stages"]] == ([] if method.startswith("patchcore") else [2])
    saved = np.load(tmp_path / "whole" / "scores" / f"{row['unit']}.npz")
    assert np.isfinite(saved["scores"]).all()
    assert len(np.unique(saved["scores"])) == 24
    shown = np.load(tmp_path / "whole" / "shown" / f"{row['unit']}.npz")
    assert shown["maps"].reshape(len(shown["index"]), -1).shape == (8, SIDE * SIDE)
    for metric in ("auroc", "ap", "aupro", "best_dice"):
        assert 0 <= row["metrics"]["pixel"][metric] <= 1
    if method.startswith("patchcore"):
        # bright spots are unlike any stripe, whatever the filters of the encoder
        assert row["metrics"]["image"]["auroc"] > 0.9

    # killed before its second epoch is recorded, or before its memory is filled, and started again
    record, records = stages._StagedRun._record, []

    def kill(*arguments: Any) -> None:
        records.append(1)
        if len(records) == 2 or method.startswith("patchcore"):
            raise KeyboardInterrupt
        record(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(stages._StagedRun, "_record", kill)
        patch.setattr(CoresetPeer, "fit_statistics", kill)
        killed = run(tmp_path, "killed", weights, [method])
        with pytest.raises(KeyboardInterrupt):
            killed.run()
    assert run(tmp_path, "killed", weights, [method]).run().done
    (again,) = read_results([tmp_path / "killed"])
    for key in ("weights_sha256", "metrics", "losses"):
        assert again[key] == row[key]


@pytest.mark.parametrize("method", PEERS)
def test_a_peer_sees_what_hfrae_sees(method: str, weights: Path) -> None:
    if not INSTALLED:
        assert "anomalib cannot be loaded" in refusal(method, weights)
        return
    ours = HFRAE(2, 1, encoder="resnet18").eval()
    state = torch.load(weights, weights_only=True)
    ours.load_encoder({key: state[key] for key in ours.encoder.encoder.state_dict()}, "imagenet")
    image = torch.rand(2, 1, SIDE, SIDE)
    detector = peer(method, weights).eval()
    encoder: nn.Module = getattr(detector.peer, PEERS[method])
    with torch.no_grad():
        found: list[Tensor] = list(encoder(detector.normalise(image)).values())
        expected = ours.encode(image)
    for one, other in zip(found, expected[-len(found) :], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    if method == "stfpm":
        student = detector.peer.student_model.feature_extractor
        assert not torch.equal(student.conv1.weight, state["conv1.weight"])


def test_weights_of_another_encoder_are_refused_in_one_line(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = str(tiny_suite(tmp_path, methods=["zscore"]))
    arguments = ["benchmark", "--suite", suite, "--out", str(tmp_path / "out"), "--no-progress", "--device", "cpu"]
    arguments += ["--methods", "patchcore_anomalib", "--options", f"patchcore_anomalib:weights={weights}"]
    assert main(arguments) == 1
    (error,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("failed: "))
    if INSTALLED:
        assert "the weights do not fit the encoder" in error
        assert "no such file of weights" in refusal("stfpm", tmp_path / "nowhere.pth")

        def no_network(*arguments: Any, **options: Any) -> None:
            raise ConnectionError("Name or service\nnot known")

        monkeypatch.setattr("timm.create_model", no_network)
        assert refusal("stfpm", None) == (
            "resnet18: its weights cannot be downloaded (Name or service not known). Without a network pass a file in "
            "torchvision's format as weights."
        )
    else:
        assert "monai-anomaly[peers]" in error
