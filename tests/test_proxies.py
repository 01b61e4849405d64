"""Proxies against plain computations, and the property that makes a superpixel image one: it follows edges."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose, GaussianSmooth, ScaleIntensity
from scipy.ndimage import gaussian_filter
from skimage.segmentation import find_boundaries

from monai_anomaly.exceptions import InputError
from monai_anomaly.transforms import proxies as module
from monai_anomaly.transforms.proxies import (
    CannyEdge,
    CannyEdged,
    ConcatProxies,
    ConcatProxiesd,
    Proxy,
    SmoothImage,
    SmoothImaged,
    SmoothPatches,
    SmoothPatchesd,
    SuperpixelImage,
    SuperpixelImaged,
)

ALL = [
    SuperpixelImage(),
    CannyEdge(),
    SmoothImage(),
    SmoothPatches(),
    ConcatProxies(CannyEdge(), SmoothImage()),
    ConcatProxies(CannyEdge(), SmoothPatches()),
]
by_name = pytest.mark.parametrize("proxy", ALL, ids=lambda p: "-".join(map(str, p.config.values()))[:40])


def curves(seed: int = 0) -> np.ndarray:
    """Discs, an ellipse and a wave with slight noise, (1, 256, 256), about [0, 1]."""
    y, x = np.mgrid[:256, :256] / 256
    image = (
        0.2 + 0.3 * ((x - 0.5) ** 2 + (y - 0.45) ** 2 < 0.16) + 0.4 * ((x - 0.62) ** 2 / 1.5 + (y - 0.5) ** 2 < 0.02)
    )
    image += -0.15 * ((x - 0.3) ** 2 + (y - 0.6) ** 2 < 0.01) + 0.2 * (y > 0.8 + 0.05 * np.sin(9 * x))
    noise = np.random.default_rng(seed).normal(0, 0.02, image.shape)
    return (image + noise).astype(np.float32)[None]


def random_image(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Soft random blobs, each channel its own, about [-1, 1]."""
    noise = np.random.default_rng(seed).normal(size=shape)
    soft = gaussian_filter(noise, (0.0, *[2.0] * (len(shape) - 1)))
    return (soft / np.abs(soft).max()).astype(np.float32)


def square_grid(shape: tuple[int, int], cells: int) -> np.ndarray:
    """Labels of a square grid with at least ``cells`` cells."""
    side = (shape[0] * shape[1] / cells) ** 0.5
    rows, columns = (np.arange(n) // side for n in shape)
    return (rows[:, None] * (columns.max() + 1) + columns).astype(int)


def plain_fill(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    filled = np.empty_like(image)
    for label in np.unique(labels):
        inside = labels == label
        for channel in range(image.shape[0]):
            filled[channel, inside] = image[channel, inside].astype(np.float64).mean()
    return filled


def explained(image: np.ndarray, proxy: np.ndarray) -> float:
    """Explained variation: 1 where the proxy is the image, 0 where it is its mean."""
    return float(1 - ((image - proxy) ** 2).mean() / image.var())


def recall(labels: np.ndarray, edges: np.ndarray) -> float:
    """Share of edge pixels that lie on a cell's boundary."""
    return float((find_boundaries(labels) & edges).sum() / edges.sum())


def assert_follows_edges(image: np.ndarray) -> None:
    """Superpixels against a square grid with no fewer cells; compactness 10 is close to that grid."""
    edges = CannyEdge()(image)[0] > 0
    superpixels, square = SuperpixelImage(), SuperpixelImage(compactness=10.0)
    labels = superpixels.segment(image)
    grid = square_grid(image.shape[1:], len(np.unique(labels)))
    assert len(np.unique(grid)) >= len(np.unique(labels))
    of_grid, of_si, of_square = (
        explained(image, proxy) for proxy in (plain_fill(image, grid), superpixels(image), square(image))
    )
    # the part left unexplained shrinks by a quarter at least; compactness 10 stays within a tenth of the grid's
    assert 1 - of_si < 0.75 * (1 - of_grid)
    assert abs(of_square - of_grid) < 0.1 * (1 - of_grid)
    assert recall(labels, edges) > 1.5 * recall(grid, edges)
    assert recall(square.segment(image), edges) < 1.1 * recall(grid, edges)


def test_superpixels_follow_edges_and_compactness_10_does_not() -> None:
    assert_follows_edges(curves())


@pytest.mark.slow
def test_superpixels_follow_edges_of_a_real_slice(real_data: Path) -> None:
    from PIL import Image

    files = sorted((real_data / "brain_lgg_flair" / "train" / "normal").glob("*.png"))
    if not files:
        pytest.skip("real data: no brain_lgg_flair slices")
    for file in files[:60:20]:
        assert_follows_edges(np.asarray(Image.open(file).convert("L"), dtype=np.float32)[None] / 255)


def test_about_800_superpixels_at_the_paper_size() -> None:
    assert SuperpixelImage().count((256, 256)) == 800
    assert SuperpixelImage().count((128, 256)) == 400
    assert SuperpixelImage().count((8, 8)) == 4
    assert SuperpixelImage().count((8, 8, 8)) == 8
    assert SuperpixelImage().count((64, 64, 64)) == 354  # 64^3 / 9.05^3
    assert SuperpixelImage(50).count((256, 256)) == 50
    assert abs(len(np.unique(SuperpixelImage().segment(curves()))) - 800) < 0.2 * 800


def test_supervoxels_have_the_cell_of_the_superpixels() -> None:
    shape = (45, 36, 36)
    z, y, x = np.mgrid[:45, :36, :36]
    volume = ((z - 22) ** 2 + (y - 20) ** 2 + (x - 16) ** 2 < 150).astype(np.float32)[None]
    volume += 0.05 * random_image((1, *shape))
    superpixels = SuperpixelImage()
    labels = superpixels.segment(volume)
    assert labels.shape == shape
    assert superpixels.count(shape) == round(45 * 36 * 36 / 9.0510**3)
    assert 0.8 < len(np.unique(labels)) / superpixels.count(shape) < 1.2
    proxy = superpixels(volume)
    np.testing.assert_array_equal(proxy, plain_fill(volume, labels))
    assert 1 - explained(volume, proxy) < 0.5 * (1 - explained(volume, SmoothPatches(9)(volume)))


def test_noise_that_tears_the_cells_is_told() -> None:
    noise = np.random.default_rng(0).random((1, 64, 64), dtype=np.float32)
    with pytest.warns(UserWarning, match="fewer than half"):
        SuperpixelImage()(noise)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SuperpixelImage(compactness=1.0)(noise)
        SuperpixelImage()(curves())


@pytest.mark.parametrize("shape", [(1, 40, 33), (3, 40, 33), (2, 24, 20), (2, 16, 14, 12)])
def test_each_superpixel_holds_its_mean_per_channel(shape: tuple[int, ...]) -> None:
    image = random_image(shape)
    superpixels = SuperpixelImage()
    labels = superpixels.segment(image)
    assert labels.shape == shape[1:]
    assert len(np.unique(labels)) > 1
    np.testing.assert_array_equal(superpixels(image), plain_fill(image, labels))


@pytest.mark.parametrize("proxy", [SuperpixelImage(), CannyEdge()], ids=["superpixels", "edges"])
def test_value_range_does_not_move_cells_or_edges(proxy: Proxy) -> None:
    image = np.round(curves()[:, ::2, ::2] * 255)  # exact under the affine map below
    moved = proxy(image * 8 - 1024)
    expected = proxy(image)
    if isinstance(proxy, SuperpixelImage):
        expected = expected * 8 - 1024
    np.testing.assert_allclose(moved, expected, atol=1e-3)


def test_pre_smoothing_changes_the_cells_only() -> None:
    image = random_image((1, 48, 48))
    smooth = SuperpixelImage(sigma=1.5)
    assert not np.array_equal(smooth.segment(image), SuperpixelImage().segment(image))
    np.testing.assert_array_equal(smooth(image), plain_fill(image, smooth.segment(image)))


def test_edges_of_a_step() -> None:
    image = np.zeros((2, 32, 32), dtype=np.float32)
    image[:, :, 16:] = [[[1000.0]], [[3000.0]]]
    edges = CannyEdge()(image)
    assert set(np.unique(edges)) == {0.0, 1.0}
    inner = edges[0, 4:-4]
    assert inner.any(axis=1).all()
    assert not inner[:, :14].any()
    assert not inner[:, 18:].any()


def test_edges_of_a_volume_are_those_of_its_slices() -> None:
    volume = np.stack([curves(seed)[0, ::2, ::2] for seed in range(3)], axis=-1)[None]
    volume = (volume - volume.min()) / (volume.max() - volume.min())
    edges = CannyEdge()(volume)
    from skimage.feature import canny

    for index in range(3):
        plain = canny(volume[0, ..., index].astype(np.float64), sigma=1.0, low_threshold=0.1, high_threshold=0.2)
        np.testing.assert_array_equal(edges[0, ..., index] > 0, plain)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(1, 13), min_size=2, max_size=3),
    channels=st.integers(1, 3),
    size=st.integers(1, 9),
)
def test_patches_against_a_plain_loop(shape: list[int], channels: int, size: int) -> None:
    image = random_image((channels, *shape))
    expected = np.empty_like(image)
    for start in np.ndindex(*(-(-side // size) for side in shape)):
        place = (slice(None), *(slice(i * size, (i + 1) * size) for i in start))
        flat = image[place].reshape(channels, -1).astype(np.float64).mean(axis=1)
        expected[place] = flat.reshape(channels, *[1] * len(shape))
    np.testing.assert_allclose(SmoothPatches(size)(image), expected, atol=1e-6)


def test_smooth_image_is_monais_away_from_the_border() -> None:
    image = random_image((2, 48, 40))
    smooth = SmoothImage(2.0)(image)
    # "sampled" is the same kernel
    reference = GaussianSmooth(2.0, approx="sampled")(image)
    inner = (slice(None), slice(9, -9), slice(9, -9))
    np.testing.assert_allclose(smooth[inner], reference[inner], atol=1e-3)
    ones = np.ones((1, 20, 20), dtype=np.float32)
    np.testing.assert_allclose(SmoothImage(2.0)(ones), ones, atol=1e-6)
    assert GaussianSmooth(2.0)(ones)[0, 0, 0] < 0.5  # why MONAI's is not used


def test_concatenation_is_both_in_order() -> None:
    image = random_image((3, 20, 20))
    proxy = ConcatProxies(CannyEdge(), SmoothPatches(4))
    both = proxy(image)
    assert both.shape == (4, 20, 20)
    np.testing.assert_array_equal(both[:1], CannyEdge()(image))
    np.testing.assert_array_equal(both[1:], SmoothPatches(4)(image))


@by_name
def test_constant_images(proxy: Proxy) -> None:
    for value in (0.0, 0.3, -700.7):
        image = np.full((1, 24, 18), value, dtype=np.float32)
        result = proxy(image)
        edges = int(isinstance(proxy, CannyEdge | ConcatProxies))
        assert not result[:edges].any()
        for channel in result[edges:]:
            np.testing.assert_allclose(channel, image[0], rtol=1e-6)
        if isinstance(proxy, SuperpixelImage | SmoothPatches):
            np.testing.assert_array_equal(result, image)


@by_name
@pytest.mark.parametrize("shape", [(1, 20, 24), (3, 20, 24), (1, 12, 10, 8), (2, 12, 10, 8)])
def test_kind_shape_and_dtype_are_kept(proxy: Proxy, shape: tuple[int, ...]) -> None:
    image = random_image(shape)
    image.setflags(write=False)
    result = proxy(image)
    assert isinstance(result, np.ndarray)
    assert result.dtype == np.float32
    assert result.shape == (proxy.proxy_channels(shape[0]), *shape[1:])

    tensor = proxy(torch.tensor(image, dtype=torch.float64))
    assert type(tensor) is torch.Tensor
    assert tensor.dtype == torch.float32
    np.testing.assert_array_equal(tensor.numpy(), result)

    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    meta = proxy(MetaTensor(image.copy(), affine=affine, meta={"filename_or_obj": "a.nii"}))
    assert isinstance(meta, MetaTensor)
    assert meta.dtype == torch.float32
    assert meta.meta["filename_or_obj"] == "a.nii"
    assert torch.equal(meta.affine, affine)
    np.testing.assert_array_equal(meta.numpy(), result)
    np.testing.assert_array_equal(image, random_image(shape))


def test_integer_images() -> None:
    image = (random_image((1, 24, 24)) * 100 + 120).astype(np.uint8)
    for proxy in ALL:
        np.testing.assert_array_equal(proxy(image), proxy(image.astype(np.float32)))


@by_name
def test_config_names_every_parameter(proxy: Proxy) -> None:
    config = json.loads(json.dumps(proxy.config))
    assert config == proxy.config

    def build(described: dict) -> Proxy:
        arguments = {k: build(v) if isinstance(v, dict) else v for k, v in described.items() if k != "class"}
        return getattr(module, described["class"])(**arguments)

    assert build(config).config == config


def test_config_tells_parameters_apart() -> None:
    others = [SuperpixelImage(800), SuperpixelImage(compactness=0.2), SuperpixelImage(sigma=1.0), CannyEdge(2.0)]
    others += [CannyEdge(1.0, 0.05), CannyEdge(1.0, 0.1, 0.3), SmoothImage(1.0), SmoothPatches(4)]
    configs = [json.dumps(proxy.config) for proxy in ALL + others]
    assert len(set(configs)) == len(configs)


def test_dictionary_versions_work_in_place_of_the_key() -> None:
    image = random_image((1, 24, 24))
    pairs = [
        (SuperpixelImaged("proxy", 20, 0.2, 0.5), SuperpixelImage(20, 0.2, 0.5)),
        (CannyEdged("proxy", 1.5, 0.05, 0.3), CannyEdge(1.5, 0.05, 0.3)),
        (SmoothImaged("proxy", 1.0), SmoothImage(1.0)),
        (SmoothPatchesd("proxy", 5), SmoothPatches(5)),
        (ConcatProxiesd("proxy", CannyEdge(), SmoothImage()), ConcatProxies(CannyEdge(), SmoothImage())),
    ]
    for dictionary, array in pairs:
        data = {"image": image, "proxy": image}
        result = dictionary(data)
        np.testing.assert_array_equal(result["proxy"], array(image))
        assert result["image"] is image
        assert data["proxy"] is image
        assert dictionary.config == array.config
        assert dictionary.proxy_channels(1) == array.proxy_channels(1)
    with pytest.raises(KeyError):
        SmoothImaged("absent")({"image": image})
    assert SmoothImaged("absent", allow_missing_keys=True)({"image": image}) == {"image": image}


def test_aliases_and_composition() -> None:
    for name in ("SuperpixelImage", "CannyEdge", "SmoothImage", "SmoothPatches", "ConcatProxies"):
        for alias in ("d", "D", "Dict"):
            assert name + alias in module.__all__
            assert getattr(module, name + alias) is getattr(module, name + "d")
    result = Compose([ScaleIntensity(), SuperpixelImage(9)])(MetaTensor(random_image((1, 24, 24)) * 300))
    assert isinstance(result, MetaTensor)
    assert 0.5 < float(result.max()) <= 1.0


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (np.zeros((8, 8), np.float32), "channel-first"),
        (np.zeros((1, 1, 4, 4, 4), np.float32), "channel-first"),
        (np.zeros((1, 0, 4), np.float32), "channel-first"),
        (np.full((1, 8, 8), np.nan, np.float32), "NaN"),
        (np.full((1, 8, 8), np.inf, np.float32), "NaN"),
    ],
)
def test_unusable_images_are_refused(image: np.ndarray, problem: str) -> None:
    for proxy in ALL:
        with pytest.raises(InputError, match=problem):
            proxy(image)


def test_the_refusal_names_the_file() -> None:
    with pytest.raises(InputError, match=r"^scan\.nii: .*NaN"):
        SmoothImage()(MetaTensor(torch.full((1, 4, 4), torch.nan), meta={"filename_or_obj": "scan.nii"}))


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (SuperpixelImage, {"num_superpixels": 0}),
        (SuperpixelImage, {"compactness": 0.0}),
        (SuperpixelImage, {"sigma": -1.0}),
        (CannyEdge, {"sigma": 0.0}),
        (CannyEdge, {"low_threshold": 0.3}),
        (SmoothImage, {"sigma": float("nan")}),
        (SmoothPatches, {"patch_size": 0}),
    ],
)
def test_arguments_out_of_range_are_refused(make: type[Proxy], arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        make(**arguments)
