"""GANomaly: the layers, Eq. 1 to 5, training with a discriminator, export, configuration, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks import convert_to_onnx
from torch import Tensor, nn
from torch.utils.data import DataLoader

from monai_anomaly import networks
from monai_anomaly.engines import GANomalyTrainer, train_stages
from monai_anomaly.losses import GANomalyLoss
from monai_anomaly.networks import GANomaly, GANomalyDiscriminator
from monai_anomaly.networks.nets.ganomaly import start_weights

SMALL: dict[str, Any] = {"image_size": (16, 16), "channels": 4, "latent_channels": 6}
VARIANTS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "paper": ({}, (2, 1, 16, 16)),
    "colour, l2": ({"in_channels": 3, "score": "l2"}, (2, 3, 16, 16)),
    "larger": ({"image_size": (32, 32)}, (1, 1, 32, 32)),
    "volume": ({"spatial_dims": 3, "image_size": (16, 16, 16), "channels": 2}, (1, 1, 16, 16, 16)),
}


def made(name: str) -> tuple[GANomaly, Tensor]:
    torch.manual_seed(0)
    kwargs, shape = VARIANTS[name]
    detector = GANomaly(**{**SMALL, **kwargs}).train()
    with torch.no_grad():
        detector.detect(torch.rand(2, *shape[1:]))
    return detector.eval(), torch.rand(shape)


# Rows of the published layers at 32 x 32: width, kernel, stride, padding, side of the output, norm, activation.
ENCODER = [
    (64, 4, 2, 1, 16, None, nn.LeakyReLU),
    (128, 4, 2, 1, 8, nn.BatchNorm2d, nn.LeakyReLU),
    (256, 4, 2, 1, 4, nn.BatchNorm2d, nn.LeakyReLU),
]
DECODER = [
    (256, 4, 1, 0, 4, nn.BatchNorm2d, nn.ReLU),
    (128, 4, 2, 1, 8, nn.BatchNorm2d, nn.ReLU),
    (64, 4, 2, 1, 16, nn.BatchNorm2d, nn.ReLU),
    (3, 4, 2, 1, 32, None, nn.Tanh),
]


def check_rows(stages: Any, rows: list[tuple[Any, ...]], x: Tensor) -> tuple[Tensor, int]:
    """Each stage against its row; the output and the number of parameters."""
    parameters = 0
    for stage, (width, kernel, stride, padding, side, norm, activation) in zip(stages, rows, strict=True):
        parameters += x.shape[1] * width * kernel**2 + (2 * width if norm else 0)  # no biases
        x = stage(x)
        assert x.shape[1:] == (width, side, side)
        assert stage.conv.kernel_size == (kernel, kernel)
        assert stage.conv.stride == (stride, stride)
        assert stage.conv.padding == (padding, padding)
        assert stage.conv.bias is None
        kinds = [type(layer) for layer in stage.adn]
        assert kinds == [kind for kind in (norm, activation) if kind is not None]
        if activation is nn.LeakyReLU:
            assert stage.adn.A.negative_slope == 0.2
    return x, parameters


def test_layers_are_those_of_the_published_network() -> None:
    detector = GANomaly(in_channels=3).eval()
    generator = detector.generator
    discriminator = GANomalyDiscriminator(in_channels=3).eval()
    image = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        count = 0
        for encoder in (generator.encoder, generator.second_encoder):
            features, parameters = check_rows(encoder[0], ENCODER, image)
            z = encoder[1](features)
            assert z.shape == (2, 100, 1, 1)
            count += parameters + 256 * 100 * 16
        x_hat, parameters = check_rows(generator.decoder, DECODER, z)
        count += parameters
        features, parameters = check_rows(discriminator.features, ENCODER, image)
        logits, f = discriminator(image)
    assert sum(p.numel() for p in detector.parameters()) == count
    assert sum(p.numel() for p in discriminator.parameters()) == parameters + 256 * 16
    assert x_hat.shape == image.shape
    assert logits.shape == (2,)
    assert torch.equal(f, features)  # f is what goes into the last layer
    assert detector.config["arguments"]["latent_channels"] == 100
    weights = discriminator.features[2].conv.weight
    assert float(weights.detach().mean()) == pytest.approx(0.0, abs=1e-3)
    assert float(weights.detach().std()) == pytest.approx(0.02, rel=0.02)


def test_start_weights() -> None:
    module = nn.Sequential(nn.Conv2d(64, 64, 3), nn.BatchNorm2d(5000), nn.Linear(3, 3))
    linear = module[2].weight.clone()
    nn.init.ones_(module[1].bias)
    module.apply(start_weights)
    assert float(module[0].weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert float(module[1].weight.detach().mean()) == pytest.approx(1.0, abs=0.002)
    assert float(module[1].weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert float(module[1].bias.detach().abs().max()) == 0.0
    assert torch.equal(module[2].weight, linear)


@pytest.mark.parametrize("name", VARIANTS)
def test_map_and_score(name: str) -> None:
    detector, image = made(name)
    with torch.no_grad():
        output = detector.detect(image)
        z = detector.generator.encoder(2 * image - 1)
        x_hat = detector.generator.decoder(z)
        z_hat = detector.generator.second_encoder(x_hat)
        assert torch.equal(detector(image), output.anomaly_map)
    restored = (x_hat.double().numpy() + 1) / 2
    np.testing.assert_allclose(output.restoration.numpy(), restored, rtol=1e-5, atol=1e-6)
    assert float(output.restoration.min()) >= 0
    assert float(output.restoration.max()) <= 1
    error = abs(image.double().numpy() - restored).mean(axis=1)
    np.testing.assert_allclose(output.anomaly_map[:, 0].numpy(), error, rtol=1e-4, atol=1e-6)
    difference = z.double().numpy() - z_hat.double().numpy()
    for b in range(len(image)):
        d = difference[b].ravel()
        # Eq. 5, or the mean square of the published code
        expected = abs(d).sum() if detector.absolute else (d**2).mean()
        assert float(output.anomaly_score[b]) == pytest.approx(expected, rel=1e-4)
    assert detector.absolute == (name != "colour, l2")


@pytest.mark.parametrize("name", VARIANTS)
def test_torchscript_and_configuration(name: str) -> None:
    detector, image = made(name)
    scripted = torch.jit.script(detector)
    with torch.no_grad():
        eager = detector(image)
        for _ in range(2):  # the second run is the optimised one
            torch.testing.assert_close(scripted(image), eager, rtol=0, atol=1e-4)
    config = json.loads(json.dumps(detector.config))
    again = getattr(networks, config["name"])(**config["arguments"]).eval()
    again.load_state_dict(detector.state_dict())
    with torch.no_grad():
        for one, two in zip(again.detect(image), detector.detect(image)):
            assert torch.equal(one, two)


@pytest.mark.slow
def test_onnx(tmp_path: Path) -> None:
    detector, image = made("paper")
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


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("reduction", ["mean", "norm"])
@pytest.mark.parametrize("matching", ["pairs", "mean"])
@pytest.mark.parametrize("adversarial", ["features", "saturating", "non-saturating"])
def test_losses_are_equations_1_to_4(reduction: str, matching: str, adversarial: str) -> None:
    x, x_hat = numbers(3, 2, 4, 4, seed=1), numbers(3, 2, 4, 4, seed=2)
    z, z_hat = numbers(3, 5, seed=3), numbers(3, 5, seed=4)
    real, fake = numbers(3, 6, 2, 2, seed=5), numbers(3, 6, 2, 2, seed=6)
    logits = numbers(3, seed=7)
    terms = GANomalyLoss(2.0, 30.0, 0.5, reduction, adversarial, matching)(x, x_hat, z, z_hat, real, fake, logits)
    plain = {"con": [], "enc": [], "adv": []}
    centre = sum(fake[b].numpy() for b in range(3)) / 3
    for b in range(3):
        con = abs(x[b].numpy() - x_hat[b].numpy())
        enc = (z[b].numpy() - z_hat[b].numpy()) ** 2
        adv = (real[b].numpy() - (centre if matching == "mean" else fake[b].numpy())) ** 2
        plain["con"].append(con.mean() if reduction == "mean" else con.sum())  # Eq. 2
        plain["enc"].append(enc.mean() if reduction == "mean" else np.sqrt(enc.sum()))  # Eq. 3
        d = 1 / (1 + np.exp(-float(logits[b])))
        by_logit = {"saturating": np.log(1 - d), "non-saturating": -np.log(d)}
        matched = adv.mean() if reduction == "mean" else np.sqrt(adv.sum())  # Eq. 1
        plain["adv"].append(by_logit.get(adversarial, matched))
    for key, values in plain.items():
        assert float(terms[key]) == pytest.approx(np.mean(values), rel=1e-9)
    whole = 2.0 * np.mean(plain["adv"]) + 30.0 * np.mean(plain["con"]) + 0.5 * np.mean(plain["enc"])  # Eq. 4
    assert float(terms["loss"]) == pytest.approx(whole, rel=1e-9)


def test_the_papers_weights_and_the_discriminators_cross_entropy() -> None:
    loss = GANomalyLoss()
    assert (loss.w_adv, loss.w_con, loss.w_enc) == (1.0, 50.0, 1.0)
    real, fake = numbers(4, seed=8), numbers(4, seed=9)
    expected = nn.functional.binary_cross_entropy(torch.sigmoid(real), torch.ones_like(real))
    expected += nn.functional.binary_cross_entropy(torch.sigmoid(fake), torch.zeros_like(fake))
    assert float(loss.discriminator(real, fake)) == pytest.approx(float(expected), rel=1e-9)


def loader(count: int = 12) -> DataLoader:
    random = torch.Generator().manual_seed(0)
    ramp = torch.linspace(0, 1, 16)[:, None] * torch.linspace(0.3, 1, 16)
    images = [ramp[None] * (0.5 + 0.5 * torch.rand(1, 1, 1, generator=random)) for _ in range(count)]
    return DataLoader([{"image": image} for image in images], batch_size=4, shuffle=True)


class Run:
    """A detector, its discriminator and its trainer, small."""

    def __init__(self, epochs: int = 4, **options: Any) -> None:
        torch.manual_seed(0)
        self.network = GANomaly(**SMALL)
        self.discriminator = GANomalyDiscriminator(image_size=(16, 16), channels=4)
        betas = (0.5, 0.999)
        self.trainer = GANomalyTrainer(
            self.network,
            self.discriminator,
            "cpu",
            epochs,
            loader(),
            torch.optim.Adam(self.network.generator.parameters(), lr=0.002, betas=betas),
            torch.optim.Adam(self.discriminator.parameters(), lr=0.002, betas=betas),
            val_data_loader=loader(4),
            **options,
        )

    def go(self, folder: Path) -> list[dict[str, Any]]:
        return train_stages([self.trainer], self.network, folder, seed=3, progress=False)

    def weights(self) -> dict[str, Tensor]:
        both = {"network": self.network, "discriminator": self.discriminator}
        return {f"{name}.{key}": value for name, part in both.items() for key, value in part.state_dict().items()}


@pytest.mark.slow
def test_training_lowers_the_contextual_loss(tmp_path: Path) -> None:
    run = Run(9)
    before = {key: value.clone() for key, value in run.weights().items()}
    history = run.go(tmp_path)
    assert history[-1]["train_loss"] < 0.7 * history[0]["train_loss"]
    assert history[-1]["objective"] != history[-1]["train_loss"]
    learnt = {key: value for key, value in run.weights().items() if ".generator." in key or "discriminator." in key}
    still = [key for key, value in learnt.items() if torch.equal(value, before[key])]
    assert not still  # all three parts and the discriminator learn


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole = Run(4)
    expected = whole.go(tmp_path / "whole")
    Run(2).go(tmp_path / "parts")
    resumed = Run(4)
    assert resumed.go(tmp_path / "parts") == expected
    for key, value in resumed.weights().items():
        assert torch.equal(value, whole.weights()[key]), key


def test_each_step_moves_what_it_must() -> None:
    run = Run()
    batch = {"image": torch.rand(4, 1, 16, 16)}
    losses = run.trainer.training_step(batch)
    assert set(losses) == {"loss", "error"}
    # the generator's loss leaves no gradient in the discriminator, the discriminator's none in the generator
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in run.network.parameters())
    d_gradient = {key: p.grad.clone() for key, p in run.discriminator.named_parameters()}
    run = Run(loss_function=GANomalyLoss(w_adv=7.0, w_con=3.0))
    run.trainer.training_step(batch)
    for key, parameter in run.discriminator.named_parameters():
        assert torch.equal(parameter.grad, d_gradient[key])


def test_the_error_is_the_contextual_loss() -> None:
    run = Run()
    images = torch.stack([item["image"] for item in run.trainer.val_data_loader.dataset])
    value = run.trainer.mean_validation_loss()
    with torch.no_grad():
        restored = run.network.eval().detect(images).restoration
    # a difference in [-1, 1] is twice one in [0, 1]
    assert value == pytest.approx(2 * float((images - restored).abs().mean()), rel=1e-5)


@pytest.mark.parametrize(("threshold", "restarts"), [(1e9, True), (0.0, False), (1e-9, False)])
def test_a_discriminator_that_has_won_starts_anew(threshold: float, restarts: bool) -> None:
    run = Run(restart_below=threshold)
    weight = run.discriminator.features[1].adn.N.bias
    batch = {"image": torch.rand(4, 1, 16, 16)}
    run.trainer.training_step(batch)
    assert (float(weight.detach().abs().max()) == 0.0) == restarts  # a step moves it from the 0 that it starts at


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 16, 16), "1 input channel"),
        ((1, 1, 16), "2-D"),
        ((1, 1, 24, 16), "multiples of 16"),
        ((1, 1, 32, 32), r"\[16, 16\]"),
    ],
)
def test_unfit_input_is_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made("paper")[0](torch.zeros(shape))


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (48, 48), (32, 16), (32,), (32, 32, 32), (0, 0)])
@pytest.mark.parametrize("kind", [GANomaly, GANomalyDiscriminator])
def test_sizes_that_the_layers_do_not_fit_are_refused(kind: Any, size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="power of two from 16 on"):
        kind(image_size=size, channels=2)


@pytest.mark.parametrize(
    ("kind", "kwargs", "message"),
    [
        (GANomaly, {"score": "l3"}, "score"),
        (GANomaly, {"spatial_dims": 1}, "spatial_dims"),
        (GANomalyLoss, {"reduction": "sum"}, "reduction"),
        (GANomalyLoss, {"adversarial": "wgan"}, "adversarial"),
        (GANomalyLoss, {"matching": "batch"}, "matching"),
    ],
)
def test_unknown_settings_are_refused(kind: Any, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**kwargs)
