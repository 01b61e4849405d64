"""Coarse noise: its size and coarseness, foreground, reproducibility, kinds of input, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose

from monai_anomaly.transforms import RandCoarseNoise, RandCoarseNoised


def noise_of(shape: tuple[int, ...], count: int = 50, **options: Any) -> np.ndarray:
    """Noise of many draws, shape (count, *shape)."""
    transform = RandCoarseNoise(background=None, **options).set_random_state(0)
    return np.stack([np.asarray(transform(torch.zeros(shape))) for _ in range(count)])


@pytest.mark.parametrize(
    ("shape", "mode"), [((1, 48, 64), "cubic"), ((2, 48, 64), "linear"), ((1, 24, 24, 24), "linear")]
)
def test_noise_has_mean_0_and_about_its_standard_deviation(shape: tuple[int, ...], mode: str) -> None:
    noise = noise_of(shape, std=0.3, grid=(6, 12), mode=mode)
    assert abs(noise.mean()) < 0.03
    # interpolation between independent points makes it smaller: in d dimensions by at most (2 / 3) ** (d / 2) (linear)
    assert 0.3 * (2 / 3) ** ((len(shape) - 1) / 2) * 0.85 < noise.std() < 0.3


def test_a_coarser_grid_gives_coarser_noise() -> None:
    def neighbours(grid: tuple[int, int]) -> float:
        noise = noise_of((1, 64, 64), grid=grid)
        return float(np.corrcoef(noise[..., 4:].ravel(), noise[..., :-4].ravel())[0, 1])

    assert neighbours((4, 4)) > neighbours((16, 16)) + 0.2
    assert abs(neighbours((64, 64))) < 0.1
    pixel = noise_of((1, 64, 64), pixel=True, std=0.2)
    assert abs(float(np.corrcoef(pixel[..., 1:].ravel(), pixel[..., :-1].ravel())[0, 1])) < 0.02
    assert pixel.std() == pytest.approx(0.2, rel=0.02)


def test_no_place_is_the_grids() -> None:
    variance = noise_of((1, 32, 32), count=2000, grid=(4, 4), mode="linear").var(axis=0)
    assert variance.max() / variance.min() < 1.4


@given(seed=st.integers(0, 1000), dims=st.sampled_from([2, 3]), channels=st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_the_background_stays_and_the_foreground_changes(seed: int, dims: int, channels: int) -> None:
    image = torch.rand(channels, *([16] * dims), generator=torch.Generator().manual_seed(seed))
    image[:, :5] = 0
    before = image.clone()
    noisy = RandCoarseNoise(std=0.2, grid=(2, 8)).set_random_state(seed)(image)
    assert torch.equal(image, before)
    assert torch.equal(noisy[:, :5], image[:, :5])
    assert (noisy[:, 5:] != image[:, 5:]).float().mean() > 0.99


def test_the_same_seed_gives_the_same_noise_and_channels_differ() -> None:
    image = torch.ones(2, 32, 32)
    one, two = (RandCoarseNoise().set_random_state(7)(image) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one[0], one[1])
    transform = RandCoarseNoise().set_random_state(7)
    assert torch.equal(transform(image), transform(image, randomize=False))


def test_a_range_of_standard_deviations_and_a_probability() -> None:
    spread = noise_of((1, 32, 32), count=200, std=(0.1, 0.4), pixel=True).std(axis=(1, 2, 3))
    assert spread.min() < 0.15
    assert spread.max() > 0.35
    changed = (noise_of((1, 8, 8), count=400, prob=0.25) != 0).any(axis=(1, 2, 3))
    assert 0.15 < changed.mean() < 0.35


def test_kinds_of_input_come_back_and_dictionaries_are_copied() -> None:
    array = np.ones((1, 16, 16))
    assert isinstance(RandCoarseNoise()(array), np.ndarray)
    tensor = MetaTensor(torch.ones(1, 16, 16), meta={"source": ["a"]})
    noisy = Compose([RandCoarseNoised(["image", "other"], grid=(2, 4))]).set_random_state(3)(
        {"image": tensor, "other": tensor, "label": 1}
    )
    assert isinstance(noisy["image"], MetaTensor)
    assert noisy["image"].meta["source"] == ["a"]
    assert not torch.equal(noisy["image"].as_tensor(), noisy["other"].as_tensor())
    assert noisy["label"] == 1
    assert torch.equal(tensor.as_tensor(), torch.ones(1, 16, 16))


@pytest.mark.parametrize(
    "options",
    [{"std": 0}, {"std": (0.3, 0.1)}, {"grid": (5, 3)}, {"grid": (0, 3)}, {"grid": (4,)}, {"mode": "nearest"}],
)
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        RandCoarseNoise(**options)
