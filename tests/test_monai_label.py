"""The dictionary of MONAI's own evaluators and servers, MONAI Label among them, through ``postprocessing``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import torch
from bundle_runs import BUNDLE, CONFIGS, detect, refusal, write_dicom, write_nifti
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset, MetaTensor, PILWriter
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose, SaveImaged
from PIL import Image

from monai_anomaly.data import ScanPreprocessing
from monai_anomaly.engines import (
    CleanMaskd,
    MaskAboveThresholdd,
    StackInferer,
    ToPredd,
    ToScanVoxelsd,
    load_detector,
)
from monai_anomaly.io import LoadScan
from monai_anomaly.networks import IntensityThreshold

pytest_plugins = ["bundle_fixtures"]


def answer(
    models: Path, image: str | Path, config: Path = CONFIGS / "inference.yaml", **options: Any
) -> dict[str, Any]:
    """What MONAI Label's bundle task makes of a scan, step by step, without its server and its way of writing."""
    parser = ConfigParser(ConfigParser.load_config_file(str(config)))
    parser.update({"bundle_root": str(config.parents[1]), "model_dir": str(models)})
    # as a client sets them
    parser["displayable_configs"].update(options)
    data: dict[str, Any] = {"image": str(image), "image_path": str(image)}
    for transform in parser.get_parsed_content("preprocessing").transforms:
        data = transform(data)
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(models / "model.pt", weights_only=True))
    with torch.no_grad():
        data["pred"] = parser.get_parsed_content("inferer")(data["image"][None], network.eval())[0]
    for transform in parser.get_parsed_content("postprocessing").transforms:
        if not isinstance(transform, SaveImaged):
            data = transform(data)
    return data


def test_the_answer_is_our_own_mask_voxel_by_voxel(trained: Path, tmp_path: Path) -> None:
    series = tmp_path / "series"
    write_dicom(series, 8)
    for scan, case in (
        (write_nifti(tmp_path / "scan.nii.gz", 7, tmp_path / "mask.nii.gz"), "scan"),
        (series, "series"),
    ):
        detect(trained, tmp_path / case, scan)
        found = answer(trained / "models", scan)
        expected = LoadScan()(tmp_path / case / case / "anomaly_map.nii.gz")
        mask = nib.load(tmp_path / case / case / "anomaly_mask.nii.gz")
        pred = found["pred"]
        assert isinstance(pred, MetaTensor)
        assert pred.dtype == torch.uint8
        np.testing.assert_array_equal(pred[0], np.asarray(mask.dataobj))
        np.testing.assert_allclose(pred.affine, mask.affine, atol=1e-4)
        # what MONAI Label resizes a label to
        assert pred.shape[1:] == tuple(found["image"].meta["spatial_shape"])
        the_map = answer(trained / "models", scan, alpha=None)["pred"]
        assert torch.equal(the_map.as_tensor(), expected.as_tensor())
        assert found["result"]["threshold"] == load_detector(trained / "models").network.calibration.map_threshold(0.05)
        assert found["result"]["peak"] == float(the_map.max())
        # a rate that the client sets
        coarse = answer(trained / "models", scan, alpha=0.5)
        assert coarse["result"]["alpha"] == 0.5
        assert int(coarse["pred"].sum()) > int(pred.sum())
    assert not list(trained.glob("scan"))


def test_a_mask_that_the_calibration_cannot_carry_is_refused(trained: Path, tmp_path: Path) -> None:
    scan = write_nifti(tmp_path / "scan.nii.gz", 7)
    line = refusal(answer, trained / "models", scan, alpha=0.01)
    assert line.startswith("alpha 0.01: needs 99 normal calibration patients, there are 19.")
    network, grid = IntensityThreshold().eval(), ScanPreprocessing((32, 32))
    data = grid({"image": str(scan)})
    data["pred"] = StackInferer(preprocessing=grid)(data["image"][None], network)[0]
    data = ToScanVoxelsd(grid)(data)
    line = refusal(Compose([MaskAboveThresholdd(network), CleanMaskd(), ToPredd(network)]), data)
    assert line == (
        "alpha 0.05: the detector is not calibrated; a rate of 0.05 needs 19 normal patients. "
        "Calibrate on more normal scans, or ask for the map itself: alpha null."
    )
    mask = MaskAboveThresholdd(network, alpha=None)(data)
    assert refusal(CleanMaskd(inside_foreground=True), mask).startswith(
        "inside_foreground: needs the scan's own voxels"
    )


def test_an_image_comes_back_as_it_is_seen(trained: Path, tmp_path: Path) -> None:
    pixels = np.kron(np.random.default_rng(3).integers(60, 200, (8, 10)), np.ones((4, 5))).astype(np.uint8)
    pixels[:, :15] = 0
    Image.fromarray(pixels).save(tmp_path / "image.png")
    detect(trained, tmp_path / "out", tmp_path / "image.png", alpha=0.5)
    found = answer(trained / "models", tmp_path / "image.png", alpha=0.5)
    writer = PILWriter(output_dtype=np.uint8)
    writer.set_data_array(found["pred"], channel_dim=0, squeeze_end_dims=True)
    writer.write(tmp_path / "label.png")
    with (
        Image.open(tmp_path / "label.png") as label,
        Image.open(tmp_path / "out" / "image" / "anomaly_mask.png") as own,
    ):
        assert label.size == own.size == (50, 32)
        assert 0 < (np.asarray(own) > 0).sum() < 50 * 32
        np.testing.assert_array_equal(np.asarray(label) > 0, np.asarray(own) > 0)
    assert found["pred"].shape[1:] == tuple(found["image"].meta["spatial_shape"]) == (50, 32, 1)


def test_in_an_evaluator_of_monai(trained: Path, tmp_path: Path) -> None:
    scans = [write_nifti(tmp_path / f"scan{seed}.nii.gz", seed) for seed in (6, 8)]
    files = load_detector(trained / "models")
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(
            Dataset([{"image": str(scan)} for scan in scans], files.preprocessing), batch_size=2
        ),
        network=files.network,
        inferer=StackInferer(preprocessing=files.preprocessing),
        postprocessing=Compose(
            [
                ToScanVoxelsd(files.preprocessing),
                MaskAboveThresholdd(files.network, 0.2),
                CleanMaskd(least_lesion_mm3=30),
                ToPredd(files.network),
            ]
        ),
    )
    evaluator.run()
    for scan, found in zip(scans, evaluator.state.output):
        case = scan.name.removesuffix(".nii.gz")
        detect(trained, tmp_path / "out", scan, alpha=0.2, least_lesion_mm3=30)
        own = nib.load(tmp_path / "out" / case / "anomaly_mask.nii.gz")
        np.testing.assert_array_equal(found["pred"][0], np.asarray(own.dataobj))


def test_training_on_a_servers_labelled_scans_is_refused(tmp_path: Path) -> None:
    """The overrides that MONAI Label's training task passes on."""
    labelled = [{"image": "scan.nii.gz", "label": "label.nii.gz"}]
    line = refusal(
        monai.bundle.run,
        config_file=str(CONFIGS / "train.yaml"),
        bundle_root=str(BUNDLE),
        logging_file=False,
        **{
            "train#trainer#max_epochs": 50,
            "train#dataset#data": labelled,
            "validate#dataset#data": labelled,
            "train#handlers": [],
            "device": "cpu",
        },
    )
    assert line == (
        "training data: a list of labelled scans is no cohort: a detector trains on normal scans, split by patient. "
        "Train by monai.bundle run with --dataset_dir, then package the result (docs/monai_label.md)."
    )
