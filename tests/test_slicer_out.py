"""Files for 3D Slicer: the segmentation read back by others, the script run against a strict stand-in of Slicer."""

from __future__ import annotations

import runpy
import sys
import types
from pathlib import Path
from typing import Any

import itk
import nibabel
import numpy as np
import pytest
from bundle_runs import head, write_nifti
from monai.transforms import Compose
from test_inference import BrightVoxels

from monai_anomaly.data import ScanPreprocessing
from monai_anomaly.engines import (
    CohortEvaluator,
    MaskAboveThresholdd,
    SaveCased,
    SaveSlicerd,
    ToScanVoxelsd,
    scan_loader,
)
from monai_anomaly.io.slicer_out import write_segmentation
from monai_anomaly.metrics import lesion_table

LPS = np.diag([-1.0, -1, 1, 1])


def findings(number: int = 2) -> tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]:
    """A map with single bright voxels, its mask's affine and lesions; the last voxel is the brightest."""
    affine = head(4)[2]
    anomaly_map = np.zeros((24, 28, 8), np.float32)
    places = [(x, y, z) for z in (1, 4, 6) for y in range(1, 27, 3) for x in range(1, 23, 3)][:number]
    for index, place in enumerate(places):
        anomaly_map[place] = index + 1
    return anomaly_map, affine, lesion_table(anomaly_map, anomaly_map > 0, affine, lambda peak: 1 / (1 + peak))


@pytest.mark.parametrize("number", [0, 1, 3, 130])
def test_segmentation_is_read_back_by_slicerio_and_pynrrd(tmp_path: Path, number: int) -> None:
    slicerio = pytest.importorskip("slicerio", reason="slicerio is not installed")
    nrrd = pytest.importorskip("nrrd", reason="pynrrd is not installed")
    anomaly_map, affine, rows = findings(number)
    path = tmp_path / "mask.seg.nrrd"
    write_segmentation(path, anomaly_map > 0, affine, rows)
    found = slicerio.read_segmentation(str(path))
    np.testing.assert_allclose(found["ijkToLPS"], LPS @ affine, rtol=0, atol=1e-12)
    voxels, header = nrrd.read(str(path))
    np.testing.assert_array_equal(voxels > 0, anomaly_map > 0)
    assert header["space"] == "left-posterior-superior"
    segments = found["segments"]
    assert len(segments) == max(1, min(number, 101))
    for index, segment in enumerate(segments):
        assert segment["labelValue"] == index + 1
        assert len(segment["color"]) == 3
        assert segment["terminology"]["type"] == ["SCT", "52988006", "Lesion"]
        marked = anomaly_map[voxels == segment["labelValue"]]
        if segment["name"].endswith("further anomalies"):
            assert len(marked) == number - 100
        elif number:
            assert segment["name"].startswith(f"Anomaly {index + 1}: peak {number - index}")
            assert marked.tolist() == [number - index]
        else:
            assert len(marked) == 0
    assert len({segment["id"] for segment in segments}) == len(segments)


@pytest.mark.slow
def test_segmentation_lies_where_itk_sees_the_mask(tmp_path: Path) -> None:
    anomaly_map, affine, rows = findings()
    write_segmentation(tmp_path / "mask.seg.nrrd", anomaly_map > 0, affine, rows)
    image = itk.imread(str(tmp_path / "mask.seg.nrrd"))
    np.testing.assert_array_equal(itk.array_from_image(image).T > 0, anomaly_map > 0)
    for index in ((0, 0, 0), (3, 5, 2)):
        np.testing.assert_allclose(
            image.TransformIndexToPhysicalPoint(index), (LPS @ affine @ [*index, 1])[:3], atol=1e-9
        )


class Node:
    """A MRML node: what it is told is kept, and only methods of Slicer's own exist."""

    def __init__(self, **kept: Any) -> None:
        self.kept = kept


class VolumeDisplay(Node):
    """vtkMRMLScalarVolumeDisplayNode."""

    def AutoWindowLevelOff(self) -> None:
        self.kept["auto"] = False

    def SetWindowLevelMinMax(self, low: float, high: float) -> None:
        assert type(low) is type(high) is float
        assert low < high
        self.kept["window"] = low, high

    def SetAndObserveColorNodeID(self, node_id: str) -> None:
        assert node_id in ("vtkMRMLColorTableNodeGrey", "vtkMRMLColorTableNodeFileInferno.txt")
        self.kept["colours"] = node_id

    def SetThreshold(self, lower: float, upper: float) -> None:
        assert type(lower) is type(upper) is float
        assert lower < upper
        self.kept["threshold"] = lower, upper

    def ApplyThresholdOn(self) -> None:
        self.kept["thresholded"] = True


class SegmentationDisplay(Node):
    """vtkMRMLSegmentationDisplayNode."""

    def SetOpacity2DFill(self, opacity: float) -> None:
        assert 0 <= opacity <= 1
        self.kept["fill"] = opacity


class Volume(Node):
    """vtkMRMLScalarVolumeNode."""

    def __init__(self, **kept: Any) -> None:
        super().__init__(**kept)
        self.display = VolumeDisplay(auto=True)

    def GetDisplayNode(self) -> VolumeDisplay:
        return self.display


class Segmentation(Node):
    """vtkMRMLSegmentationNode."""

    display: SegmentationDisplay | None = None

    def CreateDefaultDisplayNodes(self) -> None:
        self.display = SegmentationDisplay()

    def GetDisplayNode(self) -> SegmentationDisplay | None:
        return self.display


class Composite(Node):
    """vtkMRMLSliceCompositeNode."""

    def SetLinkedControl(self, linked: int) -> None:
        self.kept["linked"] = int(linked)

    def SetHotLinkedControl(self, linked: int) -> None:
        self.kept["hot"] = int(linked)


VOLUME_PROPERTIES = {"name", "labelmap", "singleFile", "center", "discardOrientation", "autoWindowLevel", "show"}
VOLUME_PROPERTIES |= {"colorNodeID", "fileNames"}


class Slicer:
    """The calls of Slicer 5 that the script may make, with their documented arguments; anything else does not exist."""

    def __init__(self) -> None:
        self.volumes: dict[str, Volume] = {}
        self.segmentations: list[Segmentation] = []
        self.views = [Composite(), Composite(), Composite()]
        self.jumps: list[tuple[float, float, float]] = []
        self.layers: dict[str, Any] = {}

    def loadVolume(self, filename: str, properties: dict[str, Any] = {}) -> Volume:  # noqa: B006
        assert set(properties) <= VOLUME_PROPERTIES
        node = Volume(image=itk.imread(filename, itk.F), **properties)  # as Slicer reads: a scalar volume or an error
        self.volumes[properties["name"]] = node
        return node

    def loadSegmentation(self, filename: str, properties: dict[str, Any] = {}) -> Segmentation:  # noqa: B006
        node = Segmentation(image=itk.imread(filename), **properties)
        self.segmentations.append(node)
        return node

    def setSliceViewerLayers(
        self,
        background: Any = "keep-current",
        foreground: Any = "keep-current",
        label: Any = "keep-current",
        foregroundOpacity: float | None = None,
        labelOpacity: float | None = None,
        fit: bool = False,
        rotateToVolumePlane: bool = False,
    ) -> None:
        self.layers = {"background": background, "foreground": foreground, "opacity": foregroundOpacity, "fit": fit}

    def getNodesByClass(self, name: str) -> list[Composite]:
        assert name == "vtkMRMLSliceCompositeNode"
        return self.views

    def JumpAllSlices(self, scene: Any, r: float, a: float, s: float, mode: int = -1) -> None:
        assert scene == "scene"
        assert mode == 0
        self.jumps.append((r, a, s))

    def module(self) -> types.ModuleType:
        module = types.ModuleType("slicer")
        module.util = types.SimpleNamespace(  # type: ignore[attr-defined]
            loadVolume=self.loadVolume,
            loadSegmentation=self.loadSegmentation,
            setSliceViewerLayers=self.setSliceViewerLayers,
            getNodesByClass=self.getNodesByClass,
        )
        module.mrmlScene = "scene"  # type: ignore[attr-defined]
        jump = types.SimpleNamespace(JumpAllSlices=self.JumpAllSlices, CenteredJumpSlice=0)
        module.vtkMRMLSliceNode = jump  # type: ignore[attr-defined]
        return module


def written(tmp_path: Path, path: Path, alpha: float | None) -> Path:
    network = BrightVoxels()
    network.calibration.fit({f"p{i}": 1e-3 * i for i in range(19)}, {f"p{i}": 0.02 * i for i in range(19)})
    preprocessing = ScanPreprocessing((32, 32))
    evaluator = CohortEvaluator(
        network,
        scan_loader([{"image": str(path), "case": "case", "patient": "p"}], preprocessing),
        postprocessing=Compose(
            [
                ToScanVoxelsd(preprocessing),
                MaskAboveThresholdd(network, alpha),
                SaveSlicerd(network),
                SaveCased(tmp_path / "out", 0),
            ]
        ),
        progress=False,
    )
    evaluator.run()
    evaluator.finish()
    return tmp_path / "out" / "case"


def opened(case: Path, monkeypatch: pytest.MonkeyPatch) -> Slicer:
    slicer = Slicer()
    monkeypatch.setitem(sys.modules, "slicer", slicer.module())
    runpy.run_path(str(case / "open_in_slicer.py"))
    return slicer


def test_the_script_opens_a_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = written(tmp_path, write_nifti(tmp_path / "scan.nii.gz", 4, tmp_path / "m.nii.gz"), 0.05)
    case = case.rename(tmp_path / "taken elsewhere")
    slicer = opened(case, monkeypatch)
    assert set(slicer.volumes) <= {"scan", "restoration", "anomaly_map"}
    scan, anomaly_map = (nibabel.load(case / f"{name}.nii.gz") for name in ("scan", "anomaly_map"))
    np.testing.assert_array_equal(scan.get_fdata(), nibabel.load(tmp_path / "scan.nii.gz").get_fdata())
    assert slicer.layers["background"] is slicer.volumes["scan"]
    assert slicer.layers["foreground"] is slicer.volumes["anomaly_map"]
    display = slicer.volumes["anomaly_map"].display.kept
    assert display["colours"] == "vtkMRMLColorTableNodeFileInferno.txt"
    assert display["thresholded"]
    assert display["auto"] is False
    assert display["threshold"][1] >= anomaly_map.get_fdata().max()
    assert all(view.kept == {"linked": 1, "hot": 1} for view in slicer.views)
    ((r, a, s),) = slicer.jumps
    voxel = np.rint(np.linalg.inv(anomaly_map.affine) @ [r, a, s, 1]).astype(int)[:3]
    assert anomaly_map.get_fdata()[tuple(voxel)] == anomaly_map.get_fdata().max()
    (segmentation,) = slicer.segmentations
    mask = nibabel.load(case / "anomaly_mask.nii.gz").get_fdata()
    assert mask.any()
    np.testing.assert_array_equal(itk.array_from_image(segmentation.kept["image"]).T > 0, mask > 0)


def test_without_a_mask_there_is_no_segmentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = written(tmp_path, write_nifti(tmp_path / "scan.nii.gz", 4), None)
    assert not (case / "anomaly_mask.seg.nrrd").exists()
    assert opened(case, monkeypatch).segmentations == []


def test_two_dimensional_images_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 50), dtype=np.uint8)).save(tmp_path / "scan.png")
    case = written(tmp_path, tmp_path / "scan.png", 0.05)
    assert "no files for 3D Slicer" in caplog.text
    assert not (case / "open_in_slicer.py").exists()
