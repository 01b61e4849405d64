"""The denoising autoencoder: its map and losses against plain computations, training, choices, export, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks import convert_to_onnx
from monai.transforms import RandFlip
from scipy import ndimage
from torch import Tensor
from torch.utils.data import DataLoader

from monai_anomaly import networks
from monai_anomaly.engines import DenoisingTrainer, SyntheticLesionSelection, still_improving, train_stages
from monai_anomaly.exceptions import InputError
from monai_anomaly.losses import DenoisingLoss
from monai_anomaly.networks import DenoisingAutoencoder
from monai_anomaly.networks.blocks import GaussianFilter, MedianFilter
from monai_anomaly.transforms import RandCoarseNoise

SMALL: dict[str, Any] = {"channels": (4, 8, 8)}
VARIANTS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "plain": ({}, (2, 1, 24, 32)),
    "divided, mirrored": ({"exponent": 1.0, "mirror_axis": 1}, (2, 1, 24, 32)),
    "two channels": ({"in_channels": 2, "mirror_axis": 0, "median_size": 3}, (1, 2, 24, 24)),
    "as published": ({"expected_error": False, "exponent": 0.0, "sigma": 0.0}, (2, 1, 24, 24)),
    "no skips, no filters, all pixels": (
        {"skip": False, "median_size": 1, "sigma": 0.0, "background": None},
        (2, 1, 16, 16),
    ),
    "added skips": ({"add_skips": True, "channels": (4, 8, 16)}, (2, 1, 24, 32)),
    "groups of two": ({"channels": (6, 10), "exponent": 1.0}, (1, 1, 24, 24)),
    "volume": (
        {"spatial_dims": 3, "in_channels": 2, "median_size": 3, "sigma": 0.7, "mirror_axis": 0},
        (1, 2, 8, 12, 16),
    ),
}


def made(name: str) -> tuple[DenoisingAutoencoder, Tensor]:
    torch.manual_seed(0)
    options, shape = VARIANTS[name]
    image = torch.rand(shape)
    image[:, :, :4] = 0  # background
    return DenoisingAutoencoder(**{**SMALL, **options}).eval(), image


@pytest.mark.parametrize("name", VARIANTS)
def test_the_map_is_the_filtered_error_in_the_unit_of_the_expected_one(name: str) -> None:
    detector, image = made(name)
    options = VARIANTS[name][0]
    with torch.no_grad():
        output = detector.detect(image)
        y, b = (each.double().numpy() for each in detector.reconstruct(image))
        axis = options.get("mirror_axis")
        if axis is not None:
            turned = [np.flip(each.numpy(), axis + 2) for each in detector.reconstruct(image.flip(axis + 2))]
            y, b = (y + turned[0]) / 2, (b + turned[1]) / 2
    x = image.double().numpy()
    for n in range(len(x)):
        error = np.mean(np.abs(x[n] - y[n]) / b[n] ** options.get("exponent", 0.5), axis=0)
        if options.get("background", 0.0) is not None:
            error = np.where((x[n] > 0).any(axis=0), error, 0)
        if options.get("median_size", 5) > 1:
            error = ndimage.median_filter(error, options.get("median_size", 5))
        error = ndimage.gaussian_filter(error, options.get("sigma", 2.5))
        np.testing.assert_allclose(output.anomaly_map[n, 0].numpy(), error, rtol=1e-3, atol=1e-5)
        assert float(output.anomaly_score[n]) == pytest.approx(error.max(), rel=1e-3)
    inside = detector.foreground(image).expand_as(image) > 0
    np.testing.assert_allclose(output.restoration[inside].numpy(), y[inside.numpy()], rtol=1e-4, atol=1e-5)
    assert torch.equal(output.restoration[~inside], image[~inside])


@pytest.mark.parametrize("name", VARIANTS)
def test_configuration_gives_the_same_map(name: str) -> None:
    detector, image = made(name)
    again = getattr(networks, detector.config["name"])(**json.loads(json.dumps(detector.config))["arguments"]).eval()
    again.load_state_dict(detector.state_dict())
    with torch.no_grad():
        assert torch.equal(again(image), detector(image))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["divided, mirrored", "volume", "no skips, no filters, all pixels"])
def test_torchscript_gives_the_same_map(name: str) -> None:
    detector, image = made(name)
    scripted = torch.jit.script(detector)
    with torch.no_grad():
        eager = detector(image)
        for _ in range(2):  # the second run is the optimised one
            torch.testing.assert_close(scripted(image), eager, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["volume"])
@pytest.mark.filterwarnings("ignore")
def test_onnx_gives_the_same_map(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    detector, image = made(name)
    convert_to_onnx(
        detector,
        [image],
        filename=str(tmp_path / "model.onnx"),
        verify=True,
        use_ort=True,
        rtol=1e-3,
        atol=1e-4,
        input_names=["image"],
        output_names=["map"],
    )


@given(
    size=st.sampled_from([1, 3, 5]),
    sigma=st.floats(0, 1.5),
    shape=st.one_of(st.tuples(*[st.integers(6, 14)] * 2), st.tuples(*[st.integers(6, 9)] * 3)),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_filters_equal_those_of_scipy(size: int, sigma: float, shape: tuple[int, ...], seed: int) -> None:
    image = np.random.default_rng(seed).random((2, 1, *shape), dtype=np.float32)
    median = np.stack([ndimage.median_filter(each, size) for each in image[:, 0]])
    smooth = np.stack([ndimage.gaussian_filter(each, sigma) for each in image[:, 0]])
    np.testing.assert_array_equal(MedianFilter(size)(torch.from_numpy(image))[:, 0].numpy(), median)
    np.testing.assert_allclose(GaussianFilter(sigma)(torch.from_numpy(image))[:, 0].numpy(), smooth, atol=1e-6)


@pytest.mark.parametrize("kind", ["laplace", "gaussian", "l1", "l2"])
def test_losses_equal_a_plain_computation(kind: str) -> None:
    random = torch.Generator().manual_seed(1)
    x, y = (torch.rand(2, 3, 4, 5, generator=random, dtype=torch.float64) for _ in range(2))
    b = torch.rand(2, 3, 4, 5, generator=random, dtype=torch.float64) + 0.1
    inside = (torch.rand(2, 1, 4, 5, generator=random) < 0.5).double()
    total, count = 0.0, 0
    for n, c, i, j in np.ndindex(2, 3, 4, 5):
        if inside[n, 0, i, j]:
            error, scale = float(abs(x[n, c, i, j] - y[n, c, i, j])), float(b[n, c, i, j])
            total += {
                "laplace": error / scale + np.log(scale),
                "gaussian": error**2 / scale**2 + 2 * np.log(scale),
                "l1": error,
                "l2": error**2,
            }[kind]
            count += 1
    assert float(DenoisingLoss(kind)(y, b, x, inside)) == pytest.approx(total / count)
    assert float(DenoisingLoss(kind)(y, b, x, torch.zeros_like(inside))) == 0


def test_the_laplace_loss_is_least_at_the_mean_absolute_error() -> None:
    error = torch.rand(1, 1, 30, 30, generator=torch.Generator().manual_seed(0))
    scales = torch.linspace(0.2, 0.9, 141)
    loss, everywhere = DenoisingLoss("laplace"), torch.ones_like(error)
    losses = [float(loss(error, torch.full_like(error, float(b)), torch.zeros_like(error), everywhere)) for b in scales]
    assert float(scales[int(np.argmin(losses))]) == pytest.approx(float(error.mean()), abs=0.006)


class _Slices:
    """Smooth discs of two sizes, as ``SliceDataset`` gives them."""

    def __init__(self, count: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        x, y = np.meshgrid(*[np.linspace(-1, 1, 32)] * 2, indexing="ij")
        self.images = []
        for _ in range(count):
            disc = np.hypot(x, y) < random.uniform(0.7, 0.9)
            texture = 0.5 + 0.1 * np.sin(4 * x + random.uniform(0, 0.5))
            self.images.append(torch.from_numpy((disc * texture)[None].astype(np.float32)))
        self.hashes = [f"{seed}-{i}" for i in range(count)]
        self.augment: RandFlip | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image = self.images[index]
        return {"image": image if self.augment is None else torch.as_tensor(self.augment(image))}

    def set_random_state(self, seed: int) -> None:
        if self.augment is not None:
            self.augment.set_random_state(seed)

    def scans(self) -> Any:
        return iter(torch.stack(self.images).split(1))


def trainer_of(network: DenoisingAutoencoder, epochs: int = 8, **options: Any) -> DenoisingTrainer:
    loader: Any = DataLoader(_Slices(24, 0), batch_size=8)  # type: ignore[arg-type]
    held_out: Any = DataLoader(_Slices(6, 1), batch_size=8)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(network.parameters(), lr=0.005)
    return DenoisingTrainer(network, "cpu", epochs, loader, optimizer, val_data_loader=held_out, **options)


def lesions() -> SyntheticLesionSelection:
    return SyntheticLesionSelection(_Slices(6, 1), _Slices(24, 0))  # type: ignore[arg-type]


def network(**options: Any) -> DenoisingAutoencoder:
    torch.manual_seed(0)
    return DenoisingAutoencoder(**{"channels": (8, 16), **options})


@pytest.mark.slow
@pytest.mark.parametrize("expected_error", [True, False])
def test_training_lowers_the_loss_and_finds_lesions(expected_error: bool, tmp_path: Path) -> None:
    detector = network(expected_error=expected_error, exponent=0.5 if expected_error else 0.0)
    before = lesions().score(detector)
    history = train_stages([trainer_of(detector, 40)], detector, tmp_path, seed=3, progress=False)
    assert history[-1]["val_loss"] < history[0]["val_loss"]
    assert lesions().score(detector) > max(before, 5 * lesions().lesion_share)


@pytest.mark.slow
def test_the_expected_error_is_larger_where_the_network_errs(tmp_path: Path) -> None:
    detector = network()
    trainer = trainer_of(detector, 40)
    train_stages([trainer], detector, tmp_path, seed=3, progress=False)
    images = torch.stack(_Slices(6, 1).images)
    with torch.no_grad():
        restored, expected = detector.eval().reconstruct(trainer.noisy(images, seed=5))
    inside = images > 0
    error = (restored - images).abs()
    assert np.corrcoef(error[inside].numpy(), expected[inside].numpy())[0, 1] > 0.1
    assert 0.5 < float(expected[inside].mean() / error[inside].mean()) < 2


@pytest.mark.slow
def test_a_run_that_goes_on_ends_with_the_same_weights(tmp_path: Path) -> None:
    choices = [{"std": 0.1}, {"std": 0.3}]
    states = []
    for name, parts in (("whole", [4]), ("stopped", [2, 4])):
        for epochs in parts:
            detector = network()
            trainer = trainer_of(detector, epochs, noise_choices=choices, trial_epochs=1, lesions=lesions())
            train_stages([trainer], detector, tmp_path / name, seed=3, progress=False)
        states.append((detector.state_dict(), trainer.choices()))
    assert states[0][1] == states[1][1]
    assert all(torch.equal(value, states[1][0][key]) for key, value in states[0][0].items())


@pytest.mark.slow
def test_the_noise_that_finds_lesions_best_is_taken_and_told(tmp_path: Path) -> None:
    detector = network()
    # noise that hides the image teaches little
    choices = [{"std": 8.0}, {"std": 0.2}]
    trainer = trainer_of(detector, 1, noise_choices=choices, trial_epochs=25, lesions=lesions())
    weights = {key: value.clone() for key, value in detector.state_dict().items()}
    trainer.prepare()
    assert all(torch.equal(value, weights[key]) for key, value in detector.state_dict().items())
    told = trainer.choices()
    assert [row["noise"] for row in told["noise_trials"]] == choices
    assert told["noise_trials"][1]["pixel_ap"] > told["noise_trials"][0]["pixel_ap"]
    assert told["noise"]["std"] == [0.2, 0.2]
    assert json.loads(json.dumps(told)) == told


@pytest.mark.slow
def test_trials_of_the_noise_are_the_same_each_time() -> None:
    def told() -> list[dict[str, Any]]:
        detector = network()
        trainer = trainer_of(detector, 1, noise_choices=[{"std": 0.2}, {"std": 0.2}], trial_epochs=2, lesions=lesions())
        dataset: Any = trainer.data_loader.dataset
        dataset.augment = RandFlip(prob=0.5, spatial_axis=0)
        trainer.prepare()
        return trainer.choices()["noise_trials"]

    once = told()
    assert once == told()
    # equal candidates have equal figures: the augmentation too starts anew for each
    assert once[0]["pixel_ap"] == once[1]["pixel_ap"]


def test_choosing_by_lesions_needs_validation_scans() -> None:
    with pytest.raises(InputError, match=r"no validation scan can be used\. Pass --validation_fraction"):
        SyntheticLesionSelection(None)


@pytest.mark.slow
def test_the_map_that_finds_lesions_best_is_taken(tmp_path: Path) -> None:
    detector = network(exponent=0.0)
    train_stages([trainer_of(detector, 20)], detector, tmp_path, seed=3, progress=False)
    choices = [{"exponent": p, "median_size": m, "sigma": s} for p in (0.0, 1.0) for m, s in ((1, 0.0), (3, 1.0))]
    found = lesions().choose_map(detector, choices)
    best = max(found, key=lambda row: row["pixel_ap"])
    assert [row["chosen"] for row in found].count(1) == 1
    assert best["chosen"] == 1
    assert {name: detector.config["arguments"][name] for name in choices[0]} == {
        name: best[name] for name in choices[0]
    }
    assert lesions().score(detector) == pytest.approx(best["pixel_ap"])
    with pytest.raises(InputError, match="map_choices"):
        lesions().choose_map(detector, [])


def test_what_cannot_be_is_refused() -> None:
    for options, message in (
        ({"mirror_axis": 2}, "mirror_axis"),
        ({"expected_error": False}, "expected_error"),
        ({"median_size": 4}, "odd"),
        ({"channels": (5, 10)}, "even"),
    ):
        with pytest.raises(ValueError, match=message):
            DenoisingAutoencoder(**options)
    with pytest.raises(ValueError, match="kind"):
        DenoisingLoss("huber")
    detector = network(expected_error=False, exponent=0.0)
    with pytest.raises(ValueError, match="expected_error"):
        trainer_of(detector, loss_function=DenoisingLoss("laplace"))
    with pytest.raises(ValueError, match="validation"):
        trainer_of(detector, noise_choices=[{"std": 0.1}])
    with pytest.raises(ValueError, match="expected error"):
        detector.choose_map({"exponent": 1.0})
    with pytest.raises(ValueError, match="not width"):
        detector.choose_map({"width": 1})
    with pytest.raises(ValueError, match="multiples of 2"):
        detector.detect(torch.rand(1, 1, 9, 8))


def test_noise_of_validation_is_the_same_each_time() -> None:
    trainer = trainer_of(network(), noise=RandCoarseNoise(std=0.3))
    batch = {"image": torch.stack(_Slices(3, 2).images)}
    with torch.no_grad():
        assert torch.equal(trainer.validation_loss(batch), trainer.validation_loss(batch))
    assert not torch.equal(trainer.noisy(batch["image"]), trainer.noisy(batch["image"]))


def test_a_negative_loss_that_is_flat_is_not_called_under_trained() -> None:
    flat = [{"stage": "denoising", "val_loss": value, "train_loss": value} for value in (-1.0, -1.9, -2.0, -2.0, -2.01)]
    falling = [{**row, "val_loss": -1.0 - 0.3 * i} for i, row in enumerate(flat)]
    assert still_improving(flat) == []
    assert still_improving(falling) == ["denoising"]
