"""The network: shapes of every variant, Eq. 12 to 14, export, configuration, refusals."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, median_filter

from monai_anomaly import networks
from monai_anomaly.networks import AnomalyDetector, ProxyAno
from monai_anomaly.networks.blocks import StridedDecoder, StridedEncoder

SMALL: dict[str, Any] = {"channels": (4, 8), "latent_channels": 6, "num_items": 5}


def small(**kwargs: Any) -> ProxyAno:
    torch.manual_seed(0)
    return ProxyAno(**{**SMALL, **kwargs})


VARIANTS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "paper": ({}, (2, 1, 16, 24)),
    "colour": ({"in_channels": 3}, (2, 3, 16, 16)),
    "colour, gray proxy": ({"in_channels": 3, "proxy_channels": 1}, (1, 3, 8, 8)),
    "proxy of two images": ({"proxy_channels": 2}, (2, 1, 16, 16)),
    "volume": ({"spatial_dims": 3}, (1, 1, 8, 12, 8)),
    "volume, two channels": ({"spatial_dims": 3, "in_channels": 2, "memory": "shrinkage"}, (1, 2, 8, 8, 8)),
    "memory of MemAE": ({"memory": "shrinkage"}, (2, 1, 16, 16)),
    "without memory": ({"memory": None}, (2, 1, 16, 16)),
    "without bridge": ({"bridge": False}, (2, 1, 16, 16)),
    "plain auto-encoder": ({"bridge": False, "memory": None, "score_space": "image"}, (2, 1, 16, 16)),
    "MemAE": ({"bridge": False, "memory": "shrinkage", "in_channels": 3, "proxy_channels": 1}, (2, 3, 16, 16)),
    "score of the image": ({"score_space": "image"}, (2, 1, 16, 16)),
    "filtered map": ({"median_size": 3, "sigma": 1.0, "score_space": "map"}, (2, 1, 16, 24)),
    "three stages": ({"channels": (4, 4, 4)}, (2, 1, 24, 16)),
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("training", [False, True])
def test_shapes(name: str, training: bool) -> None:
    kwargs, shape = VARIANTS[name]
    detector = small(**kwargs).train(training)
    output = detector.detect(torch.rand(shape))
    assert output.anomaly_map.shape == (shape[0], 1, *shape[2:])
    assert output.anomaly_score.shape == shape[:1]
    assert output.restoration is not None
    assert output.restoration.shape == shape
    proxy, auxiliary = detector.proxy_module(torch.rand(shape))
    assert proxy.shape == (shape[0], detector.proxy_channels, *shape[2:])
    assert auxiliary.shape == ()
    assert (detector.reconstruction_module is not None) == kwargs.get("bridge", True)


@pytest.mark.parametrize("name", VARIANTS)
def test_map_and_score_are_equations_12_to_14(name: str) -> None:
    kwargs, shape = VARIANTS[name]
    detector = small(**kwargs).eval()
    image = torch.rand(shape)
    with torch.no_grad():
        output = detector.detect(image)
        proxy = detector.proxy_module(image)[0]
        restored = proxy if detector.reconstruction_module is None else detector.reconstruction_module(proxy)
        assert torch.equal(detector.restore(image), restored)
        assert torch.equal(detector(image), output.anomaly_map)
        z, z_hat = detector.proxy_module.encoder(image).numpy(), detector.proxy_module.encoder(restored).numpy()
    assert torch.equal(output.restoration, restored)
    original, answer = image.numpy().astype(np.float64), restored.numpy().astype(np.float64)
    for b in range(shape[0]):
        expected_map = sum(abs(original[b, c] - answer[b, c]) for c in range(shape[1])) / shape[1]
        if "sigma" in kwargs:
            expected_map = gaussian_filter(median_filter(expected_map, kwargs["median_size"]), kwargs["sigma"])
        np.testing.assert_allclose(output.anomaly_map[b, 0].numpy(), expected_map, rtol=1e-5, atol=1e-6)
        if kwargs.get("score_space") == "map":
            score = expected_map.max()
        elif kwargs.get("score_space") == "image":
            score = np.sqrt(((original[b] - answer[b]) ** 2).sum())
        else:
            score = np.sqrt(((z[b].astype(np.float64) - z_hat[b]) ** 2).sum())
        assert float(output.anomaly_score[b]) == pytest.approx(score, rel=1e-5)


def test_a_batch_is_its_images_one_by_one() -> None:
    detector = small().eval()
    images = torch.rand(3, 1, 16, 16)
    with torch.no_grad():
        whole = detector.detect(images)
        for i in range(3):
            alone = detector.detect(images[i : i + 1])
            torch.testing.assert_close(whole.anomaly_map[i], alone.anomaly_map[0], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(whole.anomaly_score[i], alone.anomaly_score[0], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["paper", "volume, two channels", "plain auto-encoder"])
def test_torchscript_is_the_eager_network(name: str, tmp_path: Path) -> None:
    kwargs, shape = VARIANTS[name]
    detector = small(**kwargs).eval()
    detector.calibration.fit({"a": 1.0, "b": 2.0}, {"a": 0.1, "b": 0.2})
    torch.jit.save(torch.jit.script(detector), tmp_path / "model.ts")
    scripted = torch.jit.load(tmp_path / "model.ts")
    image = torch.rand(shape)
    with torch.no_grad():
        eager = detector(image)
        for _ in range(2):  # the second run is the optimised one
            torch.testing.assert_close(scripted(image), eager, rtol=0, atol=1e-4)
    state = scripted.state_dict()
    assert state.keys() == detector.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in detector.state_dict().items())


@pytest.mark.parametrize("name", VARIANTS)
def test_configuration_makes_an_equal_network(name: str) -> None:
    kwargs, shape = VARIANTS[name]
    detector = small(**kwargs).eval()
    config = json.loads(json.dumps(detector.config))  # as it passes through a file
    assert config == detector.config
    again = getattr(networks, config["name"])(**config["arguments"]).eval()
    assert again.config == detector.config
    again.load_state_dict(detector.state_dict())
    image = torch.rand(shape)
    with torch.no_grad():
        assert torch.equal(again(image), detector(image))


def test_configuration_holds_every_argument_and_survives_copies() -> None:
    detector = ProxyAno(2, 3, channels=(4, 4), num_items=4, latent_channels=4)
    names = list(inspect.signature(ProxyAno.__init__).parameters)[1:]
    assert list(detector.config["arguments"]) == names
    assert detector.config["arguments"]["in_channels"] == 3
    assert detector.config["arguments"]["decay"] == 0.99
    assert copy.deepcopy(detector).config == detector.config
    assert pickle.loads(pickle.dumps(detector)).config == detector.config


def test_one_state_dict_is_the_whole_detector() -> None:
    detector = small().train()
    other = small().train()
    for _ in range(3):
        detector(torch.rand(2, 1, 16, 16))
    detector.calibration.fit({"a": 3.0}, {"a": 0.5})
    other.load_state_dict(detector.state_dict())
    image = torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        for one, two in zip(detector.eval().detect(image), other.eval().detect(image)):
            assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 16, 16), "1 input channel"),
        ((1, 1, 16), "2-D"),
        ((1, 1, 16, 16, 16), "2-D"),
        ((1, 1, 18, 16), "multiples of 4"),
        ((1, 1, 16, 2), "multiples of 4"),
        ((1, 1, 0, 16), "multiples of 4"),
    ],
)
def test_unfit_input_is_refused(shape: tuple[int, ...], message: str) -> None:
    detector = small().eval()
    with pytest.raises(ValueError, match=message):
        detector(torch.zeros(shape))
    with pytest.raises(torch.jit.Error, match=message):
        torch.jit.script(detector)(torch.zeros(shape))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"memory": "mean"}, "memory"),
        ({"score_space": "pixels"}, "score_space"),
        ({"spatial_dims": 1}, "spatial_dims"),
        ({"spatial_dims": 4}, "spatial_dims"),
    ],
)
def test_unknown_settings_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**kwargs)


def test_a_detector_must_say_how_it_detects() -> None:
    class Silent(AnomalyDetector):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Silent(2, 1)


def convolution(inputs: int, outputs: int, side: int, dims: int = 2) -> int:
    return inputs * outputs * side**dims + outputs


def test_encoder_at_the_papers_size() -> None:
    encoder = StridedEncoder(2, 1).eval()
    x = torch.rand(1, 1, 256, 256)
    expected = [(64, 128), (128, 64), (256, 32), (512, 16), (64, 16)]
    with torch.no_grad():
        for stage, (width, side) in zip(encoder, expected, strict=True):
            x = stage(x)
            assert x.shape == (1, width, side, side)
        decoder = StridedDecoder(2, 1).eval()
        assert decoder(x).shape == (1, 1, 256, 256)
    widths = [1, 64, 128, 256, 512]
    count = sum(convolution(a, b, 4) + 2 * b for a, b in pairwise(widths))  # 2 b: batch norm
    count += convolution(512, 64, 1)
    assert sum(p.numel() for p in encoder.parameters()) == count


def test_detector_at_the_papers_size() -> None:
    detector = ProxyAno()
    parts = [detector.proxy_module.encoder, detector.proxy_module.decoder, detector.reconstruction_module]
    assert sum(p.numel() for p in detector.parameters()) == sum(p.numel() for part in parts for p in part.parameters())
    widths = [512, 256, 128, 64]
    decoder = convolution(64, 512, 1) + 2 * 512 + convolution(64, 1, 4)
    decoder += sum(convolution(a, b, 4) + 2 * b for a, b in pairwise(widths))
    assert sum(p.numel() for p in detector.proxy_module.decoder.parameters()) == decoder
    assert detector.proxy_module.memory.items.shape == (128, 64)
    assert detector.size_divisor == 16
