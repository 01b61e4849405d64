"""DDR-ID: Table 1, Eq. 1 to 8, Algorithms 1 and 2, both stages, export, refusals."""

from __future__ import annotations

import copy
import inspect
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import monai.networks
import numpy as np
import pytest
import torch
from monai.data import DataLoader
from torch import Tensor, nn
from torch.optim.lr_scheduler import MultiStepLR

from monai_anomaly import networks
from monai_anomaly.engines import DDRIDPretrainer, DDRIDTrainer, train_stages
from monai_anomaly.losses import DDRIDLoss, OneClassLoss, SquaredErrorLoss
from monai_anomaly.networks import DDRID
from monai_anomaly.networks.blocks import DCGANDecoder, DCGANEncoder, LatentDiscriminator, dcgan_widths

SMALL: dict[str, Any] = {"channels": 2, "latent_channels": 6}


def small(**kwargs: Any) -> DDRID:
    torch.manual_seed(0)
    detector = DDRID(**{**SMALL, **kwargs})
    detector.normalisation.lower.fill_(-2.0)
    detector.normalisation.upper.fill_(3.0)
    detector.centre.copy_(torch.randn(detector.centre.shape))
    return detector


VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "MNIST's size": {"image_size": 28},
    "a larger size": {"image_size": [64, 64]},
    "colour": {"in_channels": 3},
    "order of section 3.1": {"order": "AN", "first_norm": True},
    "64 channels kept": {"projection": True, "output_activation": "sigmoid"},
    "latent score": {"score": "latent"},
    "restoration score": {"score": "restoration", "distance": "euclidean"},
    "sum of scores": {"score": "sum", "pixel_map": "restoration"},
    "residual": {"pixel_map": "residual", "selection": "standardised"},
    "rescaled per image": {"rescale": "image"},
    "no contrast normalisation": {"contrast": None, "rescale": None},
}


def image_for(detector: DDRID, batch: int = 2) -> Tensor:
    return torch.rand(batch, detector.in_channels, detector.image_side, detector.image_side)


# Table 1


def convolution(inputs: int, outputs: int) -> int:
    return inputs * outputs * 16 + outputs


@pytest.mark.parametrize(("image_size", "colours", "latent"), [(28, 1, 128), (32, 3, 512)])
def test_encoder_is_table_1(image_size: int, colours: int, latent: int) -> None:
    encoder = DCGANEncoder(colours, image_size, latent_channels=latent).eval()
    x = torch.rand(1, colours, 32, 32)
    widths = [64, 128, 256, 512]
    before = colours
    for i, (stage, width) in enumerate(zip(encoder.convolutions, widths, strict=True)):
        conv = stage.conv
        assert (conv.kernel_size, conv.stride) == ((4, 4), (2, 2))
        x = stage(x)
        assert x.shape == (1, width, 16 >> i, 16 >> i)
        norms = 2 * width if i > 0 else 0  # the first row has no BatchNorm
        assert sum(p.numel() for p in stage.parameters()) == convolution(before, width) + norms
        kinds = [type(m) for m in stage.adn]
        assert kinds == ([nn.BatchNorm2d, nn.LeakyReLU] if i > 0 else [nn.LeakyReLU])
        assert stage.adn.A.negative_slope == 0.2
        before = width
    assert encoder.to_latent.weight.shape == (latent, 2048)
    assert encoder(torch.rand(2, colours, image_size, image_size)).shape == (2, latent)


@pytest.mark.parametrize(("image_size", "colours", "latent"), [(28, 1, 128), (32, 3, 512)])
@pytest.mark.parametrize("projection", [False, True])
def test_decoder_is_table_1(image_size: int, colours: int, latent: int, projection: bool) -> None:
    decoder = DCGANDecoder(colours, image_size, latent_channels=latent, projection=projection).eval()
    x = torch.rand(1, latent, 1, 1)
    rows = [(512, 4, 1), (256, 8, 2), (128, 16, 2), (64 if projection else colours, 32, 2)]
    before = latent
    for i, (width, side, stride) in enumerate(rows):
        stage = decoder.deconvolutions[i]
        assert isinstance(stage.conv, nn.ConvTranspose2d)
        assert (stage.conv.kernel_size, stage.conv.stride) == ((4, 4), (stride, stride))
        x = stage(x)
        assert x.shape == (1, width, side, side)
        norms = 2 * width if i < 3 else 0
        assert sum(p.numel() for p in stage.parameters()) == convolution(before, width) + norms
        before = width
    assert len(decoder.deconvolutions) == (5 if projection else 4)
    assert isinstance(decoder.deconvolutions[-1].adn.A, nn.Tanh)
    assert decoder(torch.rand(2, latent)).shape == (2, colours, image_size, image_size)


@pytest.mark.parametrize(("latent", "first"), [(128, 64), (512, 128)])
@pytest.mark.parametrize("order", ["NA", "AN"])
def test_discriminator_is_table_1(latent: int, first: int, order: str) -> None:
    layers = list(LatentDiscriminator(latent, order=order))
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in linear] == [first, 32, 16, 1]
    tail = [nn.BatchNorm1d, nn.ReLU] if order == "NA" else [nn.ReLU, nn.BatchNorm1d]
    assert [type(layer) for layer in layers] == [nn.Linear, *tail] * 3 + [nn.Linear]
    widths = [latent, first, 32, 16, 1]
    count = sum(a * b + b for a, b in pairwise(widths)) + 2 * (first + 32 + 16)
    assert sum(p.numel() for layer in layers for p in layer.parameters()) == count


@pytest.mark.parametrize(("size", "extra"), [(28, 0), (32, 0), (64, 1), (128, 2), (256, 3)])
def test_larger_sizes_get_stages_of_512(size: int, extra: int) -> None:
    assert dcgan_widths(size) == [64, 128, 256, 512] + [512] * extra
    encoder, decoder = DCGANEncoder(1, size, 1, 5).eval(), DCGANDecoder(1, size, 1, 5).eval()
    x = torch.rand(1, 1, max(size, 32), max(size, 32))
    assert encoder.convolutions(x).shape == (1, 8, 2, 2)
    assert decoder(torch.rand(1, 5)).shape == (1, 1, size, size)
    assert [stage.conv.in_channels for stage in decoder.deconvolutions] == [5] + [8] * extra + [8, 4, 2]


def test_28_pixels_are_padded_by_their_border_and_cropped() -> None:
    encoder, wide = DCGANEncoder(1, 28, 2, 5).eval(), DCGANEncoder(1, 32, 2, 5).eval()
    wide.load_state_dict(encoder.state_dict())
    image = np.random.default_rng(0).random((1, 1, 28, 28)).astype(np.float32)
    padded = np.pad(image, ((0, 0), (0, 0), (2, 2), (2, 2)), mode="edge")
    torch.testing.assert_close(encoder(torch.from_numpy(image)), wide(torch.from_numpy(padded)))
    decoder, whole = DCGANDecoder(1, 28, 2, 5).eval(), DCGANDecoder(1, 32, 2, 5).eval()
    whole.load_state_dict(decoder.state_dict())
    z = torch.rand(2, 5)
    assert torch.equal(decoder(z), whole(z)[:, :, 2:30, 2:30])


def test_order_of_section_3_1() -> None:
    encoder = DCGANEncoder(1, 32, 2, 5, order="AN", first_norm=True)
    for stage in [*encoder.convolutions, *DCGANDecoder(1, 32, 2, 5, order="AN").deconvolutions[:3]]:
        assert [type(m) for m in stage.adn] == [nn.LeakyReLU, nn.BatchNorm2d]


# Eq. 1 to 6


def squared_norm(a: np.ndarray) -> float:
    return float(sum(v * v for v in a.ravel().tolist()))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_one_class_loss_is_equation_3(reduction: str) -> None:
    random = np.random.default_rng(1)
    z, centre = random.normal(size=(3, 5)), random.normal(size=5)
    expected = np.mean([squared_norm(z[i] - centre) / (5 if reduction == "mean" else 1) for i in range(3)])
    loss = OneClassLoss(reduction)(torch.from_numpy(z), torch.from_numpy(centre))
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)


def sure(z: Tensor) -> Tensor:
    """A D_L that can be computed by hand."""
    return (0.7 * z).sum(dim=1, keepdim=True) - 0.2


def probability(z: np.ndarray) -> float:
    return float(1.0 / (1.0 + np.exp(-(0.7 * z.sum() - 0.2))))


@pytest.mark.parametrize("saturating", [True, False])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_losses_are_equations_3_to_6(saturating: bool, reduction: str) -> None:
    random = np.random.default_rng(2)
    image, component, residual = random.random((3, 4, 2, 5, 5))
    z, centre = random.normal(size=(4, 3)), random.normal(size=3)
    loss = DDRIDLoss(sigma=0.3, reduction=reduction, saturating=saturating)
    tensors = [torch.from_numpy(a) for a in (image, component, residual, z, centre)]
    terms = loss(sure, tensors[0], (tensors[1], tensors[2]), tensors[3], tensors[4])
    share = {"sum": (1, 1), "mean": (3, 50)}[reduction]
    one_class = np.mean([squared_norm(z[i] - centre) / share[0] for i in range(4)])
    rec = np.mean([squared_norm(component[i] + residual[i] - image[i]) / share[1] for i in range(4)])
    fake = [probability(z[i]) for i in range(4)]
    latent = np.mean([np.log(1 - p) if saturating else -np.log(p) for p in fake])
    assert float(terms["one_class"]) == pytest.approx(float(one_class), rel=1e-6)
    assert float(terms["rec"]) == pytest.approx(float(rec), rel=1e-6)
    assert float(terms["latent"]) == pytest.approx(float(latent), rel=1e-6)
    assert float(terms["loss"]) == pytest.approx(float(one_class + latent + rec), rel=1e-6)
    assert float(terms["error"]) == pytest.approx(float(one_class + rec), rel=1e-6)
    torch.manual_seed(7)
    drawn = centre + 0.3 * torch.randn(4, 3, dtype=torch.float64).numpy()  # as many as images
    torch.manual_seed(7)
    d_loss = float(loss.discriminator(sure, tensors[3], tensors[4]))
    expected = -np.mean([np.log(probability(drawn[i])) + np.log(1 - fake[i]) for i in range(4)])
    assert d_loss == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.slow
def test_a_joint_batch_lets_the_critic_see_mean_and_spread() -> None:
    """Batch normalisation takes both away from each of two batches, which leaves it the shape alone."""
    centre = torch.zeros(6)
    found = {}
    for joint in (False, True):
        torch.manual_seed(0)
        critic, loss = LatentDiscriminator(6, 8), DDRIDLoss(joint_batch=joint)
        optimizer = torch.optim.Adam(critic.parameters(), 0.02)
        for _ in range(60):
            z = 5.0 + 2.0 * torch.randn(64, 6)
            optimizer.zero_grad()
            loss.discriminator(critic, z, centre).backward()
            optimizer.step()
        with torch.no_grad():
            z = 5.0 + 2.0 * torch.randn(64, 6)
            found[joint] = float(loss.discriminator(critic, z, centre))
            terms = loss(critic, torch.rand(64, 1, 2, 2), (torch.zeros(64, 1, 2, 2),) * 2, z, centre)
            assert (float(terms["latent"]) > -0.1) == joint  # log(1 - D): D is sure of the codes
    assert found[True] < 0.1 < 1.0 < found[False]  # 2 log 2 = 1.39 is a guess


def test_encoders_may_go_without_biases() -> None:
    detector = small(encoder_bias=False)
    for network in (detector.class_network, detector.residual_network):
        assert not any(name.endswith("bias") for name, _ in network.encoder.named_parameters())
        assert any(name.endswith("bias") for name, _ in network.decoder.named_parameters())


def test_samples_are_normal_around_the_centre() -> None:
    torch.manual_seed(0)
    centre = torch.tensor([1.0, -2.0, 0.0])
    drawn = DDRIDLoss(sigma=0.25).sample(20_000, centre)
    torch.testing.assert_close(drawn.mean(dim=0), centre, rtol=0, atol=0.01)
    torch.testing.assert_close(drawn.std(dim=0), torch.full((3,), 0.25), rtol=0.05, atol=0)
    assert torch.equal(DDRIDLoss(sigma=0.0).sample(2, centre), centre.expand(2, 3))


def test_losses_refuse_unknown_settings() -> None:
    with pytest.raises(ValueError, match="sigma"):
        DDRIDLoss(sigma=-0.1)
    with pytest.raises(ValueError, match="reduction"):
        DDRIDLoss(reduction="max")


def grads(module: nn.Module) -> float:
    return sum(float(p.grad.abs().sum()) for p in module.parameters() if p.grad is not None)


def test_each_term_reaches_the_networks_of_algorithm_1() -> None:
    detector, critic = small().train(), LatentDiscriminator(6, 8)
    x = torch.rand(4, 1, 32, 32)
    parts = [detector.class_network.encoder, detector.class_network.decoder, detector.residual_network, critic]
    expected = {
        "one_class": [True, False, False, False],
        "latent": [True, False, False, True],
        "rec": [True, True, True, False],
    }
    for name, reached in expected.items():
        (component, z), residual = detector.class_network(x), detector.residual_network(x)[0]
        detector.zero_grad()
        critic.zero_grad()
        DDRIDLoss()(critic, x, (component, residual), z, detector.centre)[name].backward()
        assert [grads(part) > 0 for part in parts] == reached, name
    detector.zero_grad()
    critic.zero_grad()
    DDRIDLoss().discriminator(critic, detector.class_network(x)[1], detector.centre).backward()
    assert [grads(part) > 0 for part in parts] == [False, False, False, True]


# Eq. 7, 8 and the maps


@pytest.mark.parametrize("name", VARIANTS)
def test_scores_and_map_are_equations_7_and_8(name: str) -> None:
    detector = small(**VARIANTS[name]).eval()
    image = image_for(detector)
    with torch.no_grad():
        output = detector.detect(image)
        x, offset, scale = detector.normalise(image)
        x_c, z = detector.class_network(x)
        template = detector.class_network.decoder(detector.centre[None])
        x_n = detector.residual_network(x)[0]
        assert torch.equal(detector(image), output.anomaly_map)
    torch.testing.assert_close(output.restoration, x_c * scale + offset)
    torch.testing.assert_close(x * scale + offset, image)
    euclidean = VARIANTS[name].get("distance") == "euclidean"
    weights = {"restoration": (0, 1), "sum": (1, 1)}.get(VARIANTS[name].get("score", "val"), (1, 0))
    for b in range(len(image)):
        as_l = squared_norm(z[b].double().numpy() - detector.centre.double().numpy())
        difference = x_c[b].double().numpy() - template[0].double().numpy()
        as_r = squared_norm(difference)
        if euclidean:
            as_l, as_r = as_l**0.5, as_r**0.5
        expected = weights[0] * as_l + weights[1] * as_r
        assert float(output.anomaly_score[b]) == pytest.approx(expected, rel=1e-4)
        kind = VARIANTS[name].get("pixel_map", "template")
        if kind == "template":
            pixels = np.abs(difference) if euclidean else difference**2
        elif kind == "restoration":
            pixels = np.abs(x[b].double().numpy() - x_c[b].double().numpy())
        else:
            pixels = np.abs(x_n[b].double().numpy())
        expected_map = sum(pixels[c] for c in range(len(pixels))) / len(pixels)
        np.testing.assert_allclose(output.anomaly_map[b, 0].numpy(), expected_map, rtol=1e-4, atol=1e-7)


def test_the_template_map_adds_up_to_the_restoration_score() -> None:
    detector = small(score="restoration", in_channels=2).eval()
    with torch.no_grad():
        output = detector.detect(image_for(detector))
    torch.testing.assert_close(2 * output.anomaly_map.flatten(1).sum(dim=1), output.anomaly_score)


# Algorithm 2


@pytest.mark.parametrize("selection", ["paper", "standardised"])
@pytest.mark.parametrize("distance", ["squared", "euclidean"])
def test_selection_is_algorithm_2(selection: str, distance: str) -> None:
    chosen = set()
    for stretch in (0.01, 1.0, 1000.0):
        detector = small(selection=selection, distance=distance, output_activation=None).eval()
        with torch.no_grad():
            detector.class_network.decoder.deconvolutions[-1].conv.weight.mul_(stretch)
            detector.centre.copy_(detector.class_network.encoder(torch.rand(1, 1, 32, 32))[0])
            training = [torch.rand(3, 1, 32, 32), torch.rand(2, 1, 32, 32)]
            held_out = [torch.rand(2, 1, 32, 32) ** 2, torch.rand(1, 1, 32, 32) ** 3]
            detector.fit_statistics(training, held_out)
            means = {}
            for name, images in (("training", training), ("held out", held_out)):
                values = [detector.scores(image[None]) for batch in images for image in batch]
                means[name] = np.mean([[float(a), float(b)] for a, b in values], axis=0)
        latent, restoration = means["held out"]
        if selection == "standardised":
            latent, restoration = latent / means["training"][0], restoration / means["training"][1]
        expected = [1.0, 0.0] if latent < restoration else [0.0, 1.0]
        assert detector.score_weights.tolist() == expected
        chosen.add(tuple(expected))
        image = torch.rand(2, 1, 32, 32)
        with torch.no_grad():
            selected = detector.scores(image)[0 if expected[0] else 1]
            torch.testing.assert_close(detector.detect(image).anomaly_score, selected)
    assert selection == "standardised" or len(chosen) == 2  # the unit of the images decides


def test_a_tie_goes_to_the_restoration_score() -> None:
    detector = small().eval()
    for p in detector.class_network.parameters():
        p.data.zero_()
    detector.centre.zero_()
    with torch.no_grad():
        detector.fit_statistics([], [torch.rand(1, 1, 32, 32)])
    assert detector.score_weights.tolist() == [0.0, 1.0]


def test_selection_needs_held_out_normals() -> None:
    detector = small().eval()
    assert detector.needs_held_out
    with pytest.raises(ValueError, match="held-out normals"):
        detector.fit_statistics([torch.rand(1, 1, 32, 32)], [])
    with pytest.raises(ValueError, match="training normals"):
        small(selection="standardised").eval().fit_statistics([], [torch.rand(1, 1, 32, 32)])
    for score, weights in (("latent", [1.0, 0.0]), ("restoration", [0.0, 1.0]), ("sum", [1.0, 1.0])):
        detector = small(score=score).eval()
        assert not detector.needs_held_out
        detector.fit_statistics([], [])
        assert detector.score_weights.tolist() == weights


# Training


class Images(torch.utils.data.Dataset):
    """Smooth blobs at one place: a normal class."""

    def __init__(self, number: int, seed: int, size: int = 32) -> None:
        random = np.random.default_rng(seed)
        y, x = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size), indexing="ij")
        shifts = random.normal(0, 0.1, (number, 2))
        self.images = np.stack([np.exp(-3 * ((x - a) ** 2 + (y - b) ** 2)) for a, b in shifts]).astype(np.float32)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": torch.from_numpy(self.images[index])[None]}


class Run:
    def __init__(self, epochs: tuple[int, int] = (8, 8), handlers: list[Any] | None = None, **kwargs: Any) -> None:
        torch.manual_seed(0)
        self.network = DDRID(**{"channels": 4, "latent_channels": 8, **kwargs})
        self.critic = LatentDiscriminator(8, 8)
        # 17 images in batches of 4: the last batch is a single image
        loader = DataLoader(Images(17, 0), batch_size=4, shuffle=True)
        validation = DataLoader(Images(3, 1), batch_size=2)
        both = [*self.network.class_network.parameters(), *self.network.residual_network.parameters()]

        def adam(params: Any) -> torch.optim.Adam:
            return torch.optim.Adam(params, lr=0.01, weight_decay=1e-6)

        first, second, third = adam(both), adam(both), adam(self.critic.parameters())
        self.stages = [
            DDRIDPretrainer(
                self.network,
                "cpu",
                epochs[0],
                loader,
                first,
                val_data_loader=validation,
                lr_schedulers=[MultiStepLR(first, [6], 0.1)],
                train_handlers=handlers,
            ),
            DDRIDTrainer(
                self.network,
                self.critic,
                "cpu",
                epochs[1],
                loader,
                second,
                third,
                val_data_loader=validation,
                lr_schedulers=[MultiStepLR(second, [6], 0.1), MultiStepLR(third, [6], 0.1)],
                train_handlers=handlers,
            ),
        ]

    def go(self, folder: Path) -> Run:
        self.history = train_stages(self.stages, self.network, folder, seed=3, progress=False)
        return self

    def weights(self) -> dict[str, Tensor]:
        return {
            f"{name}.{key}": value
            for name, part in (("network", self.network), ("critic", self.critic))
            for key, value in part.state_dict().items()
        }


class Killer:
    """Stops a run in the middle of an epoch."""

    def __init__(self, stage: str, epoch: int) -> None:
        self.at = (stage, epoch)

    def attach(self, engine: Any) -> None:
        from ignite.engine import Events

        def kill(engine: Any) -> None:
            if (engine.stage, engine.state.epoch) == self.at:
                raise KeyboardInterrupt

        engine.add_event_handler(Events.ITERATION_COMPLETED, kill)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run().go(tmp_path_factory.mktemp("whole"))


@pytest.mark.slow
def test_both_stages_learn(trained: Run) -> None:
    for stage in ("pretraining", "finetuning"):
        rows = [row for row in trained.history if row["stage"] == stage]
        assert len(rows) == 8
        for key in ("train_loss", "val_loss"):
            assert rows[-1][key] < 0.9 * rows[0][key], (stage, key)
    assert trained.stages[1].optimizer.param_groups[0]["lr"] == pytest.approx(0.001)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretraining", "finetuning"])
def test_a_killed_run_goes_on_to_the_same_weights(stage: str, trained: Run, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Run(handlers=[Killer(stage, 5)]).go(tmp_path)
    again = Run().go(tmp_path)
    expected = trained.weights()
    assert again.weights().keys() == expected.keys()
    assert not [key for key, value in again.weights().items() if not torch.equal(value, expected[key])]
    assert again.history == trained.history


@pytest.mark.slow
def test_the_range_and_the_centre_are_the_training_set_s(trained: Run, tmp_path: Path) -> None:
    run = Run(epochs=(2, 1))
    pretrainer, trainer = run.stages
    train_stages([pretrainer], run.network, tmp_path, progress=False)
    images = torch.from_numpy(Images(17, 0).images)[:, None]
    contrasts = run.network.normalisation.contrast(images)[0]
    assert float(run.network.normalisation.lower) == pytest.approx(float(contrasts.min()))
    assert float(run.network.normalisation.upper) == pytest.approx(float(contrasts.max()))
    trainer.prepare()
    run.network.eval()
    with torch.no_grad():
        latent = run.network.class_network.encoder(run.network.normalise(images)[0]).double().numpy()
    expected = [sum(float(z[d]) for z in latent) / 17 for d in range(8)]  # Z_C, section 3.2.1
    np.testing.assert_allclose(run.network.centre.numpy(), expected, rtol=1e-4, atol=1e-6)
    # Z_C is fixed in the second stage
    before = run.network.centre.clone()
    for _ in range(2):
        trainer.training_step({"image": images})
    assert torch.equal(run.network.centre, before)


def test_a_margin_keeps_the_centre_from_zero() -> None:
    run = Run(centre_margin=5.0)
    run.stages[1].prepare()
    assert (run.network.centre.abs() >= 5.0).all()
    run.network.centre_margin = 0.0
    run.stages[1].prepare()
    assert (run.network.centre.abs() < 5.0).any()


def test_a_step_of_the_first_stage_is_equations_1_and_2() -> None:
    run = Run()
    images = torch.from_numpy(Images(4, 5).images)[:, None]
    reference = copy.deepcopy(run.network).train()
    with torch.no_grad():
        x = reference.normalise(images)[0]
        outputs = [reference.class_network(x)[0], reference.residual_network(x)[0]]
    expected = sum(np.mean([squared_norm((x[i] - o[i]).double().numpy()) for i in range(4)]) for o in outputs)
    losses = run.stages[0].training_step({"image": images})
    assert float(losses["loss"].detach()) == pytest.approx(float(expected), rel=1e-4)
    assert isinstance(run.stages[0].loss_function, SquaredErrorLoss)
    for network in (run.network.class_network, run.network.residual_network):
        assert grads(network) > 0


def test_a_step_of_the_second_stage_updates_all_three_networks() -> None:
    run = Run()
    before = {key: value.clone() for key, value in run.weights().items()}
    terms = run.stages[1].training_step({"image": torch.from_numpy(Images(4, 5).images)[:, None]})
    assert {"loss", "error"} == set(terms)
    moved = {key.rsplit(".", 3)[0] for key, value in run.weights().items() if not torch.equal(value, before[key])}
    for part in ("network.class_network.encoder", "network.class_network.decoder", "network.residual_network"):
        assert any(key.startswith(part) for key in moved), part
    assert any(key.startswith("critic") for key in moved)


@pytest.mark.slow
def test_an_anomaly_scores_higher_than_a_normal(trained: Run) -> None:
    detector = copy.deepcopy(trained.network).eval()
    normals = torch.from_numpy(Images(4, 2).images)[:, None]
    with torch.no_grad():
        detector.fit_statistics([normals], [normals])
        output = detector.detect(torch.cat([normals, 1.0 - normals]))
    assert output.anomaly_score[:4].max() < output.anomaly_score[4:].min()
    maps = output.anomaly_map.flatten(1).mean(dim=1)
    assert maps[:4].max() < maps[4:].min()


# Files, export, refusals


@pytest.mark.parametrize("name", VARIANTS)
def test_configuration_and_state_are_the_whole_detector(name: str, tmp_path: Path) -> None:
    detector = small(**VARIANTS[name]).eval()
    detector.score_weights.copy_(torch.tensor([0.0, 1.0]))
    config = json.loads(json.dumps(detector.config))
    torch.save(detector.state_dict(), tmp_path / "state.pt")
    again = getattr(networks, config["name"])(**config["arguments"]).eval()
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    image = image_for(detector)
    with torch.no_grad():
        for one, two in zip(detector.detect(image), again.detect(image)):
            assert torch.equal(one, two)
    assert again.config == detector.config
    assert list(config["arguments"]) == list(inspect.signature(DDRID.__init__).parameters)[1:]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MNIST's size", "order of section 3.1", "sum of scores", "rescaled per image"])
def test_torchscript_is_the_eager_network(name: str, tmp_path: Path) -> None:
    detector = small(**VARIANTS[name]).eval()
    torch.jit.save(torch.jit.script(detector), tmp_path / "model.ts")
    scripted = torch.jit.load(tmp_path / "model.ts")
    image = image_for(detector)
    with torch.no_grad():
        for _ in range(2):  # the second run is the optimised one
            torch.testing.assert_close(scripted(image), detector(image), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MNIST's size"])
def test_onnx_is_the_eager_network(name: str, tmp_path: Path) -> None:
    detector = small(**VARIANTS[name]).eval()
    monai.networks.convert_to_onnx(
        detector,
        [image_for(detector, 1)],
        filename=str(tmp_path / "model.onnx"),
        verify=True,
        use_ort=True,
        rtol=1e-3,
        atol=1e-4,
        input_names=["image"],
        output_names=["map"],
    )
    assert (tmp_path / "model.onnx").stat().st_size > 0


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 32, 32), "1 input channel"),
        ((1, 1, 32), "2-D"),
        ((1, 1, 32, 32, 32), "2-D"),
        ((1, 1, 30, 32), "multiples of 32"),
        ((1, 1, 64, 64), r"\[32, 32\]"),
        ((1, 1, 32, 64), r"\[32, 32\]"),
    ],
)
def test_unfit_input_is_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small().eval()(torch.zeros(shape))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"spatial_dims": 3}, "spatial_dims"),
        ({"image_size": 48}, "image_size"),
        ({"image_size": [32, 64]}, "square"),
        ({"order": "DNA"}, "order"),
        ({"score": "mean"}, "score"),
        ({"selection": "best"}, "selection"),
        ({"distance": "l1"}, "distance"),
        ({"pixel_map": "gradient"}, "pixel_map"),
        ({"contrast": "max"}, "contrast"),
        ({"rescale": "test"}, "rescale"),
    ],
)
def test_unknown_settings_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**kwargs)
