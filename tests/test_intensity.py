"""Intensities: percentiles of the foreground, the way back, and what counts as tissue."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor

from monai_anomaly.exceptions import InputError
from monai_anomaly.transforms import (
    NormalizeForeground,
    NormalizeForegroundd,
    foreground_level,
    foreground_mask,
    tissue_slices,
)


def scan(array: np.ndarray, **meta: Any) -> MetaTensor:
    return MetaTensor(torch.from_numpy(array), meta={"source": ["scan.nii.gz"], "scan_kind": "volume", **meta})


def head(seed: int = 0, channels: int = 1, low: float = 100.0, high: float = 900.0, air: float = 0.0) -> np.ndarray:
    """A box of tissue in air, free slices above and below it."""
    random = np.random.default_rng(seed)
    volume = np.full((channels, 20, 18, 12), air, dtype=np.float32)
    volume[:, 4:16, 3:15, 3:9] = random.uniform(low, high, (channels, 12, 12, 6))
    return volume


def plain_normalise(channel: np.ndarray, lower: float, upper: float, fraction: float) -> tuple[np.ndarray, ...]:
    """Scaled without clipping, and the two percentiles, by sorting and interpolating by hand."""

    def percentile(values: np.ndarray, q: float) -> float:
        ordered = np.sort(values.astype(np.float64))
        place = q / 100 * (len(ordered) - 1)
        below = int(np.floor(place))
        above = min(below + 1, len(ordered) - 1)
        return float(ordered[below] + (place - below) * (ordered[above] - ordered[below]))

    values = channel.ravel()
    level = values.min() + fraction * (percentile(values, 99) - values.min())
    tissue = values[values > level]
    low, high = percentile(tissue, lower), percentile(tissue, upper)
    return (channel.astype(np.float64) - low) / (high - low), np.array([low, high])


@pytest.mark.parametrize(("lower", "upper", "fraction"), [(0.5, 99.5, 0.1), (0, 100, 0.1), (5, 80, 0.3)])
@pytest.mark.parametrize(("low", "high", "air"), [(100, 900, 0), (-100, 300, -1024), (0.2, 0.3, 0.0)])
def test_percentiles_of_the_foreground_become_0_and_1(
    lower: float, upper: float, fraction: float, low: float, high: float, air: float
) -> None:
    volume = head(channels=2, low=low, high=high, air=air)
    volume[1] = volume[1] * 3 - 5  # each channel has its own range
    out = NormalizeForeground(lower, upper, fraction)(scan(volume))
    bare = NormalizeForeground(lower, upper, fraction, clip=False)(scan(volume))
    assert out.dtype == torch.float32
    for c in range(2):
        expected, _ = plain_normalise(volume[c], lower, upper, fraction)
        np.testing.assert_allclose(bare[c].numpy(), expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(out[c].numpy(), expected.clip(0, 1), rtol=1e-4, atol=1e-4)
    assert float(out.min()) == 0.0
    assert float(out.max()) == 1.0


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    scale=st.floats(0.01, 100),
    shift=st.floats(-2000, 2000),
    clip=st.booleans(),
)
def test_inverse_brings_the_intensities_back(seed: int, scale: float, shift: float, clip: bool) -> None:
    volume = (head(seed) * scale + shift).astype(np.float32)
    transform = NormalizeForeground(clip=clip)
    image = scan(volume)
    out = transform(image)
    _, (low, high) = plain_normalise(volume[0], 0.5, 99.5, 0.1)
    back = transform.inverse(out)
    tolerance = 1e-5 * max(np.abs(volume).max(), high - low)
    expected = volume.clip(low, high) if clip else volume
    np.testing.assert_allclose(back.numpy(), expected, rtol=0, atol=tolerance)
    assert not back.applied_operations
    np.testing.assert_array_equal(image.numpy(), volume)  # the input is left alone


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 100), shift=st.floats(-1000, 1000))
def test_scale_and_offset_of_a_scanner_do_not_matter(seed: int, scale: float, shift: float) -> None:
    volume = head(seed).astype(np.float64)
    transform = NormalizeForeground()
    one = transform(scan(volume))
    two = transform(scan(volume * scale + shift))
    np.testing.assert_allclose(one.numpy(), two.numpy(), atol=1e-3)


def test_sixteen_bits_keep_their_depth() -> None:
    values = np.arange(1, 60_001, dtype=np.uint16).reshape(1, 50, 60, 20)
    volume = np.zeros((1, 50, 60, 40), dtype=np.uint16)
    volume[..., 10:30] = values
    transform = NormalizeForeground(0, 100, fraction=0.0)
    for kind in (np.uint16, np.float32, np.int32):
        out = transform(scan(volume.astype(kind)))
        inside = out[..., 10:30].numpy().ravel()
        assert len(np.unique(inside)) == 60_000
        back = transform.inverse(out).numpy()[..., 10:30]
        np.testing.assert_array_equal(np.round(back).astype(np.uint16), values)


@pytest.mark.parametrize("value", [0.0, -1000.0, 7.0])
def test_constant_channels_are_refused(value: float) -> None:
    volume = head(channels=2)
    volume[1] = value
    with pytest.raises(InputError, match=r"^scan\.nii\.gz: channel 1 .*whole foreground"):
        NormalizeForeground()(scan(volume))


def test_two_valued_images_are_refused() -> None:
    volume = np.zeros((1, 10, 10, 4), dtype=np.float32)
    volume[:, 2:8, 2:8] = 5.0
    with pytest.raises(InputError, match="whole foreground"):
        NormalizeForeground()(scan(volume))


def test_plain_tensors_are_taken() -> None:
    volume = head()
    np.testing.assert_array_equal(
        NormalizeForeground()(torch.from_numpy(volume)).numpy(), NormalizeForeground()(scan(volume)).numpy()
    )


@pytest.mark.parametrize("bad", [(-1, 99), (50, 50), (99, 1), (0, 101)])
def test_impossible_percentiles_are_refused(bad: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="percentiles"):
        NormalizeForeground(*bad)


def test_foreground_level_lies_between_air_and_the_brightest() -> None:
    values = torch.arange(101.0)
    assert foreground_level(values) == pytest.approx(9.9)
    assert foreground_level(values - 1000, fraction=0.5) == pytest.approx(-1000 + 49.5)
    # one hot pixel in a thousand does not move it
    spiked = torch.cat([torch.arange(1000.0) / 10, torch.tensor([1e6])])
    assert foreground_level(spiked) == pytest.approx(9.9, rel=0.01)


@pytest.mark.parametrize(("low", "high", "air"), [(100, 900, 0), (-100, 300, -1024)])
@pytest.mark.parametrize("clip", [True, False])
def test_level_after_scaling_still_tells_tissue_from_air(low: float, high: float, air: float, clip: bool) -> None:
    volume = head(channels=2, low=low, high=high, air=air)
    out = NormalizeForeground(clip=clip)(scan(volume))
    for c, level in enumerate(out.meta["foreground_level"]):
        found = (out[c] > level).numpy()
        truth = volume[c] > air
        assert not (found & ~truth).any()
        assert (found & truth).sum() >= 0.99 * truth.sum()
    tissue = tissue_slices(out.as_tensor(), out.meta["foreground_level"])
    assert tissue.tolist() == [3 <= s < 9 for s in range(12)]


def test_dictionary_version() -> None:
    volume = head()
    transform = NormalizeForegroundd(["image", "absent"], allow_missing_keys=True)
    data = {"image": scan(volume), "label": 3}
    out = transform(data)
    assert out["label"] == 3
    np.testing.assert_array_equal(out["image"].numpy(), NormalizeForeground()(scan(volume)).numpy())
    np.testing.assert_array_equal(data["image"].numpy(), volume)
    _, (low, high) = plain_normalise(volume[0], 0.5, 99.5, 0.1)
    np.testing.assert_allclose(transform.inverse(out)["image"].numpy(), volume.clip(low, high), rtol=1e-5)


def test_headroom_keeps_a_bright_lesion_from_darkening_the_rest() -> None:
    rng = np.random.default_rng(5)
    healthy = np.zeros((24, 24, 12), dtype=np.float32)
    healthy[3:21, 3:21, 1:11] = rng.normal(100, 10, (18, 18, 10))
    ill = healthy.copy()
    ill[8:12, 8:12, 3:7] = 160  # 2 % of the tissue
    same = (healthy == ill) & (healthy > 0)

    def darkening(**options: float) -> float:
        before, after = (
            NormalizeForeground(**options)(scan(volume[None]))[0].numpy()[same].mean() for volume in (healthy, ill)
        )
        return abs(float(after / before) - 1)

    assert darkening(upper=90.0, headroom=1.6) < 0.05
    assert darkening(upper=99.5) > 0.1
    lesion = NormalizeForeground(upper=90.0, headroom=1.6)(scan(ill[None]))[0].numpy()
    assert lesion[9, 9, 5] > lesion[same].max()
    with pytest.raises(ValueError, match="headroom"):
        NormalizeForeground(headroom=0.5)


def computed_tomography(padding: float | None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A body with a lesion in air, (1, 64, 64, 10), padded outside the round field of view; where each of them is."""
    x, y, z = np.meshgrid(np.arange(64) - 31.5, np.arange(64) - 31.5, np.arange(10), indexing="ij")
    radius, random = np.hypot(x, y), np.random.default_rng(1)
    values = -1000 + random.normal(0, 10, x.shape)
    body = radius < 24
    values[body] = 40 + random.normal(0, 10, int(body.sum()))
    lesion = (np.abs(x + 0.5) < 3) & (np.abs(y - 9) < 3) & (np.abs(z - 5) < 2)
    values[lesion] = 110
    values = values.round()
    if padding is not None:
        values[radius > 31] = padding
    parts = {"lesion": lesion, "tissue": body & ~lesion, "air": ~body & (radius <= 31), "padding": radius > 31}
    tensors = {name: torch.from_numpy(part[None]) for name, part in parts.items()}
    return torch.from_numpy(values[None].astype(np.float32)), tensors


@pytest.mark.parametrize("padding", [-1000, -1024, -2000, -3024, -32768, 32767, 65535])
def test_padding_outside_the_field_of_view_changes_nothing(padding: float) -> None:
    plain, parts = computed_tomography(None)
    padded, _ = computed_tomography(padding)
    transform = NormalizeForeground(0.5, 90.0, headroom=1.6)
    expected, found = transform(plain).as_tensor(), transform(padded).as_tensor()
    for name in ("lesion", "tissue", "air"):
        torch.testing.assert_close(found[parts[name]], expected[parts[name]], rtol=0, atol=1e-3)
    assert (found[parts["padding"]] == 0).all()
    mask = foreground_mask(padded[0])[None]
    assert torch.equal(mask, parts["lesion"] | parts["tissue"])


@pytest.mark.parametrize("outlier", [-32768.0, -5000.0, 32767.0])
def test_one_wild_voxel_changes_nothing(outlier: float) -> None:
    random = np.random.default_rng(0)
    brain = np.zeros((1, 32, 32, 16), np.float32)
    brain[:, 6:26, 6:26] = random.normal(600, 100, (1, 20, 20, 16)).clip(200, 1000)
    brain = brain.round()
    wild = brain.copy()
    wild[0, 0, 0, 0] = outlier
    transform = NormalizeForeground(0.5, 90.0, headroom=1.6)
    expected, found = transform(torch.from_numpy(brain)), transform(torch.from_numpy(wild))
    torch.testing.assert_close(found[0, 1:].as_tensor(), expected[0, 1:].as_tensor(), rtol=0, atol=2e-3)


@pytest.mark.parametrize("fill", [-1000.0, -2000.0, 0.0])
def test_a_stripped_brain_keeps_its_fill_as_background(fill: float) -> None:
    values = torch.full((32, 32, 8), fill)
    values[8:24, 8:24] = torch.randn((16, 16, 8), generator=torch.Generator().manual_seed(0)).mul(10).add(30).round()
    assert torch.equal(foreground_mask(values), values != fill) or fill == 0.0
    assert foreground_mask(values)[8:24, 8:24].float().mean() > 0.95


@given(padding=st.floats(-30000, -3000), width=st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_a_padded_frame_changes_nothing_inside(padding: float, width: int) -> None:
    plain, _ = computed_tomography(None)
    framed = torch.nn.functional.pad(plain, (0, 0, width, width, width, width), value=padding)
    transform = NormalizeForeground(0.5, 90.0, headroom=1.6)
    inside = transform(framed).as_tensor()[:, width:-width, width:-width]
    torch.testing.assert_close(inside, transform(plain).as_tensor(), rtol=0, atol=1e-3)


def test_negative_ringing_leaves_the_background_background() -> None:
    random = np.random.default_rng(0)
    brain = np.zeros((1, 40, 40, 16), np.float32)
    brain[:, 12:28, 12:28] = random.normal(100, 10, (1, 16, 16, 16))
    expected = foreground_mask(torch.from_numpy(brain[0]))
    brain[0, 11, 12:28, ::8] = -16 * random.random((16, 2))
    found = foreground_mask(torch.from_numpy(brain[0]))
    assert torch.equal(found, expected)
    assert found.float().mean() == pytest.approx(16 * 16 / 40**2)
