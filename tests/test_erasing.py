"""The erasing set: every operation against plain loops, tandems, added operations, the transforms."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_anomaly.networks.blocks import Erasing, ErasingSet
from monai_anomaly.networks.blocks.erasing import cube_turns
from monai_anomaly.transforms import RandErasing
from monai_anomaly.transforms import RandErasingd as RandErasingDictionary


class Negative(Erasing):
    """An operation as a user would add it."""

    def __init__(self, spatial_dims: int) -> None:
        super().__init__(spatial_dims, versions=2)

    def forward(self, image: torch.Tensor, version: int) -> torch.Tensor:
        return -image if version == 1 else image


class NotAnErasing(torch.nn.Module):
    """Something else with a dotted path."""


def turned(plane: np.ndarray, quarters: int) -> np.ndarray:
    """Anticlockwise turns, pixel by pixel: what was in the right column comes to the top row."""
    for _ in range(quarters):
        rows, columns = plane.shape
        result = np.empty((columns, rows), plane.dtype)
        for i, j in product(range(columns), range(rows)):
            result[i, j] = plane[j, columns - 1 - i]
        plane = result
    return plane


def test_graying_is_the_mean_over_channels() -> None:
    image = torch.rand(2, 3, 4, 5)
    erased = ErasingSet(["gray"])(image, 0)
    assert erased.shape == (2, 1, 4, 5)
    for b, i, j in product(range(2), range(4), range(5)):
        expected = sum(float(image[b, c, i, j]) for c in range(3)) / 3
        assert float(erased[b, 0, i, j]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("version", range(4))
def test_rotation_is_exact_and_anticlockwise(version: int) -> None:
    image = torch.rand(2, 3, 5, 5)
    erased = ErasingSet(["rotation"])(image, version).numpy()
    for b, c in product(range(2), range(3)):
        np.testing.assert_array_equal(erased[b, c], turned(image[b, c].numpy(), version))


@pytest.mark.parametrize("version", range(4))
def test_rotation_of_a_volume_turns_its_axial_plane(version: int) -> None:
    volume = torch.rand(1, 1, 4, 4, 3)
    erased = ErasingSet(["rotation"], 3)(volume, version).numpy()
    for z in range(3):
        np.testing.assert_array_equal(erased[0, 0, :, :, z], turned(volume[0, 0, :, :, z].numpy(), version))


def test_there_are_24_rotations_of_a_cube() -> None:
    volume = torch.arange(27.0).reshape(1, 1, 3, 3, 3)
    turns = ErasingSet(["rotation24"], 3)
    assert turns.versions == 24
    erased = [turns(volume, version) for version in range(24)]
    assert torch.equal(erased[0], volume)
    assert len({tuple(e.flatten().tolist()) for e in erased}) == 24
    for order, reverse in cube_turns():
        matrix = np.zeros((3, 3))
        for new, old in enumerate(order):
            matrix[new, old] = -1 if reverse[new] else 1
        assert np.linalg.det(matrix) == pytest.approx(1.0)  # no mirror image among them
    # The group is closed: a turn of a turn is one of them.
    known = {tuple(e.flatten().tolist()) for e in erased}
    assert all(tuple(turns(e, 7).flatten().tolist()) in known for e in erased)


def test_scaling_halves_the_resolution_and_keeps_the_size() -> None:
    image = torch.rand(1, 1, 8, 6)
    erased = ErasingSet(["scaling"])(image, 0)[0, 0].numpy()
    small = image[0, 0].numpy().reshape(4, 2, 3, 2).mean(axis=(1, 3))

    def sample(values: np.ndarray, place: float) -> np.ndarray:
        """Linear between the centres of pixels, the outermost repeated."""
        place = min(max(place, 0.0), len(values) - 1.0)
        low = min(int(place), len(values) - 2)
        return values[low] + (place - low) * (values[low + 1] - values[low])

    for i, j in product(range(8), range(6)):
        row = sample(small, (i + 0.5) / 2 - 0.5)
        assert erased[i, j] == pytest.approx(sample(row, (j + 0.5) / 2 - 0.5), abs=1e-6)
    assert ErasingSet(["scaling"], 3)(torch.rand(1, 1, 8, 6, 4), 0).shape == (1, 1, 8, 6, 4)
    constant = torch.full((1, 1, 7, 5), 0.3)
    torch.testing.assert_close(ErasingSet(["scaling"])(constant, 0), constant)


@pytest.mark.parametrize(
    ("names", "dims", "versions", "channels", "axes"),
    [
        ([], 2, 1, 3, []),
        (["gray"], 2, 1, 1, []),
        (["rotation"], 2, 4, 3, [0, 1]),
        (["gray", "rotation"], 2, 4, 1, [0, 1]),
        (["scaling", "gray", "rotation"], 3, 4, 1, [0, 1]),
        (["rotation", "rotation24"], 3, 96, 3, [0, 1, 2]),
        ([f"{__name__}.Negative", "rotation"], 2, 8, 3, [0, 1]),
    ],
)
def test_tandem(names: list[str], dims: int, versions: int, channels: int, axes: list[int]) -> None:
    erasing = ErasingSet(names, dims)
    assert erasing.versions == versions
    assert erasing.out_channels(3) == channels
    assert erasing.equal_axes == axes
    image = torch.rand(1, 3, *[4] * dims)
    assert all(erasing(image, version).shape == (1, channels, *[4] * dims) for version in (0, versions - 1))


def test_tandem_applies_its_operations_in_order_and_all_combinations() -> None:
    erasing = ErasingSet([f"{__name__}.Negative", "rotation"])
    image = torch.rand(1, 1, 3, 3)
    for quarters, sign in product(range(4), range(2)):
        expected = turned((-1) ** sign * image[0, 0].numpy(), quarters)
        np.testing.assert_array_equal(erasing(image, sign + 2 * quarters)[0, 0].numpy(), expected)
    assert torch.equal(ErasingSet([])(image, 0), image)


@pytest.mark.parametrize("name", ["gary", "no.such.module", f"{__name__}.NotAnErasing", "math.pi"])
def test_unknown_operations_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}.*neither one of.*rotation24"):
        ErasingSet(["gray", name])


def test_turns_of_a_cube_are_refused_for_pictures() -> None:
    with pytest.raises(ValueError, match=r"rotation24.*spatial_dims is 2"):
        ErasingSet(["rotation24"], 2)


@pytest.mark.parametrize("kind", ["numpy", "tensor", "meta"])
@pytest.mark.parametrize("name", ["gray", "scaling"])
def test_the_transform_keeps_the_kind_of_the_image(kind: str, name: str) -> None:
    plain = torch.rand(3, 6, 6)
    image = {"numpy": plain.numpy(), "tensor": plain, "meta": MetaTensor(plain, affine=torch.eye(4) * 2)}[kind]
    erased = RandErasing([name])(image)
    assert type(erased) is type(image)
    torch.testing.assert_close(torch.as_tensor(np.asarray(erased)), ErasingSet([name])(plain[None], 0)[0])
    if isinstance(erased, MetaTensor):
        assert torch.equal(erased.affine, image.affine)


def test_random_erasing_draws_every_version_and_keeps_the_image() -> None:
    image = torch.rand(3, 4, 4)
    known = [ErasingSet(["gray", "rotation"])(image[None], version)[0] for version in range(4)]

    def draws(seed: int) -> list[int]:
        transform = RandErasingDictionary("image", output_key="erased")
        transform.set_random_state(seed)
        found = []
        for _ in range(30):
            data = transform({"image": image})
            assert torch.equal(data["image"], image)
            found.append(next(i for i, erased in enumerate(known) if torch.equal(data["erased"], erased)))
        return found

    assert set(draws(0)) == {0, 1, 2, 3}
    assert draws(0) == draws(0) != draws(1)
    transform = RandErasing(["rotation"]).set_random_state(3)
    assert torch.equal(transform(image), transform(image, randomize=False))
    with pytest.raises(ValueError, match="as many output keys"):
        RandErasingDictionary(["a", "b"], output_key="erased")
