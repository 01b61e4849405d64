"""From scans to slices and back: shapes, values, places in the world, tiles, refusals."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation

from monai_anomaly.exceptions import InputError
from monai_anomaly.transforms import SLICE_AXES, SliceGrid, SliceGridd, tissue_slices

SAGITTAL, CORONAL, AXIAL = "sagittal", "coronal", "axial"


def scan(array: np.ndarray, affine: np.ndarray | None = None, kind: str = "volume", **meta: Any) -> MetaTensor:
    affine = np.eye(4) if affine is None else affine
    return MetaTensor(
        torch.from_numpy(np.ascontiguousarray(array)),
        affine=torch.as_tensor(affine, dtype=torch.float64),
        meta={"scan_kind": kind, "source": ["scan.nii.gz"], **meta},
    )


@st.composite
def affines(draw: st.DrawFn) -> np.ndarray:
    """Any axis order and directions, tilted by less than 30 degrees, spacings from 0.5 to 5 mm."""
    order = draw(st.permutations([0, 1, 2]))
    signs = draw(st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3))
    spacing = draw(st.tuples(*[st.floats(0.5, 5.0)] * 3))
    axis = np.array(draw(st.tuples(*[st.floats(-1, 1)] * 3)))
    tilt = Rotation.from_rotvec(np.deg2rad(draw(st.floats(0, 29))) * axis / max(np.linalg.norm(axis), 1.0))
    matrix = np.eye(4)
    matrix[:3, :3] = tilt.as_matrix() @ (np.eye(3)[:, order] * signs * spacing)
    matrix[:3, 3] = draw(st.tuples(*[st.floats(-100, 100)] * 3))
    return matrix


shapes = st.tuples(st.integers(1, 13), st.integers(1, 13), st.integers(1, 9))
axes = st.sampled_from(sorted(SLICE_AXES))


@settings(max_examples=80, deadline=None)
@given(
    affine=affines(),
    shape=shapes,
    axis=axes,
    channels=st.integers(1, 3),
    size=st.tuples(st.integers(2, 20), st.integers(2, 20)),
    tiles=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    result_channels=st.integers(1, 2),
)
def test_the_inverse_has_the_shape_and_place_of_the_scan(
    affine: np.ndarray,
    shape: tuple[int, ...],
    axis: str,
    channels: int,
    size: tuple[int, int],
    tiles: tuple[int, int],
    result_channels: int,
) -> None:
    source = scan(np.random.default_rng(0).random((channels, *shape), dtype=np.float32), affine)
    grid = SliceGrid(size, axis, tiles=tiles)
    stack = grid(source)
    along = int(nib.io_orientation(affine)[:, 0].tolist().index(SLICE_AXES[axis]))
    assert stack.shape == (channels, *size, shape[along] * tiles[0] * tiles[1])
    # a result may have other channels than the scan
    result = MetaTensor(
        stack.as_tensor()[:1].repeat(result_channels, 1, 1, 1),
        affine=stack.affine,
        meta={key: value for key, value in stack.meta.items() if key != "affine"},
        applied_operations=stack.applied_operations,
    )
    back = grid.inverse(result)
    assert back.shape == (result_channels, *shape)
    np.testing.assert_array_equal(back.affine.numpy(), affine)
    assert torch.isfinite(back).all()
    assert float(back.min()) >= -1e-6
    assert float(back.max()) <= 1 + 1e-6


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(affine=affines(), shape=shapes, axis=axes, room=st.tuples(st.integers(0, 5), st.integers(0, 5)))
def test_without_resampling_every_value_and_place_is_kept(
    affine: np.ndarray, shape: tuple[int, ...], axis: str, room: tuple[int, int]
) -> None:
    # Isotropic in the slices, so that its own spacing needs no resampling.
    affine = affine.copy()
    affine[:3, :3] /= np.linalg.norm(affine[:3, :3], axis=0)
    source = scan(np.arange(1.0, 1 + np.prod(shape)).reshape(1, *shape), affine)
    canonical = nib.as_closest_canonical(nib.Nifti1Image(source[0].numpy(), affine))
    world = [a for a in range(3) if a != SLICE_AXES[axis]]
    extent = [canonical.shape[a] for a in world]
    grid = SliceGrid((extent[0] + room[0], extent[1] + room[1]), axis, spacing=1.0)
    stack = grid(source)
    # the stack is the canonical volume with the wanted axis last, centred
    expected = np.moveaxis(np.asarray(canonical.dataobj), SLICE_AXES[axis], 2)
    at = [r // 2 for r in room]
    inside = stack[0, at[0] : at[0] + extent[0], at[1] : at[1] + extent[1]].numpy()
    np.testing.assert_array_equal(inside, expected)
    assert float(stack.sum()) == expected.sum()  # zeros all around
    # each voxel is where it was in the world
    places = {float(source[0][tuple(i)]): affine @ [*i, 1] for i in np.ndindex(*shape)}
    for index in np.argwhere(stack[0].numpy() > 0):
        np.testing.assert_allclose(
            stack.affine.numpy() @ [*index, 1], places[float(stack[0][tuple(index)])], rtol=0, atol=1e-8
        )
    np.testing.assert_array_equal(grid.inverse(stack).numpy(), source.numpy())


def smooth_blob(shape: tuple[int, ...], centre: np.ndarray, width: np.ndarray) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return np.exp(-0.5 * (((index - centre) / width) ** 2).sum(axis=-1))[None]


def centre_of_mass(volume: np.ndarray) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, volume.shape), indexing="ij"), axis=-1)
    return (index * volume[..., None]).sum(axis=(0, 1, 2)) / volume.sum()


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    affine=affines(),
    axis=axes,
    spacing=st.one_of(st.none(), st.floats(0.7, 3.0)),
    where=st.tuples(*[st.floats(0.4, 0.6)] * 3),
)
def test_a_mark_lands_where_the_affine_says_and_comes_back(
    affine: np.ndarray, axis: str, spacing: float | None, where: tuple[float, ...]
) -> None:
    shape = (24, 20, 22)
    centre = np.array(where) * (np.array(shape) - 1)
    source = scan(smooth_blob(shape, centre, np.full(3, 2.0)), affine)
    grid = SliceGrid((256, 256) if spacing else (40, 30), axis, spacing=spacing)
    stack = grid(source)
    expected = affine @ [*centre, 1]
    found = stack.affine.numpy() @ [*centre_of_mass(stack[0].numpy()), 1]
    # less than half a voxel away, in the units of the scan's voxels
    away = np.linalg.solve(affine, found - expected)[:3]
    assert np.abs(away).max() < 0.5
    back = grid.inverse(stack)[0].numpy()
    assert np.abs(centre_of_mass(back) - centre).max() < 0.5


@pytest.mark.parametrize("axis", sorted(SLICE_AXES))
@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "ASL", "SRP"])
def test_slices_run_along_the_world_axis(axis: str, codes: str) -> None:
    orientation = nib.orientations.axcodes2ornt(tuple(codes))
    affine = nib.orientations.inv_ornt_aff(orientation, (7, 8, 9))
    index = np.stack(np.meshgrid(range(7), range(8), range(9), [1], indexing="ij"), axis=-1).squeeze(3)
    world = np.moveaxis(index @ affine.T, -1, 0)[:3]  # each voxel's R, A and S in mm
    stack = SliceGrid((9, 9), axis, spacing=1.0)(scan(world - world.min() + 1, affine))
    mm = stack.as_tensor()[SLICE_AXES[axis]]
    valid = stack.as_tensor()[0] > 0
    for s in range(mm.shape[-1]):
        values = mm[..., s][valid[..., s]]
        assert (values == values[0]).all()  # slices are not mixed
    heights = [float(mm[..., s].max()) for s in range(mm.shape[-1])]
    assert heights == sorted(heights)


def test_proportions_are_kept_and_the_window_is_filled() -> None:
    stack = SliceGrid((32, 32))(scan(np.ones((1, 40, 20, 3), dtype=np.float32)))
    filled = stack[0, :, :, 1].numpy() > 0.5
    assert filled.any(axis=1).sum() == 32
    assert filled.any(axis=0).sum() == 16
    assert filled.any(axis=0).nonzero()[0].tolist() == list(range(8, 24))


def test_spacing_is_in_millimetres() -> None:
    source = scan(np.ones((1, 10, 20, 3), dtype=np.float32), np.diag([2.0, 0.5, 7.0, 1.0]))
    stack = SliceGrid((32, 32), spacing=1.0)(source)
    filled = stack[0, :, :, 1].numpy() > 0.5
    assert filled.any(axis=1).sum() == 20
    assert filled.any(axis=0).sum() == 10
    np.testing.assert_allclose(np.linalg.norm(stack.affine.numpy()[:3, :3], axis=0), [1.0, 1.0, 7.0])
    assert stack.shape[-1] == 3


def test_resampling_is_the_mean_of_the_pixels_that_it_joins() -> None:
    ramp = np.broadcast_to(np.arange(32.0)[None, :, None, None], (1, 32, 32, 2)).copy()
    stack = SliceGrid((16, 16))(scan(ramp))
    np.testing.assert_allclose(stack[0, 2:-2, 5, 0].numpy(), 2 * np.arange(16)[2:-2] + 0.5, atol=1e-5)


def test_each_slice_is_resampled_by_itself_however_many_there_are() -> None:
    volume = np.random.default_rng(0).random((2, 9, 7, 37), dtype=np.float32)
    grid = SliceGrid((16, 12))
    stack = grid(scan(volume))
    assert stack.dtype == torch.float32
    back = grid.inverse(stack)
    for s in range(37):
        single = grid(scan(volume[..., s : s + 1]))
        assert torch.equal(single.as_tensor(), stack.as_tensor()[..., s : s + 1])
        assert torch.equal(grid.inverse(single).as_tensor(), back.as_tensor()[..., s : s + 1])


@pytest.mark.parametrize("tiles", [(2, 2), (3, 2), (1, 3)])
def test_tiles_are_the_patches_of_each_slice(tiles: tuple[int, int]) -> None:
    rows, columns = 4 * tiles[0], 5 * tiles[1]
    pixels = np.random.default_rng(0).random((3, rows, columns, 2))
    source = scan(pixels)
    grid = SliceGrid((4, 5), tiles=tiles)
    stack = grid(source)
    patches = [
        pixels[:, 4 * r : 4 * r + 4, 5 * c : 5 * c + 5, s]
        for r in range(tiles[0])
        for c in range(tiles[1])
        for s in range(2)
    ]
    assert stack.shape == (3, 4, 5, len(patches))
    found = [stack[..., s].numpy() for s in range(stack.shape[-1])]
    for patch in patches:
        assert sum(np.array_equal(patch, other) for other in found) == 1
    np.testing.assert_array_equal(grid.inverse(stack).numpy(), pixels)


def test_tissue_outside_the_window_is_refused() -> None:
    volume = np.zeros((1, 40, 40, 3), dtype=np.float32)
    volume[:, 2:38, 2:38] = 1.0
    with pytest.raises(InputError, match=r"^scan\.nii\.gz: at 1\.0 mm .*\(40, 40\).*\(32, 32\)") as caught:
        SliceGrid((32, 32), spacing=1.0)(scan(volume, foreground_level=[0.1]))
    assert "image_size" in caught.value.remedy
    SliceGrid((32, 32), spacing=1.5)(scan(volume, foreground_level=[0.1]))


def test_air_outside_the_window_is_cut_off() -> None:
    volume = np.zeros((1, 40, 40, 3), dtype=np.float32)
    volume[:, 6:34, 8:30] = np.random.default_rng(0).random((28, 22, 3)) + 0.5
    grid = SliceGrid((32, 32), spacing=1.0)
    stack = grid(scan(volume, foreground_level=[0.1]))
    np.testing.assert_array_equal(stack[0].numpy(), volume[0, 4:36, 4:36])
    np.testing.assert_array_equal(grid.inverse(stack).numpy(), volume)


def test_pictures_keep_their_orientation() -> None:
    picture = np.random.default_rng(0).random((3, 16, 24, 1), dtype=np.float32)
    for axis in SLICE_AXES:
        for spacing in (None, 0.3):  # an image has no millimetres
            grid = SliceGrid((24, 24), axis, spacing)
            stack = grid(scan(picture, kind="image"))
            assert stack.shape == (3, 24, 24, 1)
            np.testing.assert_array_equal(stack[:, 4:20].numpy(), picture)
            np.testing.assert_array_equal(grid.inverse(stack).numpy(), picture)


def test_number_types_and_the_input_are_left_alone() -> None:
    volume = np.arange(64.0).reshape(1, 4, 4, 4)
    source = scan(volume.copy())
    grid = SliceGrid((8, 8))
    first, second = grid(source), grid(source)
    np.testing.assert_array_equal(source.numpy(), volume)
    assert not source.applied_operations
    assert len(first.applied_operations) == len(second.applied_operations) == 1
    np.testing.assert_array_equal(first.numpy(), second.numpy())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"slice_axis": "oblique"}, "slice_axis"),
        ({"image_size": (0, 8)}, "positive"),
        ({"tiles": (1, 0)}, "positive"),
        ({"spacing": 0.0}, "positive"),
        ({"spacing": float("nan")}, "positive"),
    ],
)
def test_impossible_settings_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SliceGrid(**kwargs)


def test_tissue_slices_by_their_share_of_the_largest() -> None:
    stack = torch.zeros(2, 10, 10, 5)
    stack[0, :, :, 1] = 1.0  # 100 pixels
    stack[0, 0, :9, 2] = 1.0  # 9 of the first channel
    stack[1, 0, :9, 2] = 9.0  # the same pixels of the second: still 9
    stack[0, 0, :5, 3] = 1.0
    stack[1, 1, :5, 3] = 9.0  # other pixels: 10 together
    assert tissue_slices(stack, [0.5, 5.0]).tolist() == [False, True, False, True, False]
    assert tissue_slices(stack, [0.5, 5.0], least=0.0).tolist() == [False, True, True, True, False]
    assert tissue_slices(stack, [2.0, 20.0]).tolist() == [False] * 5


def test_dictionary_version() -> None:
    volume = np.random.default_rng(0).random((1, 8, 8, 3))
    transform = SliceGridd(["image", "absent"], (16, 16), "coronal", allow_missing_keys=True)
    out = transform({"image": scan(volume), "name": "x"})
    assert out["image"].shape == (1, 16, 16, 8)
    assert out["name"] == "x"
    assert transform.inverse(out)["image"].shape == volume.shape
