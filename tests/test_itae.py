"""ITAE: Table 10 row by row, Eq. 1 to 3, training, export, refusals."""

from __future__ import annotations

import copy
import inspect
import json
import warnings
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks import convert_to_onnx
from monai.networks.blocks import Convolution, UpSample
from monai.transforms import RandFlipd
from torch import Tensor, nn
from torch.utils.data import DataLoader

from monai_anomaly import networks
from monai_anomaly.benchmarks import load_suite
from monai_anomaly.engines import HalvingLR, ITAETrainer, train_stages
from monai_anomaly.losses import RestorationLoss
from monai_anomaly.networks import ITAE, InverseTransformAutoEncoder
from monai_anomaly.networks.blocks import Erasing, ResNet34Encoder

SMALL: dict[str, Any] = {"channels": (4, 6, 8)}


class Stripes(Erasing):
    """An operation as a user would add it: every second column is lost."""

    def __init__(self, spatial_dims: int) -> None:
        super().__init__(spatial_dims, versions=2)
        self.register_buffer("keep", torch.tensor([1.0, 0.0]))

    def forward(self, image: Tensor, version: int) -> Tensor:
        return image * self.keep.roll(version).repeat(image.shape[-1] // 2)


def small(**kwargs: Any) -> ITAE:
    torch.manual_seed(0)
    return ITAE(**{**SMALL, **kwargs})


def moved(detector: ITAE, shape: tuple[int, ...]) -> ITAE:
    """The detector in eval mode, its batch statistics and expected errors away from their start."""
    detector.train()
    with torch.no_grad():
        detector.restore(torch.rand(4, *shape[1:]))
        detector.eval().fit_statistics([torch.rand(3, *shape[1:])], [])
    return detector


VARIANTS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "gray: rotation": ({}, (2, 1, 16, 16)),
    "28 pixels": ({"channels": (4, 4, 6, 6, 6)}, (2, 1, 28, 28)),
    "not square": ({}, (2, 1, 11, 22)),
    "colour: graying and rotation": ({"in_channels": 3}, (2, 3, 16, 16)),
    "auto-encoder": ({"erasing": []}, (2, 1, 10, 16)),
    "graying": ({"erasing": ["gray"], "in_channels": 3}, (2, 3, 10, 16)),
    "scaling, l2, first": ({"erasing": ["scaling"], "test_error": "l2", "restoration": "first"}, (2, 1, 9, 16)),
    "other layers": ({"norm": "INSTANCE", "act": "LEAKYRELU", "upsample": "nearest", "out_act": "tanh"}, (2, 1, 8, 8)),
    "transposed convolutions": ({"norm": "BATCH", "upsample": "deconv"}, (2, 1, 8, 8)),
    "own operation": ({"erasing": ["rotation", f"{__name__}.Stripes"]}, (2, 1, 8, 8)),
    "volume": ({"spatial_dims": 3}, (2, 1, 8, 6, 4)),
    "volume, 24 turns": ({"spatial_dims": 3, "erasing": ["rotation24"], "channels": (2, 3)}, (1, 1, 4, 4, 6)),
    "volume of two channels, scaling": ({"spatial_dims": 3, "in_channels": 2, "erasing": ["scaling"]}, (1, 2, 8, 8, 4)),
}


# Table 10: channels and the divisor of the size of each row's output. Its misprints are read as: x_3-2, x_3-3 and
# x_4-1 have the 512 channels of their filters, x_4-1 has 1/16 of the height, up_0-1 comes from up_1-3.
TABLE_10 = [
    *[(64, 1)] * 2,
    *[(64, 2), (128, 2), (128, 2)],
    *[(128, 4), (256, 4), (256, 4)],
    *[(256, 8), (512, 8), (512, 8)],
    *[(512, 16), (512, 16), (512, 16)],
    *[(512, 8), (256, 8), (256, 8)],
    *[(256, 4), (128, 4), (128, 4)],
    *[(128, 2), (64, 2), (64, 2)],
    *[(64, 1), (64, 1), (64, 1)],
    (3, 1),
]
# Channels into and out of the convolutions of Table 10, in its order; a skip adds those of the encoder.
CONVOLUTIONS = [(1, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512)]
CONVOLUTIONS += [(512, 512), (512, 512), (512 + 512, 256), (256, 256), (256 + 256, 128), (128, 128)]
CONVOLUTIONS += [(128 + 128, 64), (64, 64), (64 + 64, 64), (64, 64), (64, 3)]


def rows(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in network.named_modules():
        if isinstance(module, Convolution | nn.MaxPool2d | UpSample):
            yield name, module


def test_every_row_of_table_10() -> None:
    network = InverseTransformAutoEncoder(2, 1, 3, norm=None).eval()
    found: list[tuple[int, int]] = []
    for _, module in rows(network):
        module.register_forward_hook(lambda _, __, y: found.append((y.shape[1], 32 // y.shape[2])))
    with torch.no_grad():
        assert network(torch.rand(1, 1, 32, 32)).shape == (1, 3, 32, 32)
    assert found == TABLE_10
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convolutions] == CONVOLUTIONS
    assert {c.kernel_size for c in convolutions} == {(3, 3)}
    count = sum(9 * a * b + b for a, b in CONVOLUTIONS)
    assert sum(p.numel() for p in network.parameters()) == count == 13_387_907
    assert network.size_divisor == 16


def test_the_skips_are_those_of_table_10() -> None:
    network = InverseTransformAutoEncoder(2, 1, 1, (2, 3, 4, 5, 6)).eval()
    seen: dict[str, Tensor] = {}
    wanted = {f"decoder.blocks.{i}.convolutions.0": i for i in range(4)}
    for name, module in network.named_modules():
        if name in wanted:
            module.register_forward_hook(lambda _, x, __, name=name: seen.__setitem__(name, x[0]))
    x = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        network(x)
        features = network.encoder(x)
        before = features[-1]
        for i in range(4):
            skip = features[3 - i]
            block = network.decoder.blocks[i]
            up = nn.functional.interpolate(before, scale_factor=2, mode="bilinear", align_corners=True)
            torch.testing.assert_close(seen[f"decoder.blocks.{i}.convolutions.0"], torch.cat([up, skip], 1))
            before = block(before, skip)


def test_resnet34_encoder() -> None:
    encoder = ResNet34Encoder(2, 3).eval()
    # He et al. and every published file: 21,797,672 with the head of 512 x 1000 + 1000.
    assert sum(p.numel() for p in encoder.parameters()) == 21_797_672 - 513_000
    with torch.no_grad():
        shapes = [tuple(f.shape) for f in encoder(torch.rand(1, 3, 64, 64))]
    assert shapes == [(1, 64, 32, 32), (1, 64, 16, 16), (1, 128, 8, 8), (1, 256, 4, 4), (1, 512, 2, 2)]


@pytest.mark.slow
def test_resnet34_takes_the_weights_of_a_classifier(tmp_path: Path) -> None:
    torch.manual_seed(1)
    colour, gray = ResNet34Encoder(2, 3).eval(), ResNet34Encoder(2, 1).eval()
    saved = {**colour.state_dict(), "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    torch.save(saved, tmp_path / "weights.pth")
    gray.load_weights(tmp_path / "weights.pth")
    image = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        for one, other in zip(gray(image), colour(image.expand(1, 3, 32, 32))):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    torch.save({"conv1.weight": saved["conv1.weight"]}, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=r"(?s)part\.pth does not hold the weights.*layer1"):
        colour.load_weights(tmp_path / "part.pth")


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("training", [False, True])
def test_shapes(name: str, training: bool) -> None:
    kwargs, shape = VARIANTS[name]
    output = small(**kwargs).train(training).detect(torch.rand(shape))
    assert output.anomaly_map.shape == (shape[0], 1, *shape[2:])
    assert output.anomaly_score.shape == shape[:1]
    assert output.restoration is not None
    assert output.restoration.shape == shape


def restorations(detector: ITAE, image: Tensor) -> np.ndarray:
    """The T restorations (Eq. 1), version by version and image by image, in [-1, 1]; plain padding and cropping."""
    sides = list(image.shape[2:])
    divisor = detector.autoencoder.size_divisor
    axes = detector.erasing.equal_axes
    wanted = [max(sides[a] for a in axes) if i in axes else side for i, side in enumerate(sides)]
    wanted = [-(-side // divisor) * divisor for side in wanted]
    inside = [slice((w - s) // 2, (w - s) // 2 + s) for w, s in zip(wanted, sides)]
    results = []
    for version in range(detector.num_versions):
        for b in range(len(image)):
            padded = torch.zeros(1, image.shape[1], *wanted)
            padded[0, :, *inside] = image[b]
            restored = detector.autoencoder(detector.erasing(padded * 2 - 1, version))
            results.append(restored[0, :, *inside].numpy())
    return np.stack(results).reshape(detector.num_versions, *image.shape).astype(np.float64)


@pytest.mark.parametrize("name", VARIANTS)
def test_map_and_score_are_equation_3(name: str) -> None:
    kwargs, shape = VARIANTS[name]
    detector = small(**kwargs).train()
    with torch.no_grad():
        detector.restore(torch.rand(4, *shape[1:]))
        detector.eval()
        normals = [torch.rand(2, *shape[1:]), torch.rand(1, *shape[1:])]
        detector.fit_statistics(normals, [])
        image = torch.rand(shape)
        output = detector.detect(image)
        assert torch.equal(detector(image), output.anomaly_map)
        restored, of_normals = restorations(detector, image), restorations(detector, torch.cat(normals))
    power = 2 if kwargs.get("test_error") == "l2" else 1
    target, normal_target = image.numpy() * 2.0 - 1, torch.cat(normals).numpy() * 2.0 - 1
    for b in range(shape[0]):
        total, pixels = 0.0, np.zeros(shape[2:])
        for i in range(detector.num_versions):
            # the norms of Eq. 3, their denominator the mean over the three normals
            expected = sum((abs(of_normals[i, n] - normal_target[n]) ** power).sum() for n in range(3)) / 3
            error = abs(restored[i, b] - target[b]) ** power
            total += error.sum() / expected
            pixels += error.sum(0) / expected * error[0].size
        assert float(output.anomaly_score[b]) == pytest.approx(total / detector.num_versions, rel=1e-4)
        np.testing.assert_allclose(
            output.anomaly_map[b, 0].numpy(), pixels / detector.num_versions, rtol=1e-3, atol=1e-5
        )
        answer = restored[0, b] if kwargs.get("restoration") == "first" else restored[:, b].mean(0)
        np.testing.assert_allclose(output.restoration[b].numpy(), (answer + 1) / 2, rtol=1e-4, atol=1e-5)


def test_expected_errors_are_of_all_training_normals_and_of_nothing_else() -> None:
    images = torch.rand(7, 1, 8, 8)
    detector = moved(small(), (7, 1, 8, 8))
    assert detector.expected_errors.shape == (4,)
    other = copy.deepcopy(detector)
    with torch.no_grad():
        detector.fit_statistics([images[:3], images[3:]], [])
        other.fit_statistics([images], [torch.rand(2, 1, 8, 8)])
    torch.testing.assert_close(detector.expected_errors, other.expected_errors)
    assert not needs_held_out(detector)


def needs_held_out(detector: ITAE) -> bool:
    return detector.needs_held_out


def test_before_the_fit_errors_are_not_scaled() -> None:
    detector = small().eval()
    image = torch.rand(1, 1, 8, 8)
    with torch.no_grad():
        expected = np.abs(restorations(detector, image) - (image.numpy() * 2 - 1)).mean()
        assert float(detector.detect(image).anomaly_score) == pytest.approx(expected, rel=1e-5)


def test_larger_is_more_anomalous() -> None:
    detector = small().eval()
    last = detector.autoencoder.exit[0].conv
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)  # restores 0.5 everywhere
    with torch.no_grad():
        detector.fit_statistics([torch.rand(8, 1, 8, 8)], [])
        image = torch.full((2, 1, 8, 8), 0.55)
        image[1, 0, 2:4, 5] = 1.0
        output = detector.detect(image)
    assert torch.equal(output.restoration, torch.full((2, 1, 8, 8), 0.5))
    assert output.anomaly_score[1] > output.anomaly_score[0]
    lesion = torch.zeros(8, 8, dtype=torch.bool)
    lesion[2:4, 5] = True
    assert output.anomaly_map[1, 0][lesion].min() > output.anomaly_map[1, 0][~lesion].max()


def test_padding_counts_in_no_error() -> None:
    """An image that is not square has the errors of its own pixels: here exactly 1 for a restoration of 0."""
    detector = small().eval()
    last = detector.autoencoder.exit[0].conv
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    with torch.no_grad():
        output = detector.detect(torch.ones(1, 1, 5, 9))
    assert torch.equal(output.anomaly_map, torch.ones(1, 1, 5, 9))
    assert float(output.anomaly_score) == 1.0


def test_defaults_of_the_erasing_set() -> None:
    """Section 4.1.2."""
    gray, colour = small(), small(in_channels=3)
    assert [type(o).__name__ for o in gray.erasing.operations] == ["RotationErasing"]
    assert [type(o).__name__ for o in colour.erasing.operations] == ["GrayErasing", "RotationErasing"]
    assert gray.num_versions == colour.num_versions == 4
    assert small(erasing=[]).num_versions == small(in_channels=3, erasing=["gray"]).num_versions == 1
    assert colour.autoencoder.encoder.entrance[0].conv.in_channels == 1  # Table 10's x is 1 x H x W


def test_the_papers_size() -> None:
    detector = ITAE(in_channels=3).eval()
    normalisation = 2 * sum(width for _, width in CONVOLUTIONS[:-1])  # not in Table 10
    assert sum(p.numel() for p in detector.parameters()) == 13_387_907 + normalisation
    with torch.no_grad():
        assert detector(torch.rand(1, 3, 32, 32)).shape == (1, 1, 32, 32)


def test_video_network() -> None:
    detector = ITAE(in_channels=3, encoder="resnet34", channels=(4, 4)).eval()
    assert detector.autoencoder.size_divisor == 32
    with torch.no_grad():
        assert detector(torch.rand(1, 3, 64, 40)).shape == (1, 1, 64, 40)


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_loss_is_equation_2(norm: str, reduction: str) -> None:
    restored, target = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    total = 0.0
    for b, c, i, j in product(range(2), range(3), range(4), range(5)):
        difference = float(restored[b, c, i, j]) - float(target[b, c, i, j])
        total += difference**2 if norm == "l2" else abs(difference)
    expected = total / (120 if reduction == "mean" else 2)
    assert float(RestorationLoss(norm, reduction)(restored, target)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("versions", [1, 3, 4])
def test_learning_rate_halves_every_50_over_t_epochs(versions: int) -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    scheduler = HalvingLR(optimizer, 50 / versions)
    for epoch in range(150):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5 ** (epoch * versions // 50))
        optimizer.step()
        scheduler.step()
    with pytest.raises(ValueError, match="positive"):
        HalvingLR(optimizer, 0)


class Images(torch.utils.data.Dataset):
    """Small images of one pattern: a bright half, so that orientation means something."""

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        generator = torch.Generator().manual_seed(4)
        self.images = 0.1 * torch.rand(count, *shape, generator=generator)
        self.images[:, :, : shape[1] // 2] += 0.8

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.images[index]}


def trainer(
    epochs: int,
    shape: tuple[int, ...] = (1, 8, 8),
    versions: str = "all",
    every: float = 1.5,
    rate: float = 0.1,
    **kwargs: Any,
) -> ITAETrainer:
    detector = small(**kwargs)
    data = Images(6, shape)
    optimizer = torch.optim.SGD(detector.autoencoder.parameters(), lr=rate)
    return ITAETrainer(
        detector,
        "cpu",
        epochs,
        DataLoader(data, batch_size=3, shuffle=True),
        optimizer,
        versions_per_step=versions,
        val_data_loader=DataLoader(data, batch_size=4),
        lr_schedulers=[HalvingLR(optimizer, every)],
    )


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 6, 7)])
def test_a_step_is_equation_2_over_all_versions(shape: tuple[int, ...]) -> None:
    stage = trainer(1, shape, norm="INSTANCE")  # no batch statistics: version by version is the same
    images = stage.data_loader.dataset.images[:3]  # type: ignore[attr-defined]
    with torch.no_grad():
        restored = restorations(stage.detector, images)
    expected = np.mean([(restored[i] - (images.numpy() * 2 - 1)) ** 2 for i in range(4)])
    with torch.no_grad():
        assert float(stage.validation_loss({"image": images})) == pytest.approx(expected, rel=1e-4)
    before = copy.deepcopy(stage.detector.autoencoder.state_dict())
    losses = stage.training_step({"image": images})
    assert losses["loss"].item() == pytest.approx(expected, rel=1e-4)
    for name, parameter in stage.detector.autoencoder.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter, before[name] - 0.1 * parameter.grad)  # SGD without momentum
    moved_parts = [n for n, p in stage.detector.autoencoder.named_parameters() if not torch.equal(p, before[n])]
    assert any(name.startswith("encoder") for name in moved_parts)
    assert any(name.startswith("exit") for name in moved_parts)
    assert torch.equal(stage.detector.expected_errors, torch.ones(4))


def test_one_version_of_each_image_a_step() -> None:
    stage = trainer(1, versions="one", norm="INSTANCE")
    images = stage.data_loader.dataset.images  # type: ignore[attr-defined]
    with torch.no_grad():
        errors = ((restorations(stage.detector, images) - (images.numpy() * 2 - 1)) ** 2).mean(axis=(2, 3, 4))
    torch.manual_seed(3)
    drawn = torch.randint(4, (6,)).tolist()
    assert len(set(drawn)) > 1
    torch.manual_seed(3)
    expected = np.mean([errors[version, b] for b, version in enumerate(drawn)])
    assert stage.training_step({"image": images})["loss"].item() == pytest.approx(expected, rel=1e-4)


# Networks as narrow as these learn in a few steps with normalisation alone.
TRAININGS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "all versions": ((1, 8, 8), {}),
    "one version, colour": ((3, 8, 6), {"versions": "one", "in_channels": 3}),
    "auto-encoder": ((1, 8, 8), {"erasing": []}),
    # in three dimensions the rate of 0.1 is too high for some seeds
    "volumes": ((1, 8, 8, 8), {"spatial_dims": 3, "rate": 0.02}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_training_lowers_the_loss(name: str, tmp_path: Path) -> None:
    shape, kwargs = TRAININGS[name]
    stage = trainer(48, shape, every=9.6, norm="BATCH", **kwargs)
    history = train_stages([stage], stage.detector, tmp_path, progress=False, seed=2)
    assert {row["stage"] for row in history} == {"restoration"}
    assert history[-1]["train_loss"] < 0.6 * history[0]["train_loss"]
    assert history[-1]["val_loss"] is not None
    assert stage.optimizer.param_groups[0]["lr"] == pytest.approx(kwargs.get("rate", 0.1) / 2**5)
    with torch.no_grad():
        stage.detector.eval().fit_statistics([stage.data_loader.dataset.images], [])  # type: ignore[attr-defined]
        normal = stage.detector.detect(stage.data_loader.dataset.images)  # type: ignore[attr-defined]
    assert float(normal.anomaly_score.mean()) == pytest.approx(1.0, rel=1e-3)  # Eq. 3: by construction


@pytest.mark.slow
@pytest.mark.parametrize("versions", ["all", "one"])
def test_a_resumed_training_equals_an_uninterrupted_one(versions: str, tmp_path: Path) -> None:
    whole = trainer(5, versions=versions)
    train_stages([whole], whole.detector, tmp_path / "whole", progress=False)
    first = trainer(2, versions=versions)
    train_stages([first], first.detector, tmp_path / "parts", progress=False)
    torch.manual_seed(77)
    second = trainer(5, versions=versions)
    train_stages([second], second.detector, tmp_path / "parts", progress=False)
    for key, value in whole.detector.state_dict().items():
        assert torch.equal(second.detector.state_dict()[key], value), key
    assert second.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"]


@pytest.mark.slow
def test_encoder_weights_are_the_start_of_a_training(tmp_path: Path) -> None:
    torch.manual_seed(5)
    saved = ResNet34Encoder(2, 3).state_dict()
    torch.save(saved, tmp_path / "weights.pth")
    detector = ITAE(encoder="resnet34")
    optimizer = torch.optim.SGD(detector.autoencoder.parameters(), lr=0.1)
    loader = DataLoader(Images(2, (1, 32, 32)))
    stage = ITAETrainer(detector, "cpu", 1, loader, optimizer, encoder_weights=str(tmp_path / "weights.pth"))
    stage.prepare()
    assert torch.equal(detector.autoencoder.encoder.layer4[2].conv2.weight, saved["layer4.2.conv2.weight"])
    with pytest.raises(ValueError, match="encoder 'resnet34'"):
        ITAETrainer(small(), "cpu", 1, loader, optimizer, encoder_weights="weights.pth")


@pytest.mark.parametrize("name", VARIANTS)
def test_a_file_makes_an_equal_detector(name: str, tmp_path: Path) -> None:
    kwargs, shape = VARIANTS[name]
    detector = moved(small(**kwargs), shape)
    config = json.loads(json.dumps(detector.config))
    assert config == detector.config
    assert list(config["arguments"]) == list(inspect.signature(ITAE.__init__).parameters)[1:]
    torch.save(detector.state_dict(), tmp_path / "model.pt")
    again = getattr(networks, config["name"])(**config["arguments"]).eval()
    again.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    image = torch.rand(shape)
    with torch.no_grad():
        for one, other in zip(detector.detect(image), again.detect(image)):
            assert torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["colour: graying and rotation", "28 pixels", "volume"])
def test_torchscript_is_the_eager_network(name: str, tmp_path: Path) -> None:
    kwargs, shape = VARIANTS[name]
    detector = moved(small(**kwargs), shape)
    torch.jit.save(torch.jit.script(detector), tmp_path / "model.ts")
    scripted = torch.jit.load(tmp_path / "model.ts")
    with torch.no_grad():
        for image in (torch.rand(shape), torch.rand(shape), torch.rand(1, *shape[1:])):
            torch.testing.assert_close(scripted(image), detector(image), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_torchscript_with_a_resnet34() -> None:
    detector = ITAE(encoder="resnet34").eval()
    image = torch.rand(1, 1, 33, 20)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(detector)(image), detector(image), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["colour: graying and rotation"])
def test_onnx_is_the_eager_network(name: str, tmp_path: Path) -> None:
    kwargs, shape = VARIANTS[name]
    detector = moved(small(**kwargs), shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        convert_to_onnx(
            detector,
            [torch.rand(shape)],
            filename=str(tmp_path / "model.onnx"),
            verify=True,  # raises where the maps differ
            use_ort=True,
            rtol=1e-3,
            atol=1e-4,
            input_names=["image"],
            output_names=["map"],
        )
    assert (tmp_path / "model.onnx").stat().st_size > 0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"test_error": "l3"}, "test_error"),
        ({"restoration": "last"}, "restoration"),
        ({"erasing": ["turn"]}, "'turn' is neither"),
        ({"erasing": "rotation"}, "a list of operations"),
        ({"erasing": ["rotation24"]}, "rotation24"),
        ({"upsample": "cubic"}, "upsample"),
        ({"encoder": "vgg"}, "encoder"),
        ({"channels": (4,)}, "two levels"),
        ({"spatial_dims": 1}, "spatial_dims"),
    ],
)
def test_unknown_settings_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**kwargs)


def test_unknown_settings_of_loss_and_trainer_are_refused() -> None:
    with pytest.raises(ValueError, match="norm"):
        RestorationLoss("l0")
    with pytest.raises(ValueError, match="reduction"):
        RestorationLoss(reduction="max")
    with pytest.raises(ValueError, match="versions_per_step"):
        trainer(1, versions="two")


@pytest.mark.parametrize(("shape", "message"), [((1, 3, 8, 8), "1 input channel"), ((1, 1, 8), "2-D")])
def test_unfit_input_is_refused(shape: tuple[int, ...], message: str) -> None:
    detector = small().eval()
    with pytest.raises(ValueError, match=message):
        detector(torch.zeros(shape))
    with pytest.raises(torch.jit.Error, match=message):
        torch.jit.script(detector)(torch.zeros(shape))


def test_statistics_of_nothing_are_refused() -> None:
    detector = small(norm=None).eval()
    with pytest.raises(ValueError, match="there are none"):
        detector.fit_statistics([], [torch.rand(1, 1, 8, 8)])
    nn.init.zeros_(detector.autoencoder.exit[0].conv.weight)
    nn.init.zeros_(detector.autoencoder.exit[0].conv.bias)
    with torch.no_grad(), pytest.raises(ValueError, match="not positive"):
        detector.fit_statistics([torch.full((1, 1, 8, 8), 0.5)], [])


CONFIGS = Path(__file__).parents[1] / "bundles" / "itae" / "configs"


def parsed(*override_configs: str, **options: Any) -> ConfigParser:
    names = ["train", *override_configs]
    parser = ConfigParser(ConfigParser.load_config_files([str(CONFIGS / f"{name}.yaml") for name in names]))
    for name, value in {"dataset_dir": "nowhere", "device": "cpu", **options}.items():
        parser[name] = value
    return parser


@pytest.mark.parametrize(
    ("options", "epochs", "interval"),
    [({}, 125, 12.5), ({"network_def#erasing": []}, 500, 50.0), ({"max_epochs": 20}, 20, 2.0)],
)
def test_the_bundle_has_the_papers_schedule(options: dict[str, Any], epochs: int, interval: float) -> None:
    """Section 4.1.1: 500 / T epochs, the rate of 0.1 halved every 50 / T."""
    parser = parsed(**{"network_def#channels": [2, 2], **options})
    assert parser.get_parsed_content("max_epochs") == epochs
    scheduler = parser.get_parsed_content("train#lr_scheduler")
    assert scheduler.every == interval
    defaults = scheduler.optimizer.defaults
    assert (defaults["lr"], defaults["momentum"], defaults["weight_decay"]) == (0.1, 0, 0)
    assert parser.get_parsed_content("batch_size") == 32


@pytest.mark.slow
def test_the_bundle_augments_colour_and_not_gray() -> None:
    """Section 4.1.2: mirror images, left to right, and whole-pixel shifts by up to an eighth of a side."""
    assert parsed().get_parsed_content("slice_transform") is None
    parser = parsed("retinal_fundus", image_size=[16, 16])
    transform = parser.get_parsed_content("slice_transform").set_random_state(0)
    image = torch.zeros(3, 16, 16)
    image[:, 5, 6] = 1.0
    places = set()
    for _ in range(300):
        augmented = transform({"image": image})["image"]
        assert type(augmented) is Tensor
        assert augmented.shape == image.shape
        assert torch.equal(augmented.sum((1, 2)), torch.ones(3))
        places.add(tuple(int(i) for i in augmented[0].nonzero()[0]))
    rows, columns = (sorted({place[axis] for place in places}) for axis in (0, 1))
    assert rows == [3, 4, 5, 6, 7]  # never upside down; 2 to both sides
    assert columns == [4, 5, 6, 7, 8, 9, 10, 11]  # 6 or 15 - 6, and 2 to both sides


@pytest.mark.parametrize("name", ["cifar10", "mvtec_ad"])
def test_the_suite_augments_colour_and_not_gray(name: str) -> None:
    """Section 4.1.2, for Tables 1 and 2; a third of MVTec AD's objects is gray."""
    options = load_suite("itae").options(name, "itae", "paper")
    parser = parsed(image_size=[16, 16], in_channels=3, **options)
    flips = [t for t in parser.get_parsed_content("slice_transform").transforms if isinstance(t, RandFlipd)]
    assert [flip.flipper.spatial_axis for flip in flips] == [1]
    assert parsed(image_size=[16, 16], in_channels=1, **options).get_parsed_content("slice_transform") is None


def test_the_default_network_learns_at_the_papers_rate() -> None:
    """Without normalisation, or with it and a linear output, SGD at 0.1 does not in so few steps (docs/fidelity.md)."""

    def error(**kwargs: Any) -> float:
        torch.manual_seed(0)
        detector = ITAE(channels=(4, 8, 8), **kwargs).train()
        rows = torch.arange(16.0)
        disc = ((rows[:, None] - 5) ** 2 + (rows - 9) ** 2 < 16).float().expand(4, 1, 16, 16)
        optimizer = torch.optim.SGD(detector.autoencoder.parameters(), 0.1)
        for _ in range(30):
            optimizer.zero_grad()
            loss = RestorationLoss()(detector.restore(disc), 2 * disc - 1)
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    assert error() < 0.3 * error(norm=None, out_act=None)


@pytest.mark.parametrize("override_config", ["brain_mri", "retinal_oct", "volumes", "video"])
def test_overlays_fit_their_network(override_config: str) -> None:
    parser = parsed(override_config)
    detector = parser.get_parsed_content("network_def")
    assert len(parser.get_parsed_content("image_size")) == detector.spatial_dims
    assert detector.in_channels == parser.get_parsed_content("in_channels")
    assert isinstance(detector.autoencoder.encoder, ResNet34Encoder) == (override_config == "video")
