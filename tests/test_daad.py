"""DAAD and DAAD+: Tables 7 and 8 row by row, Eq. 3 to 7, the contract, export, training, refusals."""

from __future__ import annotations

import copy
import inspect
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import RandFlipd
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from monai_anomaly import networks
from monai_anomaly.benchmarks import load_suite
from monai_anomaly.benchmarks.training import merged_config
from monai_anomaly.engines import DAADTrainer, train_stages
from monai_anomaly.exceptions import InputError
from monai_anomaly.losses import DAADLoss
from monai_anomaly.networks import DAAD, DAADDiscriminator
from monai_anomaly.networks.blocks import BlockMemory

CONFIGS = Path(__file__).parents[1] / "bundles" / "daad" / "configs"
SMALL: dict[str, Any] = {
    "image_size": [32, 32],
    "channels": [4, 8],
    "division_rates": [4, 4, 2],
    "num_items": 6,
    "discriminator_channels": [4, 8, 8],
    "feature_channels": 5,
}
VARIANTS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "DAAD+": ({}, (2, 1, 32, 32)),
    "DAAD": ({"discriminator": False}, (2, 1, 32, 32)),
    "colour": ({"in_channels": 3, "output_activation": "tanh"}, (2, 3, 32, 32)),
    "AE": ({"discriminator": False, "memory_scales": [], "skips": False}, (2, 1, 32, 32)),
    "AE+Skip": ({"discriminator": False, "memory_scales": []}, (2, 1, 32, 32)),
    "MemAE": (
        {"discriminator": False, "memory_scales": [2], "skips": False, "division_rates": [8, 8, 1]},
        (2, 1, 32, 32),
    ),
    "MemAE+Skip": ({"discriminator": False, "division_rates": [[16, 16, 1], [8, 8, 1]]}, (1, 1, 32, 32)),
    "norm, sharp memory": (
        {"score_distance": "norm", "gamma": 0.4, "temperature": 0.1, "renormalize": True},
        (2, 1, 32, 32),
    ),
    "map with features": ({"pixel_map": "features", "discriminator_channels": [4, 8]}, (2, 1, 32, 32)),
    "oblong": ({"image_size": [32, 48]}, (1, 1, 32, 48)),
    "volume": (
        {"spatial_dims": 3, "image_size": [16, 16, 32], "channels": [2], "division_rates": None},
        (1, 1, 16, 16, 32),
    ),
}


def small(**kwargs: Any) -> DAAD:
    """A small detector whose batch statistics, items and score ranges are away from their start."""
    torch.manual_seed(0)
    detector = DAAD(**{**SMALL, **kwargs})
    with torch.no_grad():
        detector.train()
        shape = (2, detector.in_channels, *detector.image_size)
        for _ in range(3):
            x = torch.randn(shape)
            x_hat = detector.generator(x)
            if detector.discriminator is not None:
                detector.discriminator(x_hat)
        detector.eval()
        held_out = [torch.rand(shape), torch.rand(shape)]
        detector.fit_statistics([], held_out)
    return detector


# Table 7: output (rows of a memory or of pooling keep their input's channels), channels, the divisor of H and W.
TABLE_7 = [
    ("enc1-1", 64, 1),
    ("enc1-2", 64, 1),
    ("enc1-3", 64, 2),
    ("m1", 64, 2),
    ("enc2-1", 128, 2),
    ("enc2-2", 128, 2),
    ("enc2-3", 128, 4),
    ("m2", 128, 4),
    ("enc3-1", 256, 4),
    ("enc3-2", 256, 4),
    ("enc3-3", 256, 8),
    ("m3", 256, 8),
    ("enc4-1", 512, 8),
    ("enc4-2", 512, 8),
    ("enc4-3", 512, 16),
    ("m4", 512, 16),
    ("dec4-1", 1024, 16),
    ("dec4-2", 1024, 16),
    ("dec4-3", 512, 8),
    ("dec3-1", 512, 8),
    ("dec3-2", 512, 8),
    ("dec3-3", 256, 4),
    ("dec2-1", 256, 4),
    ("dec2-2", 256, 4),
    ("dec2-3", 128, 2),
    ("dec1-1", 128, 2),
    ("dec1-2", 128, 2),
    ("dec1-3", 64, 1),
    ("head1-1", 64, 1),
    ("head1-2", 64, 1),
    ("output", 3, 1),
]
# Channels of the inputs of Table 7's convolutions; a list is a concatenation.
INPUTS_7 = {
    "enc1-1": 3,
    "enc1-2": 64,
    "enc2-1": 64,
    "enc2-2": 128,
    "enc3-1": 128,
    "enc3-2": 256,
    "enc4-1": 256,
    "enc4-2": 512,
    "dec4-1": 512,
    "dec4-2": 1024,
    "dec4-3": 1024,
    "dec3-1": 512 + 256,
    "dec3-2": 512,
    "dec3-3": 512,
    "dec2-1": 256 + 128,
    "dec2-2": 256,
    "dec2-3": 256,
    "dec1-1": 128 + 64,
    "dec1-2": 128,
    "dec1-3": 128,
    "head1-1": 64,
    "head1-2": 64,
    "output": 64,
}


def rows(generator: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules of a generator by Table 7's names of their outputs."""
    named: list[tuple[str, nn.Module]] = []
    for i, (stage, memory) in enumerate(zip(generator.encoder, generator.memories), start=1):
        named += [(f"enc{i}-1", stage[0][0]), (f"enc{i}-2", stage[0][1]), (f"enc{i}-3", stage[1]), (f"m{i}", memory)]
    for i, stage in zip(range(len(generator.decoder), 0, -1), generator.decoder):
        named += [(f"dec{i}-1", stage[0][0]), (f"dec{i}-2", stage[0][1]), (f"dec{i}-3", stage[1])]
    return [*named, ("head1-1", generator.head[0][0]), ("head1-2", generator.head[0][1]), ("output", generator.head[1])]


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("side", [256, 128])
def test_table_7(side: int) -> None:
    with torch.device("meta"):
        generator = DAAD(in_channels=3, image_size=(side, side)).eval().generator
        seen: dict[str, Tensor] = {}
        for name, module in rows(generator):
            module.register_forward_hook(lambda _m, _i, output, name=name: seen.__setitem__(name, output))
        assert generator(torch.zeros(2, 3, side, side)).shape == (2, 3, side, side)
    assert {"m1", "m4", "dec1-3", "output"} < set(seen)
    assert list(seen) == [name for name, _, _ in TABLE_7]
    for name, width, divisor in TABLE_7:
        assert seen[name].shape == (2, width, side // divisor, side // divisor), name
    total = 0
    for (name, module), (_, width, divisor) in zip(rows(generator), TABLE_7, strict=True):
        expected = 0
        if name[0] == "m":
            expected = 500 * width * (side // divisor // 8) ** 2
        elif name == "output":
            expected = INPUTS_7[name] * width + width  # 1 x 1
        elif name[:3] == "dec" and name[-1] == "3":
            expected = INPUTS_7[name] * width * 4 + width  # 2 x 2, transposed
        elif name in INPUTS_7:
            expected = INPUTS_7[name] * width * 9 + width + 2 * width  # 3 x 3 and batch normalisation
        assert parameters(module) == expected, name
        total += expected
    assert parameters(generator) == total
    names = [type(m).__name__ for m in rows(generator)[0][1].modules()]
    assert [n for n in names if n in ("Conv2d", "BatchNorm2d", "ReLU")] == ["Conv2d", "BatchNorm2d", "ReLU"]


def test_each_scale_has_a_bank_of_its_own() -> None:
    with torch.device("meta"):
        banks = [m for m in DAAD().generator.memories if isinstance(m, BlockMemory)]
    assert [tuple(m.items.shape) for m in banks] == [(500, 64 * 256), (500, 128 * 64), (500, 256 * 16), (500, 512 * 4)]


# Table 8 at 256 x 256: channels, side, batch normalisation, and the parameters of its convolution.
TABLE_8 = [(64, 128, False), (128, 64, True), (256, 32, True), (512, 16, True), (1024, 8, True), (2048, 4, True)]


def test_table_8() -> None:
    with torch.device("meta"):
        discriminator = DAADDiscriminator(2, 3, (256, 256)).eval()
        x, inputs, total = torch.zeros(2, 3, 256, 256), 3, 0
        *stages, last = discriminator.feature_extractor
        for stage, (width, side, norm) in zip(stages, TABLE_8, strict=True):
            x = stage(x)
            assert x.shape == (2, width, side, side)
            expected = inputs * width * 16 + width + (2 * width if norm else 0)
            assert parameters(stage) == expected
            assert any(isinstance(m, nn.BatchNorm2d) for m in stage.modules()) == norm
            (leaky,) = [m for m in stage.modules() if isinstance(m, nn.LeakyReLU)]
            assert leaky.negative_slope == 0.2
            inputs, total = width, total + expected
        f = last(x)
        assert f.flatten(1).shape == (2, 100)  # "100 if the size of the input image is 256 x 256"
        assert discriminator.classifier(f).shape == (2, 1, 1, 1)
        total += 2048 * 100 * 16 + 100 + 100 * 9 + 1
        assert parameters(discriminator) == total


@pytest.mark.parametrize(
    ("size", "stages", "positions"),
    [
        ((256, 256), 6, 1),
        ((128, 128), 5, 1),
        ((32, 32), 3, 1),
        ((8, 8), 1, 1),
        ((512, 512), 6, 25),
        ((192, 256), 5, 15),
    ],
)
def test_discriminator_follows_the_image_size(size: tuple[int, int], stages: int, positions: int) -> None:
    with torch.device("meta"):
        discriminator = DAADDiscriminator(2, 1, size).eval()
        f, logits = discriminator(torch.zeros(1, 1, *size))
    assert len(discriminator.feature_extractor) == stages + 1
    assert f.flatten(2).shape == (1, 100, positions)
    assert logits.flatten(2).shape == (1, 1, positions)


def test_generator_reads_its_memories() -> None:
    """Skips carry what the memories recall, never the encoder's map itself."""
    detector = small()
    x = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        before = detector.generator(x)
        for memory in detector.generator.memories:
            memory.items.zero_()
        forgotten, other = detector.generator(x), detector.generator(torch.rand(1, 1, 32, 32))
    assert not torch.equal(before, forgotten)
    assert torch.equal(forgotten, other)


def explained(detector: DAAD, image: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x, x_hat, f_D(x), f_D(x_hat) in float64."""
    with torch.no_grad():
        x = 2 * image - 1
        x_hat = detector.generator(x)
        both = [x, x_hat]
        if detector.discriminator is not None:
            both += [detector.discriminator(x)[0], detector.discriminator(x_hat)[0]]
    arrays = [t.double().numpy() for t in both]
    return (*arrays, *[np.zeros((len(image), 1))] * (4 - len(arrays)))  # type: ignore[return-value]


def size_of(difference: np.ndarray, norm: bool) -> float:
    return float(np.sqrt((difference**2).sum())) if norm else float((difference**2).mean())


@pytest.mark.parametrize("name", VARIANTS)
def test_map_score_and_restoration_are_equations_4_6_and_7(name: str) -> None:
    kwargs, shape = VARIANTS[name]
    detector = small(**kwargs)
    image = torch.rand(shape) * 1.1
    with torch.no_grad():
        output = detector.detect(image)
        assert torch.equal(detector(image), output.anomaly_map)
    x, x_hat, f, f_hat = explained(detector, image)
    norm, gamma = kwargs.get("score_distance") == "norm", kwargs.get("gamma", 0.9)
    low, high = detector.minimum.double().numpy(), detector.maximum.double().numpy()
    assert output.restoration is not None
    np.testing.assert_allclose(output.restoration.numpy(), (x_hat + 1) / 2, rtol=1e-5, atol=1e-6)
    assert output.anomaly_map.shape == (shape[0], 1, *shape[2:])
    for b in range(shape[0]):
        r = size_of(x[b] - x_hat[b], norm)
        error = sum((x[b, c] - x_hat[b, c]) ** 2 for c in range(shape[1])) / shape[1]
        if detector.discriminator is None:
            assert float(output.anomaly_score[b]) == pytest.approx(r, rel=1e-5)
        else:
            scaled = (np.array([r, size_of(f[b] - f_hat[b], norm)]) - low) / (high - low)
            expected = gamma * scaled[0] + (1 - gamma) * scaled[1]
            assert float(output.anomaly_score[b]) == pytest.approx(expected, rel=1e-3, abs=1e-3)
        if kwargs.get("pixel_map") != "features":
            np.testing.assert_allclose(output.anomaly_map[b, 0].numpy(), error, rtol=1e-4, atol=1e-6)
            if not norm:
                assert float(output.anomaly_map[b].mean()) == pytest.approx(r, rel=1e-5)


def test_map_with_features() -> None:
    kwargs, shape = VARIANTS["map with features"]
    detector = small(**kwargs)
    image = torch.rand(shape)
    x, x_hat, f, f_hat = explained(detector, image)
    assert f.shape[2:] == (5, 5)
    distance = ((f - f_hat) ** 2).mean(axis=1)
    centres = (np.arange(32) + 0.5) * 5 / 32 - 0.5
    weights = np.maximum(0, 1 - np.abs(np.clip(centres, 0, 4)[:, None] - np.arange(5)))  # bilinear
    spread = (detector.maximum - detector.minimum).double().numpy()
    with torch.no_grad():
        found = detector(image)
    for b in range(shape[0]):
        expected = 0.9 * ((x[b] - x_hat[b]) ** 2).mean(axis=0) / spread[0]
        expected += 0.1 * weights @ distance[b] @ weights.T / spread[1]
        np.testing.assert_allclose(found[b, 0].numpy(), expected, rtol=1e-4, atol=1e-4)


def test_scales_are_the_range_of_held_out_normals() -> None:
    detector = small()
    held_out = [torch.rand(2, 1, 32, 32) * s for s in (0.3, 0.6, 1.0)]
    with torch.no_grad():
        detector.fit_statistics([torch.full((2, 1, 32, 32), 9.0)], held_out)
    values = []
    for image in held_out:
        x, x_hat, f, f_hat = explained(detector, image)
        values += (
            [((x[b] - x_hat[b]) ** 2).mean() for b in range(2)],
            [((f[b] - f_hat[b]) ** 2).mean() for b in range(2)],
        )
    r, l = np.concatenate(values[::2]), np.concatenate(values[1::2])  # noqa: E741
    np.testing.assert_allclose(detector.minimum.numpy(), [r.min(), l.min()], rtol=1e-3)
    np.testing.assert_allclose(detector.maximum.numpy(), [r.max(), l.max()], rtol=1e-3)
    with torch.no_grad():
        scores = torch.cat([detector.detect(image).anomaly_score for image in held_out])
        worse = detector.detect(torch.rand(2, 1, 32, 32) * 30).anomaly_score
    assert (scores >= -1e-5).all()
    assert (scores <= 1 + 1e-5).all()
    assert (worse > 1).all()  # not clipped: what is beyond keeps its rank
    assert float(worse[0]) != float(worse[1])


def test_gamma_gives_the_rows_of_table_5() -> None:
    image = torch.rand(3, 1, 32, 32)
    scores = {}
    for gamma in (0.0, 0.9, 1.0):
        with torch.no_grad():
            scores[gamma] = small(gamma=gamma).detect(image).anomaly_score
    torch.testing.assert_close(scores[0.9], 0.9 * scores[1.0] + 0.1 * scores[0.0])


def test_a_range_needs_held_out_images() -> None:
    detector = small()
    one = torch.rand(1, 1, 32, 32)
    for held_out in ([], [one]):
        with pytest.raises(ValueError, match="two held-out normal images"):
            detector.fit_statistics([one, one], held_out)
    with pytest.raises(ValueError, match="all the same"):
        detector.fit_statistics([], [one, one])
    assert detector.needs_held_out
    alone = DAAD(**SMALL, discriminator=False)
    assert not alone.needs_held_out
    alone.fit_statistics([], [])
    assert alone.minimum.tolist() == [0, 0]


@pytest.mark.slow
def test_torchscript_is_the_eager_network(tmp_path: Path) -> None:
    for name in ("DAAD+", "MemAE", "map with features", "norm, sharp memory", "volume"):
        kwargs, shape = VARIANTS[name]
        detector = small(**kwargs)
        torch.jit.save(torch.jit.script(detector), tmp_path / "model.ts")
        scripted = torch.jit.load(tmp_path / "model.ts")
        image = torch.rand(shape)
        with torch.no_grad():
            eager = detector(image)
            for _ in range(2):  # the second run is the optimised one
                torch.testing.assert_close(scripted(image), eager, rtol=0, atol=1e-4, msg=name)
        state = scripted.state_dict()
        assert state.keys() == detector.state_dict().keys()
        with pytest.raises(torch.jit.Error, match=r"made for images|multiples of"):
            scripted(torch.zeros(1, shape[1], *[2 * side for side in shape[2:]]))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_detector_made_from_its_configuration_and_state_is_the_same_to_the_bit(name: str, tmp_path: Path) -> None:
    kwargs, shape = VARIANTS[name]
    detector = small(**kwargs)
    config = json.loads(json.dumps(detector.config))
    assert config == detector.config
    assert list(config["arguments"]) == list(inspect.signature(DAAD.__init__).parameters)[1:]
    torch.save(detector.state_dict(), tmp_path / "model.pt")
    again = getattr(networks, config["name"])(**config["arguments"]).eval()
    image = torch.rand(shape)
    with torch.no_grad():
        assert not torch.equal(again(image), detector(image))
        again.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
        for one, two in zip(again.detect(image), detector.detect(image)):
            assert torch.equal(one, two)
    assert again.config == detector.config == copy.deepcopy(detector).config


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"division_rates": [3, 4, 2]}, "multiples of 12"),
        ({"division_rates": None}, r"multiples of 32"),
        ({"image_size": [36, 32]}, "image_size is"),
        ({"division_rates": [4, 4, 3]}, "r_c = 3 does not divide the 4 channels"),
        ({"division_rates": [4, 4]}, "one number an axis"),
        ({"division_rates": [4, 0, 1]}, "1 or more"),
        ({"division_rates": [[4, 4, 2]]}, "2 lists, got 1"),
        ({"image_size": [32]}, "image_size has 2 numbers"),
        ({"memory_scales": [3]}, "from 1 to 2, got 3"),
        ({"memory_scales": [0]}, "from 1 to 2, got 0"),
        ({"skips": False}, r"without skips nothing reads a memory at scale 1"),
        ({"gamma": 1.2}, "gamma"),
        ({"score_distance": "cosine"}, "score_distance"),
        ({"pixel_map": "mean"}, "pixel_map"),
        ({"pixel_map": "features", "discriminator": False}, "needs the discriminator"),
        ({"image_size": [4, 4], "division_rates": [1, 1, 1]}, "8 pixels or more"),
        ({"spatial_dims": 4, "division_rates": [4, 4, 4, 4, 1]}, "spatial_dims"),
    ],
)
def test_unfit_settings_are_refused(kwargs: dict[str, Any], message: str) -> None:
    if kwargs.get("division_rates", 0) is None:
        kwargs = {**kwargs, "image_size": [48, 32]}
    with pytest.raises(ValueError, match=message):
        DAAD(**{**SMALL, **kwargs})


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 32, 32), "1 input channel"),
        ((1, 1, 32), "2-D"),
        ((1, 1, 40, 32), "multiples of 16"),
        ((1, 1, 64, 64), r"made for images of \[32, 32\]"),
    ],
)
def test_unfit_input_is_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small()(torch.zeros(shape))


def test_papers_size_needs_multiples_of_128() -> None:
    with torch.device("meta"):
        assert DAAD(image_size=(128, 256)).size_divisor == 128
        with pytest.raises(ValueError, match=r"multiples of 128.*smallest has a side of 6"):
            DAAD(image_size=(96, 128))
        assert DAAD(image_size=(96, 128), division_rates=(2, 2, 1)).size_divisor == 32


# Losses


def hand_made(x: Tensor) -> tuple[Tensor, Tensor]:
    """A discriminator that can be computed by hand: two features and a logit for each image."""
    f = torch.stack([x.flatten(1).mean(1), 2 * x.flatten(1).amax(1)], dim=1)[..., None, None]
    return f, 1.5 * f[:, :1] - 0.4


def norm_of(a: np.ndarray, b: np.ndarray, reduction: str) -> float:
    squares = [((p - q) ** 2).sum() for p, q in zip(a, b)]
    if reduction == "norm":
        return float(np.mean(np.sqrt(squares)))
    return float(np.mean(squares)) / (a[0].size if reduction == "mean" else 1)


@pytest.mark.parametrize("reduction", ["mean", "sum", "norm"])
@pytest.mark.parametrize("saturating", [True, False])
@pytest.mark.parametrize("weights", [(50.0, 0.5, 0.5), (2.0, 0.0, 3.0), (1.0, 0.7, 0.0), (50.0, 0.0, 0.0)])
def test_losses_are_equations_3_to_6(reduction: str, saturating: bool, weights: tuple[float, ...]) -> None:
    x, x_hat = np.random.default_rng(0).random((2, 3, 2, 4, 5))
    f, f_hat = (np.stack([i.mean(axis=(1, 2, 3)), 2 * i.max(axis=(1, 2, 3))], axis=1) for i in (x, x_hat))
    real, fake = (1 / (1 + np.exp(-(1.5 * i[:, 0] - 0.4))) for i in (f, f_hat))
    rec, ali = norm_of(x, x_hat, reduction), norm_of(f, f_hat, reduction)
    adv = np.log(1 - fake).mean() if saturating else -np.log(fake).mean()
    loss = DAADLoss(*weights, reduction=reduction, saturating=saturating)
    images = torch.from_numpy(x), torch.from_numpy(x_hat)
    terms = loss(*images, hand_made)
    expected = {"rec": rec, "adv": adv, "ali": ali}
    assert set(terms) == {"loss", "rec"} | {n for n, w in zip(("adv", "ali"), weights[1:]) if w}
    for name in set(terms) - {"loss"}:
        assert float(terms[name]) == pytest.approx(expected[name], rel=1e-9)
    total = sum(w * value for w, value in zip(weights, expected.values()))
    assert float(terms["loss"]) == pytest.approx(total, rel=1e-9)
    d = -(np.log(real).mean() + np.log(1 - fake).mean())
    assert float(loss.discriminator(*images, hand_made)) == pytest.approx(d, rel=1e-9)
    if weights[1]:
        both = DAADLoss(*weights, reduction=reduction, align_discriminator=True)
        expected_d = weights[1] * d + weights[2] * ali
        assert float(both.discriminator(*images, hand_made)) == pytest.approx(expected_d, rel=1e-9)


def test_default_weights_are_the_papers() -> None:
    loss = DAADLoss()
    assert (loss.lambda_rec, loss.lambda_adv, loss.lambda_ali) == (50, 0.5, 0.5)
    assert loss.adversarial.saturating
    assert not loss.align_discriminator


def test_refused_losses() -> None:
    with pytest.raises(ValueError, match="reduction"):
        DAADLoss(reduction="none")
    with pytest.raises(ValueError, match="align_discriminator"):
        DAADLoss(lambda_adv=0.0, align_discriminator=True)
    with pytest.raises(ValueError, match="need a discriminator"):
        DAADLoss()(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2))


# Training


class Stripes(Dataset):
    """Normal images: horizontal stripes of random place; flipped as in a training."""

    def __init__(self, number: int = 12, side: int = 32, prob: float = 0.5) -> None:
        place = torch.rand(number, 1, 1, 1, generator=torch.Generator().manual_seed(3)) * 6
        rows = torch.arange(side)[None, None, :, None]
        self.images = (0.5 + 0.4 * torch.sin(rows / 2 + place)).expand(number, 1, side, side).contiguous()
        self.flip = RandFlipd("image", prob=prob, spatial_axis=0)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self.flip({"image": self.images[index]}))

    def set_random_state(self, seed: int) -> None:
        self.flip.set_random_state(seed)


def adam(module: nn.Module, lr: float = 0.01) -> torch.optim.Adam:
    return torch.optim.Adam(module.parameters(), lr=lr)


def trainer(detector: DAAD, epochs: int, **kwargs: Any) -> DAADTrainer:
    data = Stripes()
    if detector.discriminator is not None:
        # A discriminator as fast as so small a generator lets the loss rise with some seeds.
        kwargs = {"discriminator_optimizer": adam(detector.discriminator, 0.0002), **kwargs}
    return DAADTrainer(
        detector,
        "cpu",
        epochs,
        DataLoader(data, batch_size=4, shuffle=True),
        adam(detector.generator),
        val_data_loader=DataLoader(Stripes(6, prob=0.0), batch_size=4),
        **kwargs,
    )


def fresh(**kwargs: Any) -> DAAD:
    torch.manual_seed(7)
    return DAAD(**{**SMALL, **kwargs})


@pytest.mark.slow
@pytest.mark.parametrize("discriminator", [True, False])
def test_training_lowers_the_loss(discriminator: bool, tmp_path: Path) -> None:
    stage = trainer(fresh(discriminator=discriminator), 20)
    history = train_stages([stage], stage.network, tmp_path, progress=False)
    assert history[-1]["train_loss"] < 0.6 * history[0]["train_loss"]
    assert history[-1]["val_loss"] < 0.6 * history[0]["val_loss"]
    assert history[-1]["stage"] == "divide and assemble"


@pytest.mark.slow
def test_an_abnormal_image_scores_higher(tmp_path: Path) -> None:
    detector = fresh()
    train_stages([trainer(detector, 20)], detector, tmp_path, progress=False)
    detector.eval()
    normal = Stripes().images
    abnormal = normal.clone()
    abnormal[:, :, 8:20, 10:22] = 1 - abnormal[:, :, 8:20, 10:22]
    with torch.no_grad():
        detector.fit_statistics([], normal[8:].split(2))
        one, other = detector.detect(normal[:8]), detector.detect(abnormal[:8])
    assert (other.anomaly_score > one.anomaly_score).all()
    inside = other.anomaly_map[:, :, 8:20, 10:22].mean(dim=(1, 2, 3))
    assert (inside > 2 * other.anomaly_map[..., 22:].mean(dim=(1, 2, 3))).all()


@pytest.mark.slow
def test_a_resumed_training_is_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = fresh()
    expected = train_stages([trainer(whole, 4)], whole, tmp_path / "whole", progress=False)
    half = fresh()
    train_stages([trainer(half, 2)], half, tmp_path / "halves", progress=False)
    torch.manual_seed(1)
    again = DAAD(**SMALL)
    history = train_stages([trainer(again, 4)], again, tmp_path / "halves", progress=False)
    assert history == expected
    for name, value in again.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name


def changed(module: nn.Module, before: dict[str, Tensor]) -> bool:
    return any(not torch.equal(value, before[name]) for name, value in module.named_parameters())


@pytest.fixture
def batch() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {"image": torch.rand(4, 1, 32, 32)}


@pytest.mark.parametrize("step", ["generator", "discriminator"])
def test_each_step_reaches_its_own_network(step: str, batch: dict[str, Tensor]) -> None:
    detector = fresh()
    stage = trainer(detector, 1)
    frozen = stage.optimizer if step == "discriminator" else stage.discriminator_optimizer
    assert frozen is not None
    for group in frozen.param_groups:
        group["lr"] = 0.0
    parts = {"generator": detector.generator, "discriminator": detector.discriminator}
    before = {name: {n: p.clone() for n, p in part.named_parameters()} for name, part in parts.items()}
    stage.training_step(batch)
    for name, part in parts.items():
        assert changed(part, before[name]) == (name == step)
    held = {id(p) for group in stage.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in detector.generator.parameters()}
    memory = detector.generator.memories[0]
    assert memory.items.grad is not None
    assert float(memory.items.grad.abs().sum()) > 0


def test_objective_and_error_are_those_of_the_loss(batch: dict[str, Tensor]) -> None:
    detector = fresh()
    stage = trainer(detector, 1)
    for optimizer in stage.optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = 0.0
    losses = stage.training_step(batch)
    x = 2 * batch["image"] - 1
    with torch.no_grad():
        x_hat = detector.generator(x)  # still in training mode: the statistics of this batch
        terms = DAADLoss()(x, x_hat, detector.discriminator)
    assert float(losses["error"].detach()) == pytest.approx(float(((x - x_hat) ** 2).mean()), rel=1e-4)
    assert float(losses["loss"].detach()) == pytest.approx(float(terms["loss"]), rel=1e-3)
    detector.eval()
    with torch.no_grad():
        assert float(stage.validation_loss(batch)) == pytest.approx(float(detector(batch["image"]).mean()), rel=1e-5)


def test_alignment_alone_leaves_the_discriminator_as_it_is(batch: dict[str, Tensor]) -> None:
    detector = fresh()
    stage = trainer(detector, 1, discriminator_optimizer=None, loss_function=DAADLoss(lambda_adv=0.0))
    before = {name: p.clone() for name, p in detector.discriminator.named_parameters()}
    assert "ali" in stage.loss_function(batch["image"], batch["image"], detector.discriminator)
    stage.training_step(batch)
    assert not changed(detector.discriminator, before)


def test_unfit_trainings_are_refused() -> None:
    with pytest.raises(ValueError, match="are 0 for a detector without discriminator"):
        trainer(fresh(discriminator=False), 1, loss_function=DAADLoss())
    with pytest.raises(ValueError, match="discriminator_optimizer goes with lambda_adv"):
        trainer(fresh(), 1, discriminator_optimizer=None)
    with pytest.raises(ValueError, match="discriminator_optimizer goes with lambda_adv"):
        trainer(fresh(), 1, loss_function=DAADLoss(lambda_adv=0.0))
    stage = trainer(fresh(), 1)
    stage.val_data_loader = DataLoader(Stripes(1), batch_size=4)
    with pytest.raises(InputError, match="one image"):
        stage.prepare()


# The bundle


def configured(*override_configs: str, **overrides: Any) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / f"{name}.yaml") for name in ("train", *override_configs)])
    for key, value in overrides.items():
        parser[key] = value
    return parser


@pytest.mark.parametrize(
    ("override_configs", "banks", "widths"),
    [
        ((), [500 * n for n in (16384, 8192, 4096, 2048)], 768),
        (("daad",), [500 * n for n in (16384, 8192, 4096, 2048)], 768),
        (("daad", "autoencoder"), [], 512),
        (("daad", "autoencoder_skip"), [], 768),
        (("daad", "single_scale_memory"), [500 * 512], 512),
        (("video",), [2000 * n for n in (4096, 2048, 1024, 512)], 768),
    ],
)
def test_overlays_make_the_rows_of_table_3(override_configs: tuple[str, ...], banks: list[int], widths: int) -> None:
    parser = configured(*override_configs)
    with torch.device("meta"):
        network = parser.get_parsed_content("network_def")
    memories = [m for m in network.generator.memories if isinstance(m, BlockMemory)]
    assert [m.items.numel() for m in memories] == banks
    assert network.generator.decoder[1][0][0].conv.in_channels == widths  # dec3-1
    plus = "daad" not in override_configs
    assert (network.discriminator is not None) == network.needs_held_out == plus
    loss = parser.get_parsed_content("train#loss_function")
    assert (loss.lambda_rec, loss.lambda_adv, loss.lambda_ali) == (50.0, 0.5 * plus, 0.5 * plus)
    assert parser.get_parsed_content("learning_rate") == (2e-4 if plus else 1e-4)
    assert (parser["train#discriminator_optimizer"] is None) == (not plus)
    expected = (60, 4) if "video" in override_configs else (1000, 8)
    assert (parser["max_epochs"], parser["batch_size"]) == expected


def test_single_scale_memory_keeps_pixels_at_other_sizes() -> None:
    parser = configured("daad", "single_scale_memory", image_size=[128, 192])
    with torch.device("meta"):
        network = parser.get_parsed_content("network_def")
    assert network.generator.memories[-1].item_dim == 512


def test_the_bundle_flips_both_ways_and_names_the_detectors_arguments() -> None:
    parser = configured()
    flips = parser.get_parsed_content("slice_transform").transforms
    assert [(flip.flipper.spatial_axis, flip.prob) for flip in flips] == [(0, 0.5), (1, 0.5)]
    names = set(inspect.signature(DAAD.__init__).parameters) - {"self"}
    assert set(parser["network_def"]) - {"_target_"} == names
    defaults = {k: v.default for k, v in inspect.signature(DAAD.__init__).parameters.items() if k != "self"}
    for name in names - {"in_channels", "image_size", "division_rates"}:
        given = parser["network_def"][name]
        assert given == (list(defaults[name]) if isinstance(defaults[name], tuple) else defaults[name]), name


def of_suite(name: str, method: str, scale: str, **options: Any) -> ConfigParser:
    """The config of a method on a set of the suite of the paper's tables."""
    suite = load_suite("daad")
    return merged_config(
        suite.method(method).files,
        {
            "dataset_dir": "nowhere",
            "device": "cpu",
            "image_size": suite.settings(name, scale)["image_size"],
            **suite.options(name, method, scale),
            **options,
        },
    )


@pytest.mark.parametrize("scale", ["small", "paper"])
@pytest.mark.parametrize("method", ["daad", "daad_plus", "daad_autoencoder", "daad_single_scale_memory"])
def test_digits_are_not_flipped_and_products_are(method: str, scale: str) -> None:
    """Section 4.1 gives the flips with MVTec AD; a flipped 6 is another digit."""
    assert of_suite("mnist", method, scale).get_parsed_content("slice_transform") is None
    assert of_suite("cifar10", method, scale).get_parsed_content("slice_transform").flipper.spatial_axis == 1
    assert len(of_suite("mvtec_ad", method, scale).get_parsed_content("slice_transform").transforms) == 2


def test_blocks_cover_as_many_pixels_at_32_as_at_256() -> None:
    sides = {}
    for name in ("mnist", "mvtec_ad"):
        with torch.device("meta"):
            network = of_suite(name, "daad", "paper").get_parsed_content("network_def")
        sides[name] = [math.isqrt(bank.item_dim // bank.shape[0]) for bank in network.generator.memories]
    assert sides["mnist"] == sides["mvtec_ad"] == [16, 8, 4, 2]


def test_every_row_of_table_6_has_the_videos_schedule() -> None:
    for method in ("daad", "daad_plus", "daad_autoencoder", "daad_autoencoder_skip", "daad_single_scale_memory"):
        parser = of_suite("ped2", method, "paper")
        assert [parser[key] for key in ("max_epochs", "batch_size", "learning_rate")] == [60, 4, 0.0002], method
        if "autoencoder" not in method:
            assert parser["network_def"]["num_items"] == 2000


@pytest.mark.parametrize(("name", "side", "item"), [("mnist", 28, 64 * 16), ("cifar10", 32, 256 * 4)])
def test_memae_has_its_form_for_small_images(name: str, side: int, item: int) -> None:
    parser = of_suite(name, "memae", "paper")
    assert parser["image_size"] == [side, side]
    network = parser.get_parsed_content("network_def")
    assert network.memory.items.shape == (100 if name == "mnist" else 500, item)
    assert network(torch.rand(2, 1, side, side)).shape == (2, 1, side, side)
