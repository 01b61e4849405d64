"""The block memory against a plain loop over its blocks (Eq. 1, 2), for any size and division rates."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_anomaly.networks.blocks import BlockMemory


def recall(feature: np.ndarray, memory: BlockMemory, rates: tuple[int, ...]) -> np.ndarray:
    """Eq. 1 and 2 of one map (C, *size), block by block and item by item."""
    items = memory.items.detach().double().numpy()
    n, out = len(items), np.zeros_like(feature)
    order = (rates[-1], *rates[:-1])
    steps = [whole // rate for whole, rate in zip(feature.shape, order)]
    for corner in itertools.product(*(range(rate) for rate in order)):
        block = tuple(slice(c * step, (c + 1) * step) for c, step in zip(corner, steps))
        q = feature[block].ravel()
        scores = []
        for m in items:
            length = np.sqrt((q * q).sum()) * np.sqrt((m * m).sum())
            scores.append(np.exp((q * m).sum() / length / memory.temperature) if length else 1.0)
        w = [score / sum(scores) for score in scores]
        w = [0.0 if value < 1.0 / n - 1e-12 else value for value in w]
        if memory.renormalize:
            w = [value / sum(w) for value in w]
        out[block] = sum(value * m for value, m in zip(w, items)).reshape(out[block].shape)
    return out


sides = st.tuples(st.integers(1, 4), st.integers(1, 3))  # rate, pixels of a block


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    axes=st.lists(sides, min_size=2, max_size=3),
    depth=sides,
    num_items=st.integers(1, 7),
    temperature=st.sampled_from([1.0, 0.1]),
    renormalize=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equations_1_and_2_block_by_block(
    axes: list[tuple[int, int]],
    depth: tuple[int, int],
    num_items: int,
    temperature: float,
    renormalize: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    rates = (*(rate for rate, _ in axes), depth[0])
    size, channels = [rate * step for rate, step in axes], depth[0] * depth[1]
    memory = BlockMemory(channels, size, rates, num_items, temperature, renormalize).double()
    assert memory.item_dim == depth[1] * np.prod([step for _, step in axes])
    feature = torch.randn(2, channels, *size, dtype=torch.float64)
    with torch.no_grad():
        recalled = memory(feature)
    for one, expected in zip(recalled.numpy(), feature.numpy()):
        np.testing.assert_allclose(one, recall(expected, memory, rates), rtol=1e-9, atol=1e-10)


def test_blocks_are_put_back_where_they_were() -> None:
    for size, rates in (((6, 8), (3, 2, 2)), ((4, 6, 2), (2, 3, 1, 4))):
        memory = BlockMemory(4, size, rates, 3)
        feature = torch.arange(2 * 4 * int(np.prod(size)), dtype=torch.float32).reshape(2, 4, *size)
        blocks = memory.divide(feature)
        assert blocks.shape == (2 * int(np.prod(rates)), memory.item_dim)
        assert torch.equal(memory.assemble(blocks), feature)
    # the first block of the first image is the upper left one of the first channels
    first = BlockMemory(4, (6, 8), (3, 2, 2), 3).divide(torch.arange(192.0).reshape(1, 4, 6, 8))[0]
    assert first.tolist() == [c * 48 + y * 8 + x for c in range(2) for y in range(2) for x in range(4)]


def test_a_larger_rate_is_a_smaller_block() -> None:
    sizes = [BlockMemory(8, (16, 16), (r, r, 1), 2).item_dim for r in (1, 2, 4, 8, 16)]  # Table 4
    assert sizes == [8 * (16 // r) ** 2 for r in (1, 2, 4, 8, 16)]
    pixels = BlockMemory(8, (16, 16), (16, 16, 1), 2)  # a block is a pixel, as in Table 3's MemAE
    feature = torch.rand(1, 8, 16, 16)
    assert torch.equal(pixels.divide(feature), feature[0].flatten(1).T)


def test_weights_below_one_in_n_are_dropped() -> None:
    memory = BlockMemory(2, (1, 1), (1, 1, 1), 4)
    memory.items.data = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [0.0, -1.0]])
    e = np.exp([1.0, 0.0, -1.0, 0.0])
    w = memory.weights(torch.tensor([[5.0, 0.0]]))
    # only the item that points the query's way weighs a quarter or more; its weight stays as it was
    np.testing.assert_allclose(w.detach().numpy(), [[e[0] / e.sum(), 0.0, 0.0, 0.0]], rtol=1e-6)
    memory.renormalize = True
    np.testing.assert_allclose(memory.weights(torch.tensor([[5.0, 0.0]])).detach().numpy(), [[1, 0, 0, 0]], rtol=1e-6)


def test_equal_weights_are_not_below_one_in_n() -> None:
    for n in (3, 7, 49, 500):
        w = BlockMemory(2, (2, 2), (1, 1, 1), n).weights(torch.zeros(2, 8))
        np.testing.assert_allclose(w.detach().numpy(), np.full((2, n), 1 / n), rtol=1e-5)


def test_gradients_reach_query_and_items() -> None:
    torch.manual_seed(0)
    memory = BlockMemory(2, (4, 4), (2, 2, 1), 6)
    feature = torch.randn(1, 2, 4, 4, requires_grad=True)
    (memory(feature) ** 2).sum().backward()
    assert float(feature.grad.abs().sum()) > 0
    assert (memory.items.grad.abs().sum(dim=1) > 0).all()


def test_script_and_state_dict() -> None:
    memory, other = (BlockMemory(3, (4, 6), (2, 3, 1), 5) for _ in range(2))
    other.load_state_dict(memory.state_dict())
    feature = torch.randn(2, 3, 4, 6)
    with torch.no_grad():
        expected = memory(feature)
        assert torch.equal(other(feature), expected)
        torch.testing.assert_close(torch.jit.script(memory)(feature), expected, rtol=0, atol=1e-5)
        assert not torch.equal(BlockMemory(3, (4, 6), (2, 3, 1), 5)(feature), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"division_rates": (3, 2, 1)}, r"r_h = 3 does not divide the 8 pixels.*\[1, 2, 4, 8\]"),
        ({"division_rates": (2, 8, 1)}, "r_w = 8 does not divide the 12 pixels"),
        ({"division_rates": (2, 2, 5)}, "r_c = 5 does not divide the 4 channels"),
        ({"division_rates": (2, 0, 1)}, "r_w = 0"),
        ({"division_rates": (16, 2, 1)}, "r_h = 16"),
        ({"division_rates": (2, 2)}, "one number an axis"),
        ({"division_rates": (2, 2, 2, 1)}, "one number an axis"),
        ({"num_items": 0}, "num_items"),
        ({"temperature": 0.0}, "temperature"),
        ({"item_std": 0.0}, "item_std"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlockMemory(4, (8, 12), **{"division_rates": (2, 2, 1), "num_items": 3, **arguments})


def test_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"made for feature maps of shape \[4, 8, 12\]"):
        BlockMemory(4, (8, 12), (2, 2, 1), 3)(torch.zeros(1, 4, 12, 8))
