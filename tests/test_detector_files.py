"""The two files of a detector: what is written comes back, and what does not fit is rejected by name."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from monai_anomaly.data import ScanPreprocessing
from monai_anomaly.engines import load_detector, save_detector
from monai_anomaly.engines.detector_files import network_as_trained
from monai_anomaly.exceptions import InputError
from monai_anomaly.networks import ProxyAno, make_detector

PREPROCESSING: dict[str, Any] = {
    "image_size": (32, 48),
    "slice_axis": "coronal",
    "spacing": 1.5,
    "percentiles": (1, 99),
}


def trained(**kwargs: Any) -> ProxyAno:
    torch.manual_seed(0)
    network = ProxyAno(channels=(4, 8), latent_channels=4, num_items=4, **kwargs).train()
    network(torch.rand(2, network.in_channels, 16, 16))
    network.calibration.fit({f"p{i}": float(i) for i in range(19)}, {f"p{i}": i / 19 for i in range(19)})
    return network.eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_detector(tmp_path / "models", trained(), ScanPreprocessing(**PREPROCESSING), {"seed": 3})
    return tmp_path / "models"


@pytest.mark.parametrize(
    "kwargs", [{}, {"memory": "shrinkage", "in_channels": 3, "proxy_channels": 1}, {"bridge": False, "memory": None}]
)
def test_round_trip(tmp_path: Path, kwargs: dict[str, Any]) -> None:
    network = trained(**kwargs)
    save_detector(tmp_path / "deep" / "models", network, ScanPreprocessing(**PREPROCESSING), {"seed": 3})
    files = load_detector(tmp_path / "deep" / "models", time_point=4)
    assert sorted(path.name for path in (tmp_path / "deep" / "models").iterdir()) == ["detector.json", "model.pt"]
    assert not files.network.training
    assert files.network.config == network.config
    image = torch.rand(2, network.in_channels, 16, 16)
    with torch.no_grad():
        for one, two in zip(network.detect(image), files.network.detect(image)):
            assert torch.equal(one, two)
    assert files.network.calibration.map_threshold(0.05) == network.calibration.map_threshold(0.05)
    assert files.preprocessing.config == ScanPreprocessing(**PREPROCESSING).config
    assert files.preprocessing.time_point == 4
    assert files.description["calibration_patients"] == 19
    assert files.description["training"] == {"seed": 3}
    assert "not for diagnosis" in files.description["use"]


def test_model_is_a_plain_state_dict(folder: Path) -> None:
    state = torch.load(folder / "model.pt", weights_only=True)
    assert state.keys() == trained().state_dict().keys()


def test_saving_again_replaces(folder: Path) -> None:
    network = trained(in_channels=2)
    save_detector(folder, network, ScanPreprocessing(), {})
    assert load_detector(folder).network.in_channels == 2


@pytest.mark.parametrize("name", ["model.pt", "detector.json"])
def test_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"{name}: no such file"):
        load_detector(folder)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_detector(tmp_path / "nowhere")


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    "damage",
    [cut, lambda path: path.write_bytes(b""), lambda path: path.write_text("no weights")],
    ids=["cut", "empty", "text"],
)
def test_unreadable_model(folder: Path, damage: Callable[[Path], object]) -> None:
    damage(folder / "model.pt")
    with pytest.raises(InputError, match=r"model\.pt: not a readable state_dict"):
        load_detector(folder)


@pytest.mark.parametrize("content", [[1, 2], {"weights": 3}, torch.zeros(3), {"a": [torch.zeros(1)]}])
def test_model_that_is_no_state_dict(folder: Path, content: Any) -> None:
    torch.save(content, folder / "model.pt")
    with pytest.raises(InputError, match=r"model\.pt: not a plain state_dict"):
        load_detector(folder)


class Bomb:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("kind", ["torch", "pickle"])
def test_code_in_the_model_is_not_run(folder: Path, tmp_path: Path, kind: str) -> None:
    state = {**trained().state_dict(), "extra": Bomb(tmp_path / "ran")}
    if kind == "torch":
        torch.save(state, folder / "model.pt")
    else:
        (folder / "model.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(InputError, match=r"model\.pt: not a readable state_dict"):
        load_detector(folder)
    assert not (tmp_path / "ran").exists()


def change(folder: Path, act: Callable[[dict[str, Any]], object]) -> None:
    description = json.loads((folder / "detector.json").read_text())
    act(description)
    (folder / "detector.json").write_text(json.dumps(description))


@pytest.mark.parametrize(
    ("argument", "value", "key"),
    [
        ("channels", [4, 16], r"proxy_module\.encoder\.1\.conv\.weight has shape .*not"),
        ("num_items", 5, r"proxy_module\.memory\.items has shape \(4, 4\), not \(5, 4\)"),
        ("in_channels", 3, r"proxy_module\.encoder\.0\.conv\.weight has shape"),
        ("memory", None, r"proxy_module\.memory\.items is not part of the network"),
        ("bridge", False, r"reconstruction_module\.\S+ is not part of the network"),
        ("channels", [4, 8, 8], r"proxy_module\.encoder\.2\.\S+ (is missing|has shape)"),
    ],
)
def test_files_that_disagree(folder: Path, argument: str, value: Any, key: str) -> None:
    change(folder, lambda d: d["network"]["arguments"].update({argument: value}))
    with pytest.raises(InputError, match=rf"model\.pt: disagrees with detector\.json: {key}"):
        load_detector(folder)


def test_files_of_two_runs_do_not_load_together(folder: Path, tmp_path: Path) -> None:
    other = trained()
    with torch.no_grad():
        next(other.parameters()).add_(1)
    save_detector(tmp_path / "other", other, ScanPreprocessing(**PREPROCESSING), {"seed": 4})
    shutil.copy(tmp_path / "other" / "model.pt", folder / "model.pt")
    with pytest.raises(InputError, match=r"model\.pt: is not the one that detector\.json belongs to"):
        load_detector(folder)


def test_calibration_of_the_wrong_shape(folder: Path) -> None:
    state = torch.load(folder / "model.pt", weights_only=True)
    for scores in (torch.zeros(2, 3), torch.tensor(1.0)):
        torch.save({**state, "calibration.scores": scores}, folder / "model.pt")
        with pytest.raises(InputError, match=r"calibration\.scores has shape"):
            load_detector(folder)


def test_files_of_an_older_version_are_read(folder: Path) -> None:
    state = torch.load(folder / "model.pt", weights_only=True)
    kept = ("calibration.scores", "calibration.map_maxima")
    old = {key: v for key, v in state.items() if not key.startswith("calibration.") or key in kept}
    assert len(old) < len(state)
    torch.save(old, folder / "model.pt")
    change(folder, lambda d: d.pop("model_sha256"))
    calibration = load_detector(folder).network.calibration
    assert torch.equal(calibration.map_maxima, state["calibration.map_maxima"])
    assert calibration.tail.values.numel() == calibration.facts.values.numel() == 0
    del old["calibration.scores"]
    torch.save(old, folder / "model.pt")
    with pytest.raises(InputError, match=r"calibration\.scores is missing"):
        load_detector(folder)


@pytest.mark.parametrize(
    "name", ["Unheard", "AnomalyDetector", "AnomalyOutput", "ProxyExtractionModule", "nets", "__name__", None]
)
def test_unknown_network(folder: Path, name: str | None) -> None:
    change(folder, lambda d: d["network"].update(name=name))
    with pytest.raises(InputError, match=rf"detector\.json: network {name!r} is unknown"):
        load_detector(folder)


@pytest.mark.parametrize(
    "act",
    [
        lambda d: d["network"]["arguments"].update(depth=3),
        lambda d: d["network"]["arguments"].update(memory="mean"),
        lambda d: d["network"].update(arguments=[1]),
    ],
    ids=["unknown argument", "bad value", "no arguments"],
)
def test_arguments_that_do_not_fit(folder: Path, act: Callable[[dict[str, Any]], object]) -> None:
    change(folder, act)
    with pytest.raises(InputError, match=r"detector\.json: the arguments of \w+ do not fit it"):
        load_detector(folder)


@pytest.mark.parametrize(
    "act",
    [
        lambda d: d.pop("network"),
        lambda d: d["network"].pop("arguments"),
        lambda d: d.update(network="ProxyAno"),
        lambda d: d.pop("preprocessing"),
        lambda d: d["preprocessing"].update(slice_axis="oblique"),
        lambda d: d["preprocessing"].update(unheard=1),
        lambda d: d["preprocessing"].update(percentiles=[1.0]),
        lambda d: d.pop("format"),
    ],
)
def test_broken_description(folder: Path, act: Callable[[dict[str, Any]], object]) -> None:
    change(folder, act)
    with pytest.raises(InputError, match=r"detector\.json: not a detector's description"):
        load_detector(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "\x00"])
def test_description_that_is_no_json_object(folder: Path, text: str) -> None:
    (folder / "detector.json").write_text(text)
    with pytest.raises(InputError, match=r"detector\.json: not a detector's description"):
        load_detector(folder)


def test_other_format(folder: Path) -> None:
    change(folder, lambda d: d.update(format=2))
    with pytest.raises(InputError, match=r"detector\.json: format 2 is not 1\. Update the package\."):
        load_detector(folder)


def test_a_detector_of_another_distribution_is_found_by_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "elsewhere"
    (package / "elsewhere_anomaly-1.0.dist-info").mkdir(parents=True)
    (package / "elsewhere_anomaly-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: elsewhere-anomaly\nVersion: 1.0\n"
    )
    (package / "elsewhere_anomaly-1.0.dist-info" / "entry_points.txt").write_text(
        "[monai_anomaly.detectors]\nFromElsewhere = elsewhere_anomaly:FromElsewhere\n"
    )
    (package / "elsewhere_anomaly.py").write_text(
        "from monai_anomaly.networks import IntensityThreshold\nclass FromElsewhere(IntensityThreshold):\n    pass\n"
    )
    with pytest.raises(LookupError, match="'FromElsewhere' is unknown"):
        make_detector({"name": "FromElsewhere", "arguments": {}})
    monkeypatch.syspath_prepend(str(package))
    found = make_detector({"name": "FromElsewhere", "arguments": {"in_channels": 2}})
    save_detector(tmp_path / "models", found, ScanPreprocessing((8, 8)), {})
    again = load_detector(tmp_path / "models").network
    assert type(again).__name__ == "FromElsewhere"
    assert again.in_channels == 2


def test_a_description_of_a_network_that_the_weights_cannot_be_of(folder: Path) -> None:
    change(folder, lambda d: d["network"]["arguments"].update(channels=[200_000, 200_000]))
    with pytest.raises(InputError, match=r"detector\.json: describes a network of \d{12,} bytes, where model\.pt has"):
        load_detector(folder)
    with pytest.raises(InputError, match="describes a network of"):
        network_as_trained(folder, ProxyAno)


@pytest.mark.parametrize(
    ("training", "key"),
    [
        ([], r"\$\.training: \[\] is not of type"),
        ({"split": {"by": "patient"}}, r"\$\.training\.split: 'sides' is a required property"),
        ({"stages": [{"optimizers": 3}]}, r"\$\.training\.stages\[0\]\.optimizers: 3 is not of type"),
    ],
)
def test_a_description_of_another_form_names_the_key(folder: Path, training: Any, key: str) -> None:
    change(folder, lambda d: d.update(training=training))
    with pytest.raises(InputError, match=rf"detector\.json: not a detector's description \({key}"):
        load_detector(folder)
