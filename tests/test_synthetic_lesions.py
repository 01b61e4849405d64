"""Synthetic lesions: where they lie, what they change, that they repeat, and what each kind is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose, Randomizable
from scipy.ndimage import gaussian_filter

from monai_anomaly.exceptions import InputError
from monai_anomaly.transforms import LESION_KINDS, RandSyntheticLesion, RandSyntheticLesiond, RandSyntheticLesionDict


def anatomy(shape: tuple[int, ...], seed: int = 0, channels: int = 1) -> np.ndarray:
    """Texture between 0.2 and 0.8 in a ball on a black ground, (C, *shape)."""
    rng = np.random.default_rng(seed)
    grid = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    inside = sum(g**2 for g in grid) < 0.7
    return (rng.uniform(0.2, 0.8, (channels, *shape)) * inside).astype(np.float32)


def one(kind: str, seed: int = 0, **options: Any) -> RandSyntheticLesion:
    return RandSyntheticLesion((kind,), **options).set_random_state(seed)


SHAPES = st.one_of(st.tuples(*[st.integers(8, 24)] * 2), st.tuples(*[st.integers(6, 12)] * 3))


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, kind=st.sampled_from(LESION_KINDS), channels=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_a_lesion_lies_in_the_foreground_and_nothing_else_changes(
    shape: tuple[int, ...], kind: str, channels: int, seed: int
) -> None:
    image, donor = anatomy(shape, seed % 100, channels), anatomy(shape, seed % 100 + 1, channels)
    kept = image.copy(), donor.copy()
    changed, mask = one(kind, seed)(image, donor)
    assert np.array_equal(image, kept[0])
    assert np.array_equal(donor, kept[1])
    assert changed.shape == image.shape
    assert mask.shape == (1, *shape)
    assert set(np.unique(mask)) <= {0.0, 1.0}
    assert mask.sum() >= 1
    lesion = mask[0] > 0
    assert np.array_equal(changed[:, ~lesion], image[:, ~lesion])
    assert (changed >= 0).all()
    assert (changed <= 1).all()
    foreground = (image > 0).any(axis=0) | ((changed > 0).any(axis=0) if kind == "cut_paste" else False)
    assert not (lesion & ~foreground).any()
    again, mask_again = one(kind, seed)(image, donor)
    assert np.array_equal(changed, again)
    assert np.array_equal(mask, mask_again)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), low=st.floats(0.05, 0.4), more=st.floats(0, 0.3))
def test_the_extent_of_an_ellipsoid_keeps_to_its_range(seed: int, low: float, more: float) -> None:
    shape, high = (40, 32), low + more
    lesion = one("intensity", seed, size_range=(low, high), foreground=-1.0)
    _, mask = lesion(np.zeros((1, *shape), np.float32) + 0.5)
    assert (np.ptp(np.argwhere(mask[0] > 0), axis=0) + 1 <= max(shape) * high + 2).all()  # any orientation
    # an ellipse of radii a, b has the area pi a b, where the image does not cut it off
    inside = np.argwhere(mask[0] > 0)
    if (inside > 0).all() and (inside < np.array(shape) - 1).all() and low * min(shape) > 6:
        radii = lesion._radii
        assert mask.sum() == pytest.approx(np.pi * radii[0] * radii[1], rel=0.2)


def test_what_each_kind_does() -> None:
    image, donor = anatomy((32, 32)), anatomy((32, 32), 1) * 0.5 + 0.5
    for seed in range(10):
        changed, mask = one("intensity", seed, clip=None)(image)
        shift = (changed - image)[mask > 0]
        assert np.ptp(shift) < 1e-6
        assert 0.15 <= abs(shift[0]) <= 0.5
        changed, mask = one("blob", seed, clip=None)(image)
        bump = np.abs(changed - image)[mask > 0]
        assert 0.075 - 1e-6 <= bump.min() <= bump.max() <= 0.5
        changed, mask = one("blur", seed, size_range=(0.3, 0.4))(image)
        assert changed[mask > 0].std() < image[mask > 0].std()
        changed, mask = one("cut_paste", seed)(image, donor)
        rows, columns = np.nonzero(mask[0])
        # the donor is above 0.5 everywhere, so the pasted box is all lesion
        assert mask.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert (changed[mask > 0] >= 0.5).all()


def test_blur_is_a_gaussian_filter() -> None:
    image = anatomy((32, 28))
    lesion = one("blur", 3)
    changed, mask = lesion(image)
    expected = gaussian_filter(image[0], lesion._sigma, mode="constant", truncate=4)
    assert np.abs(changed[0] - expected)[mask[0] > 0].max() < 0.01


def test_a_shift_that_the_range_would_swallow_is_turned_round() -> None:
    white = np.ones((1, 16, 16), np.float32)
    for seed in range(20):
        changed, mask = one("intensity", seed)(white)
        assert (changed[mask > 0] <= 0.85 + 1e-6).all()


def test_all_kinds_are_drawn_and_a_call_can_be_repeated() -> None:
    image = anatomy((16, 16))
    lesion = RandSyntheticLesion().set_random_state(0)
    kinds = set()
    for _ in range(40):
        first = lesion(image)
        again = lesion(image, randomize=False)
        assert all(np.array_equal(x, y) for x, y in zip(first, again))
        kinds.add(lesion.kind)
    assert kinds == set(LESION_KINDS)


def test_no_lesion_without_probability_or_foreground() -> None:
    for lesion, image in (
        (RandSyntheticLesion(prob=0.0), anatomy((16, 16))),
        (RandSyntheticLesion(), np.zeros((1, 16, 16), np.float32)),
    ):
        changed, mask = lesion.set_random_state(0)(image)
        assert np.array_equal(changed, image)
        assert not mask.any()


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, MetaTensor])
def test_the_results_are_of_the_image_s_kind(kind: Callable[[Any], Any]) -> None:
    image = kind(anatomy((16, 16)))
    for result in RandSyntheticLesion().set_random_state(0)(image):
        assert type(result) is type(image)


def test_dictionary_version_in_a_compose() -> None:
    image, donor = anatomy((16, 16), 0), anatomy((16, 16), 1)
    transform = RandSyntheticLesiond(["image", "twin"])
    assert isinstance(transform, Randomizable)
    compose = Compose([transform]).set_random_state(4)
    data = {"image": image, "twin": image.copy(), "donor": donor, "name": "x"}
    out = compose(data)
    assert np.array_equal(out["image"], out["twin"])
    assert out["name"] == "x"
    assert np.array_equal(data["image"], anatomy((16, 16), 0))
    changed = (out["image"] != image).any(axis=0)
    assert changed.any()
    assert not (changed & ~(out["lesion_mask"][0] > 0)).any()
    again = Compose([RandSyntheticLesionDict(["image", "twin"])]).set_random_state(4)(data)
    assert np.array_equal(again["image"], out["image"])
    with pytest.raises(InputError, match="differ in spatial shape"):
        transform({"image": image, "twin": anatomy((8, 8)), "donor": donor})


@pytest.mark.parametrize(
    "options",
    [
        {"kinds": ()},
        {"kinds": ("tumour",)},
        {"size_range": (0.0, 0.2)},
        {"size_range": (0.3, 0.2)},
        {"size_range": (0.3, 1.2)},
        {"strength_range": (0.0, 0.2)},
        {"sigma_range": (0.2, 0.1)},
        {"prob": 1.5},
    ],
)
def test_refused_arguments(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        RandSyntheticLesion(**options)


def test_refused_images() -> None:
    with pytest.raises(InputError, match="channel-first"):
        RandSyntheticLesion()(np.zeros((4, 4), np.float32))
    for shape in ((1, 8, 9), (2, 8, 8)):
        with pytest.raises(InputError, match="does not fit an image"):
            RandSyntheticLesion()(np.zeros((1, 8, 8), np.float32), np.zeros(shape, np.float32))
