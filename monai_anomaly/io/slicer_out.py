"""Files for 3D Slicer: a segmentation that names its findings, and a script that opens a case."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["numbered_lesions", "open_in_slicer", "write_segmentation"]

# Findings with a segment of their own; the rest share one.
_MOST_SEGMENTS = 100
# DICOM codes of a finding as Slicer writes them: category, type, and no modifier or region.
_TERMINOLOGY = (
    "Segmentation category and type - DICOM master list~SCT^49755003^Morphologically Altered Structure"
    "~SCT^52988006^Lesion~^^~Anatomic codes - DICOM master list~^^~^^"
)
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])

_SCRIPT = '''"""Open this case in 3D Slicer: Slicer --python-script open_in_slicer.py

Shows the scan with the anomaly map in colour and the findings, and goes to the highest value of the map.
Research use only, not for diagnosis.
"""

import os

import slicer

FOLDER = os.path.dirname(os.path.abspath(__file__))
# Shown range of the scan and of the map, in their own values; below its lower end the map is transparent.
SCAN_WINDOW = {scan_window}
MAP_WINDOW = {map_window}
# Where the map is highest: right, anterior, superior, in mm.
PLACE = {place}


def volume(name):
    """Load one of the volumes beside this script, without showing it yet."""
    path = os.path.join(FOLDER, name + ".nii.gz")
    return slicer.util.loadVolume(path, properties={{"name": name, "show": False}})


def window(node, low, high):
    """Show values from low to high."""
    display = node.GetDisplayNode()
    display.AutoWindowLevelOff()
    display.SetWindowLevelMinMax(low, high)
    return display


scan = volume("scan")
window(scan, *SCAN_WINDOW)
if {healthy}:
    window(volume("restoration"), *SCAN_WINDOW)
anomaly_map = volume("anomaly_map")
display = window(anomaly_map, *MAP_WINDOW)
display.SetAndObserveColorNodeID("vtkMRMLColorTableNodeFileInferno.txt")
display.SetThreshold(MAP_WINDOW[0], {highest})
display.ApplyThresholdOn()
if os.path.exists(os.path.join(FOLDER, "anomaly_mask.seg.nrrd")):
    findings = slicer.util.loadSegmentation(os.path.join(FOLDER, "anomaly_mask.seg.nrrd"))
    findings.CreateDefaultDisplayNodes()
    findings.GetDisplayNode().SetOpacity2DFill(0.0)
slicer.util.setSliceViewerLayers(
    background=scan, foreground=anomaly_map, foregroundOpacity=0.6, fit=True, rotateToVolumePlane=True
)
for view in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
    view.SetLinkedControl(1)
    view.SetHotLinkedControl(1)
slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *PLACE, slicer.vtkMRMLSliceNode.CenteredJumpSlice)
'''


def numbered_lesions(mask: np.ndarray, affine: np.ndarray, lesions: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The voxels of each lesion.

    Args:
        mask: (X, Y, Z), bool.
        affine: (4, 4), voxel indices to RAS millimetres.
        lesions: rows of ``lesion_table`` of the mask.

    Returns:
        (X, Y, Z), the number of the lesion at each voxel; 0 outside.
    """
    from scipy.ndimage import label

    parts, number = label(mask, structure=np.ones((3, 3, 3)))
    numbers, to_voxels = np.zeros(number + 1, np.int64), np.linalg.inv(affine)
    for row in lesions:
        peak = to_voxels[:3, :3] @ [row[f"peak_{axis}_mm"] for axis in "xyz"] + to_voxels[:3, 3]
        numbers[parts[tuple(np.rint(peak).astype(int))]] = row["lesion"]
    return numbers[parts]


def write_segmentation(
    path: str | Path, mask: np.ndarray, affine: np.ndarray, lesions: Sequence[Mapping[str, Any]]
) -> None:
    """Write a mask as Slicer's ``.seg.nrrd``: a segment for each lesion, with name, colour and coded meaning.

    Args:
        path: the file.
        mask: (X, Y, Z), bool.
        affine: (4, 4), voxel indices to RAS millimetres.
        lesions: rows of ``lesion_table`` of the mask. Those after the first hundred share one segment. Without any,
            there is one empty segment.
    """
    from matplotlib import colormaps

    names = []
    for row in lesions[:_MOST_SEGMENTS]:
        p_value = "" if row["p_value"] is None else f", p {row['p_value']:.3g}"
        names.append(f"Anomaly {row['lesion']}: peak {row['peak']:.4g}, {row['volume_ml']:.3g} ml{p_value}")
    if len(lesions) > _MOST_SEGMENTS:
        names.append(f"{len(lesions) - _MOST_SEGMENTS} further anomalies")
    geometry = _LPS @ affine
    extent = " ".join(f"0 {size - 1}" for size in mask.shape)

    def vector(values: np.ndarray) -> str:
        return f"({','.join(repr(float(value)) for value in values)})"

    header = [
        "NRRD0004",
        "type: uint8",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, mask.shape))}",
        f"space directions: {' '.join(vector(geometry[:3, axis]) for axis in range(3))}",
        "kinds: domain domain domain",
        "encoding: gzip",
        f"space origin: {vector(geometry[:3, 3])}",
        "Segmentation_ContainedRepresentationNames:=Binary labelmap|",
        "Segmentation_MasterRepresentation:=Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset:=0 0 0",
    ]
    for index, name in enumerate(names or ["Anomaly"]):
        colour = colormaps["tab10"](index % 10)[:3]
        fields = {
            "ID": f"Anomaly_{index + 1}",
            "Name": name,
            "NameAutoGenerated": "0",
            "Color": " ".join(f"{value:.6g}" for value in colour),
            "ColorAutoGenerated": "0",
            "LabelValue": str(index + 1),
            "Layer": "0",
            "Extent": extent if names else "0 -1 0 -1 0 -1",
            "Tags": f"Segmentation.Status:completed|TerminologyEntry:{_TERMINOLOGY}|",
        }
        header += [f"Segment{index}_{key}:={value}" for key, value in fields.items()]
    labels = np.minimum(numbered_lesions(mask, affine, lesions), _MOST_SEGMENTS + 1).astype(np.uint8)
    voxels = labels.tobytes(order="F")
    Path(path).write_bytes("\n".join([*header, "", ""]).encode() + gzip.compress(voxels, compresslevel=6, mtime=0))


def open_in_slicer(
    scan_window: tuple[float, float],
    map_window: tuple[float, float],
    highest: float,
    place: Sequence[float],
    healthy: bool,
) -> str:
    """The script that 3D Slicer runs to open a case, to be written into its folder.

    Args:
        scan_window: lowest and highest shown value of the scan.
        map_window: the same of the map; lower values are not shown.
        highest: value of the map.
        place: where the map is highest, RAS millimetres.
        healthy: whether there is a pseudo-healthy image, ``restoration.nii.gz``, of one channel.
    """
    return _SCRIPT.format(
        scan_window=tuple(map(float, scan_window)),
        map_window=tuple(map(float, map_window)),
        highest=float(highest),
        place=tuple(round(float(value), 3) for value in place),
        healthy=bool(healthy),
    )
