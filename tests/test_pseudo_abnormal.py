"""Pseudo abnormal proxies: only the patch changes, it comes from the donor, and places and sizes vary as drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor

from monai_anomaly.exceptions import InputError
from monai_anomaly.transforms import pseudo_abnormal as module
from monai_anomaly.transforms.pseudo_abnormal import RandPseudoAbnormalProxy, RandPseudoAbnormalProxyd


def numbered(channels: int, shape: tuple[int, ...]) -> np.ndarray:
    """A donor whose every value is its own index plus one, so that a cut patch tells where it comes from."""
    return np.arange(1, channels * int(np.prod(shape)) + 1, dtype=np.float32).reshape(channels, *shape)


def box(mask: np.ndarray) -> tuple[slice, ...]:
    """Bounding box of a mask (1, *spatial); the mask must fill it."""
    places = np.argwhere(mask[0])
    inside = tuple(slice(int(a), int(b) + 1) for a, b in zip(places.min(axis=0), places.max(axis=0)))
    assert mask[0][inside].all()
    assert set(np.unique(mask)) <= {0.0, 1.0}
    return inside


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 20), min_size=2, max_size=3).map(tuple),
    channels=st.integers(1, 3),
    gray=st.booleans(),
    fractions=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
    foreground=st.booleans(),
    seed=st.integers(0, 999),
)
def test_a_contiguous_donor_patch_and_nothing_else(
    shape: tuple[int, ...], channels: int, gray: bool, fractions: list[float], foreground: bool, seed: int
) -> None:
    proxy = -1 - np.random.default_rng(seed).random((channels, *shape), dtype=np.float32)
    donor = numbered(1 if gray else channels, shape)
    before = proxy.copy(), donor.copy()
    rand = RandPseudoAbnormalProxy(fractions, paste_on_foreground=foreground).set_random_state(seed)
    pseudo, mask = rand(proxy, donor)
    assert pseudo.shape == proxy.shape
    assert mask.shape == (1, *shape)
    np.testing.assert_array_equal(np.where(mask > 0, proxy, pseudo), proxy)
    pasted = box(mask)
    patch = pseudo[(slice(None), *pasted)]
    start = np.unravel_index(int(patch[0].flat[0]) - 1, donor.shape)[1:]
    cut = tuple(slice(int(a), int(a) + side) for a, side in zip(start, patch.shape[1:]))
    np.testing.assert_array_equal(patch, np.broadcast_to(donor[(slice(None), *cut)], patch.shape))
    for side, size in zip(shape, patch.shape[1:]):
        assert max(1, round(fractions[0] * side)) <= size <= max(1, round(fractions[1] * side))
    np.testing.assert_array_equal(proxy, before[0])
    np.testing.assert_array_equal(donor, before[1])


def test_sizes_and_places_cover_their_range() -> None:
    rand = RandPseudoAbnormalProxy().set_random_state(0)
    proxy, donor = np.zeros((1, 40, 60), np.float32), numbered(1, (40, 60))
    heights, tops, lefts, apart = set(), set(), set(), 0
    for _ in range(400):
        pseudo, mask = rand(proxy, donor)
        pasted = box(mask)
        heights.add(pasted[0].stop - pasted[0].start)
        tops.add(pasted[0].start)
        lefts.add(pasted[1].start)
        assert pasted[0].stop <= 40
        assert pasted[1].stop <= 60
        cut = np.unravel_index(int(pseudo[0][pasted].flat[0]) - 1, (40, 60))
        apart += cut != (pasted[0].start, pasted[1].start)
    assert heights == set(range(4, 21))
    assert tops >= set(range(30))
    assert lefts >= set(range(45))
    assert apart > 380  # cut and pasted at different places


def test_seeded_draws_repeat_and_differ() -> None:
    proxy, donor = np.zeros((1, 32, 32), np.float32), numbered(1, (32, 32))

    def run(seed: int) -> list[np.ndarray]:
        rand = RandPseudoAbnormalProxy().set_random_state(seed)
        return [rand(proxy, donor)[0] for _ in range(5)]

    first = run(3)
    np.testing.assert_array_equal(first, run(3))
    assert not np.array_equal(first, run(4))
    assert not np.array_equal(first[0], first[1])


def test_repeat_without_drawing() -> None:
    rand = RandPseudoAbnormalProxy().set_random_state(1)
    proxy, donor = np.zeros((1, 16, 16), np.float32), numbered(1, (16, 16))
    assert not rand(proxy, donor, randomize=False)[1].any()
    first = rand(proxy, donor)
    again = rand(proxy, donor, randomize=False)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])


def test_foreground_centres() -> None:
    proxy = np.zeros((2, 50, 50), np.float32)
    proxy[1, 20:30, 35:40] = -0.5  # one channel, negative, suffices
    donor = numbered(1, (50, 50))
    rand = RandPseudoAbnormalProxy((0.1, 0.4), paste_on_foreground=True).set_random_state(0)
    columns = set()
    for _ in range(100):
        rows, cols = box(rand(proxy, donor)[1])
        assert 20 <= rows.start + (rows.stop - rows.start) // 2 < 30
        middle = cols.start + (cols.stop - cols.start) // 2
        assert 35 <= middle < 40
        columns.add(middle)
    assert len(columns) == 5
    # anywhere without the switch, and where there is no foreground
    for other, target in ((RandPseudoAbnormalProxy(), proxy), (rand, np.zeros_like(proxy))):
        other.set_random_state(0)
        assert min(box(other(target, donor)[1])[1].start for _ in range(30)) < 15


def test_foreground_in_a_corner_keeps_the_patch_inside() -> None:
    proxy = np.zeros((1, 20, 20, 20), np.float32)
    proxy[0, 0, 19, 0] = 1.0
    rand = RandPseudoAbnormalProxy((0.5, 0.5), paste_on_foreground=True).set_random_state(0)
    assert box(rand(proxy, numbered(1, (20, 20, 20)))[1]) == (slice(0, 10), slice(10, 20), slice(0, 10))


def test_probability() -> None:
    proxy, donor = np.zeros((1, 16, 16), np.float32), numbered(1, (16, 16))
    never = RandPseudoAbnormalProxy(prob=0.0)
    pseudo, mask = never(proxy, donor)
    np.testing.assert_array_equal(pseudo, proxy)
    assert pseudo is not proxy
    assert not mask.any()
    half = RandPseudoAbnormalProxy(prob=0.5).set_random_state(0)
    assert 60 < sum(bool(half(proxy, donor)[1].any()) for _ in range(200)) < 140


def test_kinds_are_kept() -> None:
    proxy, donor = np.zeros((3, 12, 14), np.float32), numbered(1, (12, 14))
    proxy.setflags(write=False)

    def run(target: object, source: object) -> tuple:
        return RandPseudoAbnormalProxy().set_random_state(5)(target, source)

    expected = run(proxy, donor)
    assert all(isinstance(array, np.ndarray) and array.dtype == np.float32 for array in expected)
    plain = torch.zeros(3, 12, 14)
    meta = MetaTensor(torch.zeros(3, 12, 14), meta={"filename_or_obj": "a.png"})
    for target, kind in ((plain, torch.Tensor), (meta, MetaTensor)):
        for source in (donor, torch.from_numpy(donor), MetaTensor(torch.from_numpy(donor))):
            results = run(target, source)
            for result, array in zip(results, expected):
                assert type(result) is kind
                assert result.dtype == torch.float32
                np.testing.assert_array_equal(result.numpy(), array)
    assert run(meta, donor)[1].meta["filename_or_obj"] == "a.png"
    assert not plain.any()
    assert not meta.any()


@pytest.mark.parametrize(
    ("proxy", "donor"),
    [
        ((3, 8, 8), (2, 8, 8)),
        ((1, 8, 8), (3, 8, 8)),
        ((1, 8, 8), (1, 8, 9)),
        ((1, 8, 8), (1, 8, 8, 8)),
        ((8, 8), (8, 8)),
    ],
)
def test_a_donor_that_does_not_fit_is_refused(proxy: tuple[int, ...], donor: tuple[int, ...]) -> None:
    with pytest.raises(InputError):
        RandPseudoAbnormalProxy()(np.zeros(proxy, np.float32), np.zeros(donor, np.float32))


@pytest.mark.parametrize(
    "arguments",
    [{"size_range": (0.0, 0.5)}, {"size_range": (0.5, 0.2)}, {"size_range": (0.5, 1.1)}, {"prob": 1.5}, {"prob": -0.1}],
)
def test_arguments_out_of_range_are_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        RandPseudoAbnormalProxy(**arguments)


def test_dictionary_version_leaves_its_input() -> None:
    data = {"proxy": torch.zeros(1, 16, 16), "donor": torch.from_numpy(numbered(1, (16, 16)))}
    result = RandPseudoAbnormalProxyd("proxy").set_random_state(2)(data)
    assert set(data) == {"proxy", "donor"}
    assert set(result) == {"proxy", "donor", "pseudo_proxy", "paste_mask"}
    assert not result["proxy"].any()
    assert torch.equal(result["pseudo_proxy"] > 0, result["paste_mask"] > 0)
    assert result["paste_mask"].any()
    again = RandPseudoAbnormalProxyd("proxy").set_random_state(2)(data)
    assert torch.equal(again["pseudo_proxy"], result["pseudo_proxy"])
    state = RandPseudoAbnormalProxyd("proxy").set_random_state(state=np.random.RandomState(2))(data)
    assert torch.equal(state["pseudo_proxy"], result["pseudo_proxy"])


def test_dictionary_version_shares_one_place_among_proxies() -> None:
    rand = RandPseudoAbnormalProxyd(["a", "b"], "image", ["a_bad", "b_bad"], "place").set_random_state(0)
    data = {
        "a": np.zeros((1, 16, 16), np.float32),
        "b": np.zeros((2, 16, 16), np.float32),
        "image": numbered(1, (16, 16)),
    }
    result = rand(data)
    np.testing.assert_array_equal(result["a_bad"][0], result["b_bad"][0])
    np.testing.assert_array_equal(result["a_bad"][0], result["b_bad"][1])
    np.testing.assert_array_equal(result["a_bad"] > 0, result["place"] > 0)
    with pytest.raises(InputError, match="differ in spatial shape"):
        rand({**data, "b": np.zeros((1, 16, 15), np.float32)})
    with pytest.raises(ValueError, match="output keys"):
        RandPseudoAbnormalProxyd(["a", "b"])
    with pytest.raises(KeyError):
        rand({"a": data["a"], "image": data["image"]})


def test_aliases() -> None:
    for alias in ("RandPseudoAbnormalProxyD", "RandPseudoAbnormalProxyDict"):
        assert alias in module.__all__
        assert getattr(module, alias) is RandPseudoAbnormalProxyd
