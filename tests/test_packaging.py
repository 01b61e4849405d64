"""Bundles of trained detectors: what is in them, what they say, and that they work where they are copied to."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from bundle_runs import BUNDLES, command, refusal, run_bundle

from monai_anomaly.__main__ import main
from monai_anomaly.data import ScanPreprocessing
from monai_anomaly.engines import load_detector, save_detector
from monai_anomaly.networks import AnomalyDetector, AnomalyOutput, IntensityThreshold
from monai_anomaly.packaging import package_detector

pytest_plugins = ["bundle_fixtures"]


def untrained(folder: Path, network: AnomalyDetector | None = None) -> Path:
    """The output folder of a training that left a detector without calibration."""
    save_detector(folder / "models", network or IntensityThreshold(), ScanPreprocessing((32, 48)), {})
    return folder


@pytest.fixture(scope="module")
def packaged(evaluated: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the tiny detector with its evaluation; leave it as it is."""
    run = tmp_path_factory.mktemp("run") / "run"
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("cache"))
    shutil.copy(evaluated / "metrics.json", run)
    package_detector(run, run.parent / "brain_lesions")
    return run.parent / "brain_lesions"


@pytest.mark.slow
def test_a_bundle_works_where_it_is_copied_to(
    packaged: Path, evaluated: Path, tiny_cohort: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(packaged, tmp_path / "elsewhere")
    scan = tiny_cohort / "test" / "normal" / "t1.nii.gz"
    done = command(
        *("-m", "monai.bundle", "run", "--config_file", moved / "configs" / "inference.yaml"),
        *("--bundle_root", moved, "--dataset_dir", scan, "--output_dir", tmp_path / "out", "--overview_slices", "0"),
        *("--report", "false"),
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "out" / "report.html").exists()
    for name in ("anomaly_map", "anomaly_mask", "restoration"):
        found, own = (
            np.asarray(nib.load(folder / f"{name}.nii.gz").dataobj)
            for folder in (tmp_path / "out" / "t1", evaluated / "test__normal__t1")
        )
        # the masks are equal; sums of another number of threads round otherwise
        np.testing.assert_allclose(found, own, rtol=1e-4, atol=0 if name == "anomaly_mask" else 1e-6)
    # and is evaluated beside the baselines of its training
    run_bundle("evaluate", tmp_path / "evaluated", tiny_cohort, bundle=moved, overview_slices=0, progress=False)
    assert (
        json.loads((tmp_path / "evaluated" / "metrics.json").read_text())["figures"]
        == (json.loads((evaluated / "metrics.json").read_text())["figures"])
    )


@pytest.mark.slow
def test_a_bundle_says_what_its_run_says(packaged: Path, evaluated: Path) -> None:
    metadata = json.loads((packaged / "configs" / "metadata.json").read_text())
    ends = metadata["network_data_format"]
    for end in (ends["inputs"]["image"], ends["outputs"]["pred"]):
        assert (end["num_channels"], end["spatial_shape"]) == (1, [32, 32])
    assert ends["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "anomaly"}
    rows = json.loads((evaluated / "metrics.json").read_text())["figures"]
    own = {(row["level"], row["metric"]): row["value"] for row in rows if row["detector"] == "ProxyAno"}
    assert metadata["eval_metrics"] == {
        f"{level}_{metric}": round(own[level, metric], 4)
        for level, metric in [("image", "auroc"), ("image", "ap")]
        + [("pixel", metric) for metric in ("auroc", "ap", "best_dice")]
    }
    page = (packaged / "docs" / "README.md").read_text()
    assert f"| pixel | ap | {own['pixel', 'ap']:.3f} |" in page
    for part in ("## Performance", "## System configuration", "19 of 19 patients for calibration", "(losses.png)"):
        assert part in page
    assert "](../" not in page
    assert "not stated" in (packaged / "docs" / "data_license.txt").read_text()
    assert (packaged / "LICENSE").read_bytes() == (BUNDLES / "proxyano" / "LICENSE").read_bytes()
    assert {path.name for path in (packaged / "docs").iterdir()} == {"README.md", "data_license.txt", "losses.png"}


@pytest.mark.slow
def test_the_onnx_file_knows_its_thresholds(packaged: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    model = onnx.load(packaged / "models" / "model.onnx")
    said = {entry.key: entry.value for entry in model.metadata_props}
    calibration = load_detector(packaged / "models").network.calibration
    thresholds = json.loads(said["thresholds"])
    assert thresholds["0.05"] == {
        "map": calibration.map_threshold(0.05),
        "map_per_voxel": calibration.voxel_threshold(0.05),
        "score": calibration.score_threshold(0.05),
    }
    assert thresholds["0.01"]["map"] is None  # 19 patients
    assert json.loads(said["preprocessing"])["image_size"] == [32, 32]
    assert "not for diagnosis" in said["intended_use"]
    assert [value.name for value in model.graph.input] == ["image"]
    assert [value.name for value in model.graph.output] == ["anomaly_map"]
    assert str(BUNDLES.parent).encode() not in model.SerializeToString()


def test_a_zip_without_onnx_and_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)  # as where it is not installed
    run = untrained(tmp_path / "run")
    (tmp_path / "licence.txt").write_text("CC0")
    (tmp_path / "case.png").write_bytes(b"png")
    extra = ["--data-license", str(tmp_path / "licence.txt"), "--figure", str(tmp_path / "case.png")]
    assert main(["package", str(run), str(tmp_path / "name.zip"), *extra]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[-2:] == [
        'models/model.onnx is left out: it needs onnx (pip install "monai-anomaly[onnx]").',
        str(tmp_path / "name.zip"),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["case.png", "licence.txt", "name.zip", "run"]
    with zipfile.ZipFile(tmp_path / "name.zip") as archive:
        archive.extractall(tmp_path / "out")
    bundle = tmp_path / "out" / "name"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["name"]
    assert {path.name for path in (bundle / "models").iterdir()} == {"model.pt", "model.ts", "detector.json"}
    page = (bundle / "docs" / "README.md").read_text()
    assert "Not evaluated." in page
    assert "Not calibrated" in page
    assert "(figure.png)" in page
    assert (bundle / "docs" / "data_license.txt").read_text() == "CC0"
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert metadata["eval_metrics"] == {}
    assert metadata["network_data_format"]["inputs"]["image"]["spatial_shape"] == [32, 48]
    monai.bundle.verify_net_in_out(
        net_id="network_def",
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / "inference.yaml"),
        bundle_root=str(bundle),
        device="cpu",
    )


def test_weights_beside_the_bundle_come_back_as_the_zoo_fetches_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    run, bundle, aside = untrained(tmp_path / "run"), tmp_path / "b", tmp_path / "b_large_files"
    assert main(["package", str(run), str(bundle), "--large_files", aside.as_uri()]) == 0
    assert f"{aside}: put its content to {aside.as_uri()}" in capsys.readouterr().out
    assert [path.name for path in (bundle / "models").iterdir()] == ["detector.json"]
    listed = yaml.safe_load((bundle / "large_files.yml").read_text())["large_files"]
    assert [entry["path"] for entry in listed] == ["models/model.pt", "models/model.ts"]
    assert {tuple(entry) for entry in listed} == {("path", "url", "hash_val", "hash_type")}
    assert "download_large_files" in (bundle / "docs" / "README.md").read_text()
    monai.bundle.download_large_files(bundle_path=str(bundle))
    assert (bundle / "models" / "model.pt").read_bytes() == (run / "models" / "model.pt").read_bytes()
    load_detector(bundle / "models")
    assert "b_large_files: exists already" in refusal(package_detector, run, tmp_path / "b.zip", large_files="x")


class OwnDetector(AnomalyDetector):
    """A method of somebody else's."""

    def __init__(self) -> None:
        super().__init__(2, in_channels=1)

    def detect(self, image: torch.Tensor) -> AnomalyOutput:
        return AnomalyOutput(image, image.flatten(1).amax(1), None)


def test_what_cannot_be_packaged_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(package_detector, tmp_path / "none", tmp_path / "b")
    assert line.startswith(f"{tmp_path / 'none' / 'models' / 'detector.json'}: no such file.")
    run = untrained(tmp_path / "run")
    assert main(["package", str(run), str(run)]) == 1
    assert capsys.readouterr().err == f"error: {run}: exists already. Name another place, or remove it first.\n"
    assert "no such file" in refusal(package_detector, run, tmp_path / "b", figure=tmp_path / "none.png")
    own = untrained(tmp_path / "own", OwnDetector())
    assert refusal(package_detector, own, tmp_path / "b") == (
        "network OwnDetector: none of our bundles trains it. Name its bundle: --bundle FOLDER."
    )
    assert "not a bundle" in refusal(package_detector, own, tmp_path / "b", bundle=tmp_path)
    other = shutil.copytree(BUNDLES / "itae", tmp_path / "other")
    config = other / "configs" / "inference.yaml"
    config.write_text(config.read_text().replace("model_dir:", "weights:"))
    assert "has no line model_dir" in refusal(package_detector, own, tmp_path / "b", bundle=other)
    assert not list(tmp_path.glob(".*"))
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_an_evaluation_of_another_detector_is_not_told(tmp_path: Path, evaluated: Path) -> None:
    run = untrained(tmp_path / "run")
    shutil.copy(evaluated / "metrics.json", run)
    package_detector(run, tmp_path / "b")
    assert "Not evaluated." in (tmp_path / "b" / "docs" / "README.md").read_text()
