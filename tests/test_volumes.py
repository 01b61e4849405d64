"""Whole volumes in three dimensions: the grid and the way back, proxies, training, and a bundle run end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_runs import cohort_evaluator, detect, figures_of, head, refusal, table, train_small, write_nifti
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.networks import convert_to_onnx
from monai.networks.nets import PatchDiscriminator
from PIL import Image
from scipy.spatial.transform import Rotation
from torch import Tensor

from monai_anomaly.data import Cohort, ScanDataset, ScanPreprocessing, SliceDataset
from monai_anomaly.engines import (
    ImageReconstructionTrainer,
    ProxyExtractionTrainer,
    StackInferer,
    TrainingData,
    scan_loader,
    train_stages,
)
from monai_anomaly.exceptions import InputError
from monai_anomaly.networks import AnomalyDetector, AnomalyOutput, ProxyAno
from monai_anomaly.transforms import RandPseudoAbnormalProxyd, SuperpixelImage, VolumeGrid, VolumeGridd

pytest_plugins = ["bundle_fixtures"]

SIDE = 32
OVERLAY: dict[str, Any] = {
    "image_size": [16, 16, 16],
    "spacing": 4.0,
    "batch_size": 3,
    "network_def#channels": [4, 8],
    "discriminator#num_layers_d": 2,
}


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


def traced(like: MetaTensor, values: Tensor) -> MetaTensor:
    meta = {key: value for key, value in like.meta.items() if key != "affine"}
    return MetaTensor(values, affine=like.affine, meta=meta, applied_operations=like.applied_operations)


shapes = st.tuples(*[st.integers(1, 13)] * 3)
sizes = st.tuples(*[st.integers(2, 20)] * 3)


@settings(max_examples=80, deadline=None)
@given(
    affine=affines(),
    shape=shapes,
    size=sizes,
    channels=st.integers(1, 3),
    results=st.integers(1, 2),
    value=st.integers(-1000, 1000),
)
def test_the_inverse_has_the_shape_and_place_of_the_scan_and_keeps_a_constant(
    affine: np.ndarray, shape: tuple[int, ...], size: tuple[int, ...], channels: int, results: int, value: int
) -> None:
    grid = VolumeGrid(size)
    volume = grid(scan(np.random.default_rng(0).random((channels, *shape), dtype=np.float32), affine))
    assert volume.shape == (channels, *size)
    assert torch.isfinite(volume).all()
    assert float(volume.min()) >= -1e-6
    assert float(volume.max()) <= 1 + 1e-6
    # a result may have other channels than the scan
    back = grid.inverse(traced(volume, torch.full((results, *size), float(value))))
    assert back.shape == (results, *shape)
    np.testing.assert_array_equal(back.affine.numpy(), affine)
    np.testing.assert_allclose(back.numpy(), value, rtol=1e-5)


def triangle(n: int, m: int) -> np.ndarray:
    """Weights (m, n) of linear resampling from n to m samples, the triangle widened where it shrinks."""
    scale = n / m
    weights = np.zeros((m, n))
    for i in range(m):
        for j in range(n):
            weights[i, j] = max(0.0, 1 - abs((i + 0.5) * scale - (j + 0.5)) / max(scale, 1.0))
        weights[i] /= weights[i].sum()
    return weights


@pytest.mark.parametrize("spacing", [None, 1.7])
def test_resampling_against_plain_weights(spacing: float | None) -> None:
    shape, mm, window = (11, 14, 5), np.array([1.0, 2.0, 6.5]), (16, 20, 24)
    volume = np.random.default_rng(0).random((2, *shape))
    extent = mm * shape  # 11, 28 and 32.5 mm
    side = max(extent / window) if spacing is None else spacing
    size = [round(e / side) for e in extent]
    assert size == ([8, 20, 23] if spacing is None else [6, 16, 19])
    expected = np.zeros((2, *window))
    inner = np.einsum("cxyz,ax,by,dz->cabd", volume, *(triangle(n, m) for n, m in zip(shape, size)))
    at = [(w - n) // 2 for n, w in zip(size, window)]
    expected[:, at[0] : at[0] + size[0], at[1] : at[1] + size[1], at[2] : at[2] + size[2]] = inner
    grid = VolumeGrid(window, spacing)
    found = grid(scan(volume, np.diag([*mm, 1.0])))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    # and back, by the same weights from size to shape
    native = np.einsum("cabd,xa,yb,zd->cxyz", inner, *(triangle(m, n) for n, m in zip(shape, size)))
    np.testing.assert_allclose(grid.inverse(found).numpy(), native, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    order=st.permutations([0, 1, 2]),
    flips=st.tuples(*[st.booleans()] * 3),
    size=sizes,
    spacing=st.one_of(st.none(), st.floats(0.8, 3.0)),
    seed=st.integers(0, 99),
)
def test_the_order_that_a_scan_is_stored_in_does_not_matter(
    order: list[int], flips: tuple[bool, ...], size: tuple[int, ...], spacing: float | None, seed: int
) -> None:
    values = np.random.default_rng(seed).random((1, 9, 7, 6), dtype=np.float32)
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    stored, turned = values.transpose(0, *(1 + i for i in order)), affine[:, [*order, 3]].copy()
    for axis, flip in enumerate(flips):
        if flip:
            turned[:3, 3] += turned[:3, axis] * (stored.shape[1 + axis] - 1)
            turned[:3, axis] *= -1
            stored = np.flip(stored, 1 + axis)
    grid = VolumeGrid(size, spacing)
    # nothing is tissue, so that nothing is rejected
    plain = grid(scan(values, affine, foreground_level=[1.0]))
    other = grid(scan(stored, turned, foreground_level=[1.0]))
    assert torch.equal(plain.as_tensor(), other.as_tensor())
    np.testing.assert_allclose(plain.affine.numpy(), other.affine.numpy(), atol=1e-9)
    back, again = grid.inverse(plain).numpy(), grid.inverse(other).numpy()
    unturned = np.flip(again, tuple(1 + axis for axis, flip in enumerate(flips) if flip))
    np.testing.assert_array_equal(unturned.transpose(0, *(1 + np.argsort(order))), back)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(affine=affines(), shape=shapes, room=st.tuples(*[st.integers(0, 5)] * 3))
def test_without_resampling_every_value_and_place_is_kept(
    affine: np.ndarray, shape: tuple[int, ...], room: tuple[int, ...]
) -> None:
    affine = affine.copy()
    affine[:3, :3] /= np.linalg.norm(affine[:3, :3], axis=0)
    source = scan(np.arange(1.0, 1 + np.prod(shape)).reshape(1, *shape), affine)
    canonical = np.asarray(nib.as_closest_canonical(nib.Nifti1Image(source[0].numpy(), affine)).dataobj)
    grid = VolumeGrid([n + r for n, r in zip(canonical.shape, room)], spacing=1.0)
    volume = grid(source)
    inside = tuple(slice(r // 2, r // 2 + n) for n, r in zip(canonical.shape, room))
    np.testing.assert_array_equal(volume[0][inside].numpy(), canonical)
    assert float(volume.sum()) == canonical.sum()  # zeros all around
    places = {float(source[0][tuple(i)]): affine @ [*i, 1] for i in np.ndindex(*shape)}
    for index in np.argwhere(volume[0].numpy() > 0):
        place = volume.affine.numpy() @ [*index, 1]
        np.testing.assert_allclose(place, places[float(volume[0][tuple(index)])], rtol=0, atol=1e-8)
    back = grid.inverse(volume)
    np.testing.assert_array_equal(back.numpy(), source.numpy())
    np.testing.assert_array_equal(back.affine.numpy(), affine)


def blob(shape: tuple[int, ...], centre: np.ndarray, width: float) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return np.exp(-0.5 * (((index - centre) / width) ** 2).sum(axis=-1))[None]


def centre_of_mass(volume: np.ndarray) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, volume.shape), indexing="ij"), axis=-1)
    return (index * volume[..., None]).sum(axis=(0, 1, 2)) / volume.sum()


@settings(max_examples=20, deadline=None)
@given(
    affine=affines(),
    spacing=st.one_of(st.none(), st.floats(0.7, 3.0)),
    where=st.tuples(*[st.floats(0.4, 0.6)] * 3),
)
def test_a_mark_lands_where_the_affine_says_and_comes_back(
    affine: np.ndarray, spacing: float | None, where: tuple[float, ...]
) -> None:
    shape = (24, 20, 22)
    centre = np.array(where) * (np.array(shape) - 1)
    mm = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing is not None:  # one window for all draws, of 64 cubes of at least a 64th of the largest extent
        spacing = max(spacing, float((mm * shape).max()) / 64)
    grid = VolumeGrid((64, 64, 64), spacing)
    volume = grid(scan(blob(shape, centre, 2.0), affine))
    found = volume.affine.numpy() @ [*centre_of_mass(volume[0].numpy()), 1]
    # less than half a voxel away, in the units of the scan's voxels
    assert np.abs(np.linalg.solve(affine, found - affine @ [*centre, 1])[:3]).max() < 0.5
    assert np.abs(centre_of_mass(grid.inverse(volume)[0].numpy()) - centre).max() < 0.5


def test_a_smooth_volume_survives_the_round_trip() -> None:
    shape = (30, 36, 20)
    x, y, z = np.meshgrid(*(np.linspace(0, np.pi, n) for n in shape), indexing="ij")
    smooth = (np.sin(x) * np.sin(y) * np.sin(z))[None].astype(np.float32)
    affine = np.diag([-1.0, 1.2, 2.5, 1.0])
    for grid in (VolumeGrid((48, 48, 48)), VolumeGrid((40, 40, 40), spacing=1.3)):
        back = grid.inverse(grid(scan(smooth, affine))).numpy()
        assert np.abs(back - smooth).max() < 0.05
        assert np.corrcoef(back.ravel(), smooth.ravel())[0, 1] > 0.999


def test_proportions_in_millimetres_are_kept_and_voxels_are_cubes() -> None:
    # 40 x 20 x 15 mm: long voxels make the axis of three voxels longer than its number says
    volume = VolumeGrid((32, 32, 32))(scan(np.ones((1, 40, 10, 3), dtype=np.float32), np.diag([1.0, 2.0, 5.0, 1.0])))
    filled = volume[0].numpy() > 0.5
    assert [int(filled.any(axis=tuple({0, 1, 2} - {a})).sum()) for a in range(3)] == [32, 16, 12]
    assert filled.any(axis=(0, 2)).nonzero()[0].tolist() == list(range(8, 24))
    np.testing.assert_allclose(np.linalg.norm(volume.affine.numpy()[:3, :3], axis=0), 1.25)
    spaced = VolumeGrid((32, 32, 32), spacing=2.5)(scan(np.ones((1, 40, 10, 3)), np.diag([1.0, 2.0, 5.0, 1.0])))
    assert int((spaced > 0.5).sum()) == 16 * 8 * 6
    np.testing.assert_allclose(np.linalg.norm(spaced.affine.numpy()[:3, :3], axis=0), 2.5)


def test_tissue_outside_the_window_is_refused_and_air_is_cut_off() -> None:
    volume = np.zeros((1, 40, 20, 40), dtype=np.float32)
    volume[:, 6:34, 2:18, 8:30] = np.random.default_rng(0).random((28, 16, 22)) + 0.5
    grid = VolumeGrid((32, 20, 24), spacing=1.0)
    cut = grid(scan(volume, foreground_level=[0.1]))
    np.testing.assert_array_equal(cut[0].numpy(), volume[0, 4:36, :, 8:32])
    np.testing.assert_array_equal(grid.inverse(cut).numpy(), volume)
    with pytest.raises(InputError, match=r"^scan\.nii\.gz: at 1\.0 mm .*\(40, 20, 40\).*\(24, 20, 24\)") as caught:
        VolumeGrid((24, 20, 24), spacing=1.0)(scan(volume, foreground_level=[0.1]))
    assert "image_size" in caught.value.remedy


def test_number_types_and_the_input_are_left_alone() -> None:
    values = np.arange(64.0).reshape(1, 4, 4, 4)
    source = scan(values.copy())
    grid = VolumeGrid((8, 8, 8))
    first, second = grid(source), grid(source)
    np.testing.assert_array_equal(source.numpy(), values)
    assert not source.applied_operations
    assert len(first.applied_operations) == len(second.applied_operations) == 1
    np.testing.assert_array_equal(first.numpy(), second.numpy())


def test_dictionary_version() -> None:
    volume = np.random.default_rng(0).random((1, 8, 8, 3))
    transform = VolumeGridd(["image", "absent"], (16, 16, 12), allow_missing_keys=True)
    out = transform({"image": scan(volume), "name": "x"})
    assert out["image"].shape == (1, 16, 16, 12)
    assert out["name"] == "x"
    assert transform.inverse(out)["image"].shape == volume.shape


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"image_size": (8, 8)}, "three positive numbers"),
        ({"image_size": (8, 0, 8)}, "three positive numbers"),
        ({"spacing": 0.0}, "spacing positive"),
        ({"spacing": float("nan")}, "spacing positive"),
    ],
)
def test_impossible_settings_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VolumeGrid(**kwargs)


def test_preprocessing_of_whole_volumes(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", 1)  # stored in another order, one axis reversed
    chain = ScanPreprocessing((32, 32, 24), percentiles=(1, 95))
    source = chain.load(str(path))
    stack = chain.stack(source)
    assert chain.spatial_dims == 3
    assert ScanPreprocessing((32, 24)).spatial_dims == 2
    assert stack.shape == (1, 32, 32, 24)
    assert torch.equal(stack.as_tensor(), chain({"image": str(path)})["image"].as_tensor())
    assert torch.equal(stack.as_tensor(), VolumeGrid((32, 32, 24))(chain.intensity(source)).as_tensor())
    assert torch.equal(chain.tissue(stack), torch.ones(24, dtype=torch.bool))
    for _ in range(2):  # the trace is not used up
        image = chain.to_scan(stack, stack, intensities=True)
        assert image.shape == source.shape
        clipped = chain.intensity.inverse(chain.intensity(source)).as_tensor()
        # on five-millimetre voxels the blur is along the short axis: in place nevertheless
        assert np.corrcoef(image.numpy().ravel(), clipped.numpy().ravel())[0, 1] > 0.95
    again = ScanPreprocessing(**json.loads(json.dumps(chain.config)))
    assert again.config == chain.config
    assert torch.equal(again.stack(source).as_tensor(), stack.as_tensor())


@pytest.mark.parametrize("size", [(32, 32), (32, 32, 24)])
def test_a_change_goes_back_as_the_difference_of_both_images(tmp_path: Path, size: tuple[int, ...]) -> None:
    chain = ScanPreprocessing(size)
    stack = chain.stack(chain.load([str(write_nifti(tmp_path / "a.nii.gz", 3))] * 2))
    restored = stack.as_tensor() * torch.rand(stack.shape, generator=torch.Generator().manual_seed(0))
    before, after = (chain.to_scan(image, stack, intensities=True) for image in (stack.as_tensor(), restored))
    change = chain.change_to_scan(restored - stack.as_tensor(), stack)
    assert type(change) is torch.Tensor
    assert float(change.abs().max()) > 1
    np.testing.assert_allclose(change.numpy(), (after - before).numpy(), atol=1e-3)


def test_pictures_tiles_and_odd_sizes_are_refused_by_name(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 20), dtype=np.uint8)).save(tmp_path / "a.png")
    chain = ScanPreprocessing((16, 16, 16))
    with pytest.raises(InputError, match=r"a\.png: is an image, and an image_size of three numbers") as caught:
        chain.stack(chain.load(str(tmp_path / "a.png")))
    assert "spatial_dims 2" in caught.value.remedy
    with pytest.raises(ValueError, match=r"tiles cut slices; .*got \(2, 1\)"):
        ScanPreprocessing((16, 16, 16), tiles=(2, 1))
    with pytest.raises(ValueError, match="slice_axis is one of"):
        ScanPreprocessing((16, 16, 16), slice_axis="oblique")
    with pytest.raises(ValueError, match=r"two numbers \(slices\) or three \(volumes\), got \(16,\)"):
        ScanPreprocessing((16,))


def items(folder: Path, seeds: range) -> list[dict[str, Any]]:
    return [
        {
            "case": f"s{seed}",
            "image": str(write_nifti(folder / f"s{seed}.nii.gz", seed)),
            "patient": f"s{seed}",
            "label": 0,
            "mask": None,
        }
        for seed in seeds
    ]


def test_dataset_items_are_volumes_with_proxies_in_three_dimensions(tmp_path: Path) -> None:
    cohort, chain, proxy = items(tmp_path, range(3)), ScanPreprocessing((SIDE,) * 3), SuperpixelImage()
    common: dict[str, Any] = {"proxy": proxy, "cache_dir": tmp_path / "cache", "progress": False}
    paste = RandPseudoAbnormalProxyd("proxy")
    data = SliceDataset(cohort, chain, slice_transform=paste, donors="other", **common).set_random_state(0)
    assert len(data) == 3
    assert data.channels == 1
    volumes = [chain({"image": item["image"]})["image"].as_tensor() for item in cohort]
    assert [tuple(v.shape) for v in data.scans()] == [(1, 1, SIDE, SIDE, SIDE)] * 3
    for index, volume in enumerate(volumes):
        drawn = data[index]
        assert torch.equal(drawn["image"], volume)
        np.testing.assert_array_equal(drawn["proxy"].numpy(), proxy(volume.numpy()))
        assert any(torch.equal(drawn["donor"], volumes[other]) for other in {0, 1, 2} - {index})
        inside = drawn["paste_mask"][0].bool()
        box = [inside.any(dim=1).any(dim=1), inside.any(dim=0).any(dim=1), inside.any(dim=0).any(dim=0)]
        assert all(3 <= int(side.sum()) <= 16 for side in box)  # 0.1 to 0.5 of each side
        assert int(inside.sum()) == np.prod([int(side.sum()) for side in box])
        assert torch.equal(drawn["pseudo_proxy"][0][~inside], drawn["proxy"][0][~inside])
        assert not torch.equal(drawn["pseudo_proxy"], drawn["proxy"])
    # a supervoxel is one piece of the volume, over several slices of it
    labels = proxy.segment(volumes[0].numpy())
    assert max(len(np.unique(np.argwhere(labels == label)[:, 2])) for label in np.unique(labels)) > 3
    entry = ScanDataset(cohort, chain)[1]
    assert torch.equal(entry["stack"].as_tensor(), volumes[1])
    assert entry["scan"].shape == (1, 4, 24, 28)
    assert bool(entry["tissue"].all())


class Bright(AnomalyDetector):
    """Three times the volume, its largest value, and its half as restoration, or none."""

    def __init__(self, restores: bool = True) -> None:
        super().__init__(3, in_channels=1)
        self.weight = torch.nn.Parameter(torch.tensor(3.0))
        self.restores = restores

    def detect(self, image: Tensor) -> AnomalyOutput:
        self.check_input(image)
        score = image.flatten(1).amax(1) * self.weight
        return AnomalyOutput(image * self.weight, score, image / 2 if self.restores else None)


@pytest.mark.slow
@pytest.mark.parametrize("restores", [True, False])
def test_a_volume_is_run_whole_and_its_map_lies_on_the_scan(tmp_path: Path, restores: bool) -> None:
    network, chain = Bright(restores), ScanPreprocessing((SIDE,) * 3)
    data = items(tmp_path, range(1, 3))
    stack = chain.stack(chain.load(data[0]["image"]))
    output = StackInferer(1)(stack, network.eval(), chain.tissue(stack))
    assert torch.equal(output.anomaly_map, stack.as_tensor() * 3)
    assert torch.equal(output.anomaly_score, (stack.as_tensor().max() * 3)[None])
    assert (output.restoration is not None) == restores
    evaluator = cohort_evaluator(network, chain, scan_loader(data, chain), tmp_path / "out", overview_slices=1)
    evaluator.run()
    assert not evaluator.failures
    for item in data:
        source = nib.load(item["image"])
        written = {
            name: nib.load(tmp_path / "out" / item["case"] / f"{name}.nii.gz")
            for name in ("anomaly_map", "restoration")
        }
        for image in written.values():
            assert image.shape == source.shape
            assert float(np.abs(image.affine - source.affine).max()) == 0
        stack = chain.stack(chain.load(item["image"]))
        native = chain.to_scan(stack.as_tensor(), stack)[0].numpy()
        np.testing.assert_allclose(written["anomaly_map"].get_fdata(), 3 * native, atol=1e-5)
        voxels = source.get_fdata()
        low, high = np.percentile(voxels[voxels > 0.1 * np.percentile(voxels, 99)], [0.5, 90])
        # half of what the detector saw is taken away, in the scan's own unit
        expected = voxels - native / 2 * 1.6 * (high - low) if restores else voxels
        np.testing.assert_allclose(written["restoration"].get_fdata(), expected, rtol=1e-5, atol=1e-3)
        assert (tmp_path / "out" / item["case"] / "overview.png").stat().st_size > 10_000


def tiny() -> ProxyAno:
    torch.manual_seed(0)
    return ProxyAno(spatial_dims=3, channels=[4, 8], latent_channels=4, num_items=8)


@pytest.mark.slow
def test_detect_script_and_onnx_of_a_volume(tmp_path: Path) -> None:
    network = tiny().eval()
    volume = torch.rand(2, 1, 8, 12, 16)
    with torch.no_grad():
        output = network.detect(volume)
        scripted = torch.jit.script(network)(volume)
    assert output.anomaly_map.shape == volume.shape
    assert output.anomaly_score.shape == (2,)
    assert output.restoration is not None
    torch.testing.assert_close(output.anomaly_map, (volume - output.restoration).abs())  # Eq. 14
    torch.testing.assert_close(scripted, output.anomaly_map, atol=1e-4, rtol=0)
    path = tmp_path / "detector.onnx"
    convert_to_onnx(
        network,
        [volume[:1]],
        filename=str(path),
        verify=True,
        use_ort=True,
        rtol=1e-3,
        atol=1e-4,
        input_names=["image"],
        output_names=["map"],
    )
    assert path.stat().st_size > 1000
    with pytest.raises(ValueError, match="3-D images"):
        network.detect(volume[..., 0])


@pytest.mark.slow
def test_both_stages_learn_on_volumes(tmp_path: Path) -> None:
    cohort = items(tmp_path, range(3))
    network = tiny()
    discriminator = PatchDiscriminator(spatial_dims=3, in_channels=1, channels=4, num_layers_d=2)
    data = TrainingData(
        Cohort(tmp_path, cohort, [], []),
        image_size=(16, 16, 16),
        proxy=SuperpixelImage(),
        slice_transform=RandPseudoAbnormalProxyd("proxy"),
        donors="other",
        batch_size=3,
        progress=False,
    )

    def adam(module: torch.nn.Module) -> torch.optim.Adam:
        return torch.optim.Adam(module.parameters(), lr=0.005)

    reconstruction = network.reconstruction_module
    assert reconstruction is not None
    stages = [
        ProxyExtractionTrainer(network, "cpu", 30, data.train_loader, adam(network.proxy_module)),
        ImageReconstructionTrainer(
            network, discriminator, "cpu", 30, data.train_loader, adam(reconstruction), adam(discriminator)
        ),
    ]
    history = train_stages(stages, network, tmp_path / "training", seed=0, identity={}, progress=False)
    for stage in ("proxy extraction", "image reconstruction"):
        losses = [row["train_loss"] for row in history if row["stage"] == stage]
        assert len(losses) == 30
        assert losses[-1] < 0.7 * losses[0]


@pytest.fixture(scope="module")
def volumes_run(tiny_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_small(tmp_path_factory.mktemp("volumes"), tiny_cohort, "volumes", **OVERLAY)


@pytest.mark.slow
def test_bundle_trains_and_evaluates_whole_volumes(volumes_run: Path, tiny_cohort: Path, tmp_path: Path) -> None:
    described = json.loads((volumes_run / "models" / "detector.json").read_text())
    assert described["preprocessing"]["image_size"] == [16, 16, 16]
    assert described["network"]["arguments"]["spatial_dims"] == 3
    assert described["calibration_patients"] == 19
    out = detect(volumes_run, tmp_path / "out", tiny_cohort, "evaluate", overview_slices=1)
    assert len(table(out / "predictions.csv")) == 5
    assert 0 <= (figures_of(out).value("ProxyAno", "pixel", "auroc") or -1) <= 1
    for seed, case in ((90, "a0"), (91, "a1")):  # as stored in RAS order, and in another
        voxels, _, affine = head(seed)
        (folder,) = [f.parent for f in out.rglob("anomaly_map.nii.gz") if f.parent.name.endswith(case)]
        for name in ("anomaly_map", "anomaly_mask", "restoration"):
            image = nib.load(folder / f"{name}.nii.gz")
            assert image.shape == voxels.shape
            np.testing.assert_allclose(image.affine, affine, atol=1e-4)
        assert (folder / "overview.png").exists()
        assert nib.load(folder / "anomaly_map.nii.gz").get_fdata().std() > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:SuperpixelImage")  # cells of 9 pixels in slices of 16
def test_bundle_refuses_sizes_and_networks_that_do_not_fit(tiny_cohort: Path, tmp_path: Path) -> None:
    slices = {**OVERLAY, "image_size": [16, 16]}
    assert "image_size" in refusal(train_small, tmp_path / "a", tiny_cohort, "volumes", **slices)
    assert "image_size" in refusal(train_small, tmp_path / "b", tiny_cohort, image_size=[SIDE] * 3)
    odd = {**OVERLAY, "image_size": [16, 16, 10]}
    assert "multiples of 4" in refusal(train_small, tmp_path / "c", tiny_cohort, "volumes", **odd)


@pytest.mark.slow
def test_bundle_refuses_pictures_for_volumes(volumes_run: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (20, 20), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "pictures" / "a.png")
    with pytest.raises((SystemExit, RuntimeError)) as caught:
        detect(volumes_run, tmp_path / "out", tmp_path / "pictures")
    cause: BaseException | None = caught.value
    while cause is not None and "is an image" not in str(cause):
        cause = cause.__cause__ or cause.__context__
    assert cause is not None
    assert "is an image" in table(tmp_path / "out" / "failures.csv")[0]["error"]
