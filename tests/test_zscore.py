"""The z-score at each place: statistics against numpy, map and score, export, configuration, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks import convert_to_onnx

from monai_anomaly import networks
from monai_anomaly.networks import ZScore

SIZES: dict[int, tuple[int, ...]] = {2: (6, 5), 3: (4, 3, 5)}


def batches(dims: int, channels: int = 1, seed: int = 0, offset: float = 0.0) -> list[torch.Tensor]:
    """Batches of different lengths, as the last of a loader has."""
    random = torch.Generator().manual_seed(seed)
    return [torch.rand(n, channels, *SIZES[dims], generator=random) + offset for n in (3, 4, 1)]


def fitted(dims: int = 2, channels: int = 1, **kwargs: Any) -> ZScore:
    detector = ZScore(dims, channels, SIZES[dims], **kwargs).eval()
    detector.fit_statistics(batches(dims, channels), [])
    return detector


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_statistics_are_mean_and_standard_deviation_at_each_place(dims: int, channels: int, offset: float) -> None:
    parts = batches(dims, channels, offset=offset)
    detector = ZScore(dims, channels, SIZES[dims], least_std=1e-9)
    detector.fit_statistics(parts, [])
    images = torch.cat(parts).double().numpy()
    np.testing.assert_allclose(detector.mean.numpy(), images.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(detector.std.numpy(), images.std(axis=0, ddof=1), rtol=1e-5)
    detector.fit_statistics(parts, [])  # a second fit does not add to the first
    np.testing.assert_allclose(detector.std.numpy(), images.std(axis=0, ddof=1), rtol=1e-5)


def test_the_floor_bounds_z_where_normals_are_all_alike() -> None:
    images = torch.zeros(6, 1, 6, 5)
    images[:, :, :3] = torch.linspace(0, 1, 6)[:, None, None, None]
    detector = ZScore(image_size=(6, 5), least_std=0.04).eval()
    detector.fit_statistics([images], [])
    spread = float(np.linspace(0, 1, 6).std(ddof=1))
    np.testing.assert_allclose(detector.std[0, :3].numpy(), spread, rtol=1e-6)
    np.testing.assert_allclose(detector.std[0, 3:].numpy(), 0.04, rtol=1e-6)
    noisy = torch.full((1, 1, 6, 5), 0.5)
    noisy[:, :, 3:] = 0.02
    anomaly_map = detector(noisy)[0, 0]
    np.testing.assert_allclose(anomaly_map[:3].numpy(), 0.0, atol=1e-6)
    np.testing.assert_allclose(anomaly_map[3:].numpy(), 0.5, rtol=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("sign", ["both", "bright", "dark"])
@pytest.mark.parametrize("quantile", [0.0, 0.9, 0.99, 1.0])
def test_map_and_score(dims: int, sign: str, quantile: float) -> None:
    detector = fitted(dims, 2, sign=sign, quantile=quantile)
    image = torch.rand(3, 2, *SIZES[dims])
    output = detector.detect(image)
    z = (image.double().numpy() - detector.mean.double().numpy()) / detector.std.double().numpy()
    signed = {"both": abs(z), "bright": z, "dark": -z}[sign].mean(axis=1)
    np.testing.assert_allclose(output.anomaly_map[:, 0].numpy(), signed, rtol=1e-4, atol=1e-5)
    number = np.prod(SIZES[dims])
    # 3, 6 and 60 of the values are above the quantile 0.9 of 30 and 60; at least one always is
    rank = {0.0: number, 0.9: number // 10, 0.99: 1, 1.0: 1}[quantile]
    for b in range(3):
        assert float(output.anomaly_score[b]) == pytest.approx(np.sort(signed[b].ravel())[-rank], rel=1e-4)
    assert output.restoration is not None
    assert torch.equal(output.restoration, detector.mean[None].repeat(3, 1, *[1] * dims))


def test_a_percent_of_a_hundred_is_one() -> None:
    assert ZScore(image_size=(10, 10), quantile=0.99).rank == 1
    assert ZScore(image_size=(10, 10), quantile=0.985).rank == 2


def test_a_lesion_stands_out_by_its_sign() -> None:
    random = torch.Generator().manual_seed(3)
    normal = 0.5 + 0.05 * torch.randn(40, 1, 6, 5, generator=random)
    image = torch.full((2, 1, 6, 5), 0.5)
    image[0, :, 2, 2], image[1, :, 2, 2] = 0.8, 0.2
    for sign, higher in (("both", (True, True)), ("bright", (True, False)), ("dark", (False, True))):
        detector = ZScore(image_size=(6, 5), sign=sign, quantile=1.0).eval()
        detector.fit_statistics([normal], [])
        output = detector.detect(image)
        assert tuple((output.anomaly_score > 3).tolist()) == higher
        assert tuple((output.anomaly_map[:, 0, 2, 2] > 3).tolist()) == higher


@pytest.mark.slow
@pytest.mark.parametrize(("dims", "sign"), [(2, "both"), (3, "dark")])
def test_torchscript_onnx_and_configuration(dims: int, sign: str, tmp_path: Path) -> None:
    detector = fitted(dims, 2, sign=sign)
    image = torch.rand(2, 2, *SIZES[dims])
    eager = detector(image)
    scripted = torch.jit.script(detector)
    for _ in range(2):  # the second run is the optimised one
        torch.testing.assert_close(scripted(image), eager, rtol=0, atol=1e-4)
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
    config = json.loads(json.dumps(detector.config))
    again = getattr(networks, config["name"])(**config["arguments"]).eval()
    again.load_state_dict(detector.state_dict())
    for one, two in zip(again.detect(image), detector.detect(image)):
        assert torch.equal(one, two)


@pytest.mark.parametrize("number", [0, 1])
def test_too_few_images_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match="two training images"):
        ZScore(image_size=(6, 5)).fit_statistics([torch.rand(1, 1, 6, 5)] * number, [])


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 1, 6, 6), "made for images of"), ((1, 2, 6, 5), "1 input channel"), ((1, 1, 6), "2-D")],
)
def test_unfit_images_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fitted().detect(torch.rand(shape))
    with pytest.raises(ValueError, match=message):
        ZScore(image_size=(6, 5)).fit_statistics([torch.rand(shape)], [])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"image_size": (4, 4, 4)}, "image_size has 2 numbers"),
        ({"sign": "up"}, "sign"),
        ({"least_std": 0.0}, "least_std"),
        ({"quantile": 1.5}, "quantile"),
        ({"spatial_dims": 4}, "spatial_dims"),
    ],
)
def test_unknown_settings_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ZScore(**kwargs)
