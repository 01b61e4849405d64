"""From any file's geometry to a map on its own voxels: no affine differs."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from test_dicom import series, write
from test_volumes import affines

from monai_anomaly.data import ScanPreprocessing
from monai_anomaly.io import LoadScan, write_case

SHAPE = (9, 8, 7)


def marked(place: tuple[int, ...]) -> np.ndarray:
    """A faint textured volume with one bright voxel."""
    volume = np.random.default_rng(3).uniform(100, 300, SHAPE)
    volume[place] = 900
    return np.rint(volume)


def map_file(folder: Path, source: Path, slice_axis: str) -> nib.Nifti1Image:
    """The scan's own slices, taken as its map, as they are written."""
    preprocessing = ScanPreprocessing((96, 96), slice_axis)
    scan = preprocessing.load(str(source))
    stack = preprocessing.stack(scan)
    back = preprocessing.to_scan(stack.as_tensor(), stack).numpy()
    write_case(folder / "case", scan, anomaly_map=back[0], restoration=back, anomaly_mask=None)
    return nib.load(folder / "case" / "anomaly_map.nii.gz")


PLACES = st.tuples(*[st.integers(0, size - 1) for size in SHAPE])
SLICE_AXES = st.sampled_from(["axial", "coronal", "sagittal"])


@settings(max_examples=10, deadline=None, derandomize=True, phases=[Phase.generate])
@given(affine=affines(), place=PLACES, slice_axis=SLICE_AXES)
def test_map_of_any_nifti(
    tmp_path_factory: pytest.TempPathFactory, affine: np.ndarray, place: tuple[int, ...], slice_axis: str
) -> None:
    folder = tmp_path_factory.mktemp("n")
    nib.save(nib.Nifti1Image(marked(place).astype(np.float32), affine), folder / "scan.nii")
    image = map_file(folder, folder / "scan.nii", slice_axis)
    assert np.abs(image.affine - nib.load(folder / "scan.nii").affine).max() == 0


@settings(max_examples=10, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
    step=st.floats(0.5, 9) | st.floats(-9, -0.5),
    order=st.permutations(range(SHAPE[2])),
    place=PLACES,
    slice_axis=SLICE_AXES,
)
def test_map_of_any_dicom_series(
    tmp_path_factory: pytest.TempPathFactory,
    angles: tuple[float, ...],
    step: float,
    order: list[int],
    place: tuple[int, ...],
    slice_axis: str,
) -> None:
    folder = tmp_path_factory.mktemp("d")
    slices = series(marked(place).T.astype(np.uint16), Rotation.from_euler("xyz", angles).as_matrix(), step)
    source = write(folder / "s", [slices[index] for index in order])
    image = map_file(folder, source, slice_axis)
    # what a NIfTI header holds of the scan's affine: float32
    assert np.abs(image.affine - LoadScan()(source).affine.numpy().astype(np.float32)).max() == 0
