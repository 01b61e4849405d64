"""The plain autoencoder with its variants, and MemAE: layers, errors, memory, export, configuration, refusals."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks import convert_to_onnx
from torch import nn

from monai_anomaly import networks
from monai_anomaly.networks import AnomalyDetector, Autoencoder, MemAE, ProxyAno
from monai_anomaly.networks.blocks import ShrinkageMemory, SkipDecoder

SMALL: dict[str, Any] = {"channels": (4, 6, 8), "latent_channels": 5}
TINY: dict[str, Any] = {"channels": (4, 6, 8), "num_items": 7}
MNIST: dict[str, Any] = {
    "channels": (16, 32, 64),
    "decoder_channels": (64, 32),
    "first_kernel": 1,
    "activation": "relu",
    "addressing": "image",
    "num_items": 100,
    "image_size": (28, 28),
}

VARIANTS: dict[str, tuple[type[AnomalyDetector], dict[str, Any], tuple[int, ...]]] = {
    "plain": (Autoencoder, SMALL, (2, 1, 16, 24)),
    "squared, colour": (Autoencoder, {**SMALL, "in_channels": 3, "distance": "squared"}, (2, 3, 16, 16)),
    "skip": (Autoencoder, {**SMALL, "skip": True}, (2, 1, 16, 24)),
    "memory": (Autoencoder, {**SMALL, "memory": "shrinkage", "num_items": 9}, (2, 1, 16, 16)),
    "skip and memory, volume": (
        Autoencoder,
        {**SMALL, "spatial_dims": 3, "skip": True, "memory": "shrinkage", "num_items": 9},
        (1, 1, 8, 16, 8),
    ),
    "MemAE": (MemAE, TINY, (2, 1, 16, 24)),
    "MemAE, dot": (MemAE, {**TINY, "similarity": "dot", "symmetric": False, "distance": "absolute"}, (2, 1, 8, 8)),
    "MemAE, volume": (MemAE, {**TINY, "spatial_dims": 3, "in_channels": 2}, (1, 2, 8, 8, 16)),
    "MemAE, MNIST": (MemAE, MNIST, (2, 1, 28, 28)),
    "MemAE, odd sides": (MemAE, {**TINY, "addressing": "image", "image_size": (13, 22)}, (2, 1, 13, 22)),
}


def made(name: str) -> tuple[Any, torch.Tensor]:
    """A variant in eval mode, its batch statistics away from their start, and a batch."""
    torch.manual_seed(0)
    kind, kwargs, shape = VARIANTS[name]
    detector = kind(**kwargs).train()
    with torch.no_grad():
        detector.detect(torch.rand(shape))
    return detector.eval(), torch.rand(shape)


@pytest.mark.parametrize("name", VARIANTS)
def test_map_and_score_are_the_reconstruction_error(name: str) -> None:
    detector, image = made(name)
    with torch.no_grad():
        output = detector.detect(image)
        restored, auxiliary = detector.reconstruct(image)
        assert torch.equal(detector(image), output.anomaly_map)
    assert torch.equal(output.restoration, restored)
    assert restored.shape == image.shape
    assert auxiliary.shape == ()
    assert output.anomaly_map.shape == (image.shape[0], 1, *image.shape[2:])
    assert output.anomaly_score.shape == (image.shape[0],)
    squared = VARIANTS[name][1].get("distance", "squared" if isinstance(detector, MemAE) else "absolute") == "squared"
    x, y = image.double().numpy(), restored.double().numpy()
    for b in range(len(x)):
        error = sum((x[b, c] - y[b, c]) ** 2 if squared else abs(x[b, c] - y[b, c]) for c in range(x.shape[1]))
        np.testing.assert_allclose(output.anomaly_map[b, 0].numpy(), error / x.shape[1], rtol=1e-5, atol=1e-7)
        assert float(output.anomaly_score[b]) == pytest.approx(error.mean() / x.shape[1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["skip and memory, volume", "MemAE, dot", "MemAE, odd sides"])
def test_torchscript_gives_the_same_map(name: str) -> None:
    detector, image = made(name)
    scripted = torch.jit.script(detector)
    with torch.no_grad():
        eager = detector(image)
        for _ in range(2):  # the second run is the optimised one
            torch.testing.assert_close(scripted(image), eager, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["skip and memory, volume", "MemAE, MNIST"])
def test_onnx_gives_the_same_map(name: str, tmp_path: Path) -> None:
    detector, image = made(name)
    # verify=True raises where the map of onnxruntime is another
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


@pytest.mark.parametrize("name", VARIANTS)
def test_configuration_and_state_make_the_same_detector(name: str) -> None:
    detector, image = made(name)
    config = json.loads(json.dumps(detector.config))
    again = getattr(networks, config["name"])(**config["arguments"]).eval()
    assert again.config == detector.config
    again.load_state_dict(detector.state_dict())
    with torch.no_grad():
        for one, two in zip(again.detect(image), detector.detect(image)):
            assert torch.equal(one, two)


def test_plain_autoencoder_has_the_layers_of_proxyano() -> None:
    ours = Autoencoder()
    theirs = ProxyAno(bridge=False, memory=None, score_space="image")
    count = [sum(p.numel() for p in network.parameters()) for network in (ours, theirs)]
    assert count[0] == count[1]
    assert ours.size_divisor == 16
    theirs.proxy_module.encoder.load_state_dict(ours.encoder.state_dict())
    theirs.proxy_module.decoder.load_state_dict(ours.decoder.state_dict())
    image = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(ours.eval()(image), theirs.eval()(image))


def test_skip_decoder_joins_the_features_of_each_size() -> None:
    torch.manual_seed(0)
    decoder = SkipDecoder(2, 3, channels=(4, 6, 8), latent_channels=5).eval()
    features = [torch.randn(2, 4, 16, 8), torch.randn(2, 6, 8, 4), torch.randn(2, 8, 4, 2)]
    z = torch.randn(2, 5, 4, 2)
    x = decoder.entrance(z)
    for stage, skip in zip(decoder.stages, [None, features[1], features[0]]):
        x = stage(x if skip is None else torch.cat([x, skip], dim=1))
    assert x.shape == (2, 3, 32, 16)
    assert torch.equal(decoder(z, features), x)
    # the first stage has no skip; the others take twice their width
    assert [stage.conv.in_channels for stage in decoder.stages] == [8, 12, 8]
    # the deepest features go through the latent map alone
    assert torch.equal(decoder(z, [*features[:2], features[2] + 1]), x)
    assert not torch.equal(decoder(z, [features[0] + 1, *features[1:]]), x)


@pytest.mark.parametrize("name", ["skip", "plain", "MemAE", "MemAE, MNIST", "skip and memory, volume"])
def test_gradient_reaches_every_parameter(name: str) -> None:
    detector, image = made(name)
    restored, auxiliary = detector.train().reconstruct(image)
    ((restored - image).square().mean() + auxiliary).backward()
    for key, parameter in detector.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all()
    assert float(detector.encoder[0].conv.weight.grad.abs().sum()) > 0


@pytest.mark.slow
def test_an_anomaly_the_training_did_not_show_stands_out() -> None:
    torch.manual_seed(0)
    detector = Autoencoder(channels=(8, 8), latent_channels=2)
    ramp = torch.linspace(0.2, 0.6, 16)[:, None].expand(16, 16)
    normal = torch.stack([ramp * s for s in torch.linspace(0.8, 1.2, 16)])[:, None]
    optimizer = torch.optim.Adam(detector.parameters(), lr=0.01)
    for _ in range(150):
        loss = (detector.reconstruct(normal)[0] - normal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ill = normal[7:9].clone()
    ill[:, :, 4:7, 9:12] += 0.4
    with torch.no_grad():
        healthy, sick = detector.eval().detect(normal[7:9]), detector.detect(ill)
    assert (sick.anomaly_score > healthy.anomaly_score).all()
    inside, outside = sick.anomaly_map[:, :, 4:7, 9:12], sick.anomaly_map[:, :, 10:]
    assert float(inside.mean()) > 2 * float(outside.mean())


# Rows: layer, channels, kernel, side of the output.
MEMAE_TABLES: dict[str, tuple[dict[str, Any], int, int, list[tuple[int, int, int]], list[tuple[int, int, int]]]] = {
    "MNIST": (MNIST, 1, 28, [(16, 1, 14), (32, 3, 7), (64, 3, 4)], [(64, 3, 7), (32, 3, 14), (1, 3, 28)]),
    "CIFAR-10": (
        {
            "channels": (64, 128, 128, 256),
            "decoder_channels": (256, 128, 128),
            "activation": "relu",
            "addressing": "image",
            "num_items": 500,
        },
        3,
        32,
        [(64, 3, 16), (128, 3, 8), (128, 3, 4), (256, 3, 2)],
        [(256, 3, 4), (128, 3, 8), (128, 3, 16), (3, 3, 32)],
    ),
    "256": (
        {},
        1,
        256,
        [(96, 3, 128), (128, 3, 64), (256, 3, 32), (256, 3, 16)],
        [(256, 3, 32), (128, 3, 64), (96, 3, 128), (1, 3, 256)],
    ),
}


@pytest.mark.parametrize("name", MEMAE_TABLES)
def test_memae_has_its_published_layers(name: str) -> None:
    kwargs, channels, side, encoder, decoder = MEMAE_TABLES[name]
    detector = MemAE(**{"in_channels": channels, "image_size": (side, side), **kwargs}).eval()
    x, parameters, width = torch.rand(1, channels, side, side), 0, channels
    with torch.no_grad():
        for stage, (out, kernel, size) in zip(detector.encoder, encoder, strict=True):
            x = stage(x)
            assert x.shape == (1, out, size, size)
            assert stage.conv.kernel_size == (kernel, kernel)
            assert stage.conv.stride == (2, 2)
            assert [type(layer).__name__ for layer in stage.adn] == ["BatchNorm2d", type(stage.adn.A).__name__]
            parameters += width * out * kernel**2 + 3 * out  # bias, and two of batch normalisation
            width = out
        z = x
        for i, (stage, (out, kernel, size)) in enumerate(zip(detector.decoder, decoder, strict=True)):
            x = stage(x)
            last = i == len(decoder) - 1
            assert x.shape == (1, out, size, size)
            assert stage.conv.kernel_size == (kernel, kernel)
            assert hasattr(stage, "adn") != last  # the last layer is bare
            parameters += width * out * kernel**2 + (1 if last else 3) * out
            width = out
    activation = nn.LeakyReLU if name == "256" else nn.ReLU
    assert isinstance(detector.encoder[0].adn.A, activation)
    items = detector.memory.items
    length = z.numel() if kwargs.get("addressing") == "image" else z.shape[1]
    assert items.shape == (kwargs.get("num_items", 2000), length)
    assert sum(p.numel() for p in detector.parameters()) == parameters + items.numel()
    assert detector.memory.shrink_threshold == 1 / len(items)
    assert detector.memory.entropy_weight == 0.0002


@pytest.mark.parametrize("addressing", ["position", "image"])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_memae_is_its_equations(addressing: str, similarity: str) -> None:
    torch.manual_seed(1)
    detector = MemAE(
        channels=(4, 3),
        num_items=5,
        addressing=addressing,
        similarity=similarity,
        image_size=(8, 8),
        entropy_weight=0.5,
    ).eval()
    with torch.no_grad():
        detector.memory.items.mul_(4.0)
        image = torch.rand(2, 1, 8, 8)
        z = detector.encoder(2 * image - 1)
        restored, auxiliary = detector.reconstruct(image)
    items = detector.memory.items.detach().double().numpy()
    values = z.double().numpy()
    queries = [values[b].ravel() for b in range(2)]
    if addressing == "position":
        queries = [values[b, :, i, j] for b in range(2) for i in range(2) for j in range(2)]
    found, entropies = [], []
    for query in queries:
        like = np.array([query @ m for m in items])
        if similarity == "cosine":
            like /= np.linalg.norm(query) * np.linalg.norm(items, axis=1)  # Eq. 5
        weight = np.exp(like) / np.exp(like).sum()  # Eq. 4
        weight = np.where(weight > 1 / 5, weight, 0)  # Eq. 6, lambda = 1 / N
        weight /= weight.sum()
        found.append(weight @ items)  # Eq. 3
        entropies.append(-sum(w * math.log(w) for w in weight if w > 0))  # Eq. 8
    z_hat = np.array(found).reshape(2, 3, 2, 2)
    if addressing == "position":
        z_hat = np.array(found).reshape(2, 2, 2, 3).transpose(0, 3, 1, 2)
    with torch.no_grad():
        x_hat = detector.decoder(torch.from_numpy(z_hat).float())
    torch.testing.assert_close(restored, (x_hat + 1) / 2, rtol=1e-4, atol=1e-5)
    # Eq. 9 in [-1, 1] is four times the objective in [0, 1]
    objective = float(((2 * image - 1) - x_hat).square().mean()) + 0.5 * float(np.mean(entropies))
    assert 4 * float((image - restored).square().mean() + auxiliary) == pytest.approx(objective, rel=1e-4)


def test_a_threshold_above_every_weight_retrieves_nothing() -> None:
    torch.manual_seed(0)
    memory = ShrinkageMemory(200, 64, shrink_threshold=3 / 200)
    retrieved, auxiliary = memory(memory.items.detach().t()[None])  # the queries are the items themselves
    assert float(retrieved.detach().abs().max()) == 0.0
    assert float(auxiliary.detach()) == 0.0
    retrieved, _ = ShrinkageMemory(200, 64)(memory.items.detach().t()[None])
    assert float(retrieved.detach().abs().max()) > 0.0


@pytest.mark.parametrize("name", ["plain", "MemAE"])
@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 3, 16, 16), "1 input channel"), ((1, 1, 16), "2-D"), ((1, 1, 18, 16), "multiples of 8")],
)
def test_unfit_input_is_refused(name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(name)[0](torch.zeros(shape))


def test_memae_of_one_size_refuses_another() -> None:
    with pytest.raises(ValueError, match="made for images of"):
        made("MemAE, MNIST")[0](torch.zeros(1, 1, 32, 32))


@pytest.mark.parametrize(
    ("kind", "kwargs", "message"),
    [
        (Autoencoder, {"memory": "nearest"}, "memory is 'shrinkage'"),
        (Autoencoder, {"distance": "l1"}, "distance"),
        (Autoencoder, {"spatial_dims": 1}, "spatial_dims"),
        (MemAE, {"activation": "tanh"}, "activation"),
        (MemAE, {"addressing": "block"}, "addressing"),
        (MemAE, {"distance": "l1"}, "distance"),
        (MemAE, {"similarity": "l2"}, "similarity"),
        (MemAE, {"decoder_channels": (4, 4)}, "decoder_channels has one width fewer"),
        (MemAE, {"addressing": "image"}, "needs image_size"),
        (MemAE, {"image_size": (8, 8, 8)}, "image_size has 2 numbers"),
    ],
)
def test_unknown_settings_are_refused(kind: type[AnomalyDetector], kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**{"channels": (4, 4), "num_items": 4, **kwargs})


def test_widths_are_those_of_the_encoder_backwards() -> None:
    detector = Autoencoder(channels=(4, 6, 8), latent_channels=5, skip=True)
    outputs = [stage.conv.out_channels for stage in detector.skip_decoder.stages]
    assert outputs == [6, 4, 1]
    assert [a.conv.out_channels for a, _ in pairwise(detector.encoder)] == [4, 6, 8]
