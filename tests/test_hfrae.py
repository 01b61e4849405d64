"""HFR-AE: encoders against a plain forward pass, Eq. 2 to 11, export, training stages, encoders of one's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.networks import convert_to_onnx
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.utils.data import DataLoader

from monai_anomaly import networks
from monai_anomaly.data import ScanPreprocessing
from monai_anomaly.engines import (
    EncoderAutoencoder,
    EncoderPretrainingTrainer,
    FeatureCache,
    HFRAETrainer,
    fill_encoder,
    own_encoder_source,
    save_detector,
    train_stages,
)
from monai_anomaly.exceptions import InputError
from monai_anomaly.losses import HierarchicalFeatureLoss
from monai_anomaly.networks import HFRAE, AnomalyDetector, AnomalyOutput, ProxyAno, feature_encoder_of
from monai_anomaly.networks.blocks import Frozen, GaussianFilter, StridedEncoder, StridedFeatures, resnet_features
from monai_anomaly.networks.nets.hfrae import HierarchicalDecoder

# The whole networks have 11,689,512 and 68,883,240 parameters (torchvision's documentation); less fc and layer4.
STAGES = {
    "resnet18": (11_689_512 - 513_000 - 8_393_728, [64, 128, 256]),
    "wide_resnet50_2": (68_883_240 - 2_049_000 - 41_971_712, [256, 512, 1024]),
}
STRIDED: dict[str, Any] = {"encoder": "strided", "encoder_channels": (4, 6, 8)}
VARIANTS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "paper, gray": ({}, (2, 1, 32, 48)),
    "colour": ({"in_channels": 3}, (1, 3, 32, 32)),
    "two channels, each": ({"in_channels": 2}, (2, 2, 32, 32)),
    "two channels, mean": ({"in_channels": 2, "channel_rule": "mean"}, (2, 2, 32, 32)),
    "three gray channels": ({"in_channels": 3, "channel_rule": "each"}, (2, 3, 32, 32)),
    "norm over the map": ({**STRIDED, "norm_over": "map"}, (2, 1, 16, 24)),
    "mean of the levels": ({**STRIDED, "level_weights": "mean"}, (2, 1, 16, 24)),
    "aligned corners": ({**STRIDED, "align_corners": True}, (2, 1, 16, 24)),
    "fed by level 1": ({**STRIDED, "input_level": 1}, (2, 1, 16, 24)),
    "kernels of one size": ({**STRIDED, "kernel_sizes": (3, 3, 3), "hidden_channels": (3, 4, 5)}, (2, 1, 16, 24)),
    "own, colour, no smoothing": ({**STRIDED, "in_channels": 3, "sigma": 0.0}, (2, 3, 16, 16)),
}


def made(**kwargs: Any) -> HFRAE:
    """A detector with batch statistics away from their start."""
    torch.manual_seed(0)
    network = HFRAE(**kwargs)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


# ---------------------------------------------------------------------------------------------------------- encoders


def plain_resnet(state: dict[str, Tensor], x: Tensor, blocks: tuple[int, ...], bottleneck: bool) -> list[Tensor]:
    """The first three stages, from the tensors of a weights file alone."""

    def conv_bn(x: Tensor, conv: str, bn: str, stride: int = 1, padding: int = 0) -> Tensor:
        x = F.conv2d(x, state[f"{conv}.weight"], None, stride, padding)
        mean, var, gain, bias = (
            state[f"{bn}.{name}"].view(1, -1, 1, 1) for name in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(var + 1e-5) * gain + bias

    x = F.max_pool2d(conv_bn(x, "conv1", "bn1", 2, 3).clamp_min(0), 3, 2, 1)
    outputs = []
    for k, number in enumerate(blocks, start=1):
        for i in range(number):
            name, stride = f"layer{k}.{i}", 2 if k > 1 and i == 0 else 1
            short = x
            if f"{name}.downsample.0.weight" in state:
                short = conv_bn(x, f"{name}.downsample.0", f"{name}.downsample.1", stride)
            if bottleneck:
                y = conv_bn(x, f"{name}.conv1", f"{name}.bn1").clamp_min(0)
                y = conv_bn(y, f"{name}.conv2", f"{name}.bn2", stride, 1).clamp_min(0)
                y = conv_bn(y, f"{name}.conv3", f"{name}.bn3")
            else:
                y = conv_bn(x, f"{name}.conv1", f"{name}.bn1", stride, 1).clamp_min(0)
                y = conv_bn(y, f"{name}.conv2", f"{name}.bn2", 1, 1)
            x = (y + short).clamp_min(0)
        outputs.append(x)
    return outputs


@pytest.mark.parametrize("name", STAGES)
def test_encoders_are_the_resnets(name: str) -> None:
    count, channels = STAGES[name]
    encoder = resnet_features(name)
    assert sum(p.numel() for p in encoder.parameters()) == count
    assert encoder.channels == channels
    x = torch.rand(1, 3, 64, 32)
    blocks = (2, 2, 2) if name == "resnet18" else (3, 4, 6)
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
        found = encoder.eval()(x)
        expected = plain_resnet(encoder.state_dict(), x, blocks, name != "resnet18")
    for k, (one, two) in enumerate(zip(found, expected, strict=True)):
        assert one.shape == (1, channels[k], 16 // 2**k, 8 // 2**k)
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def folded(folder: Path) -> dict[str, Tensor]:
    """The real weights, their batch norms folded into convolutions with a bias."""
    file = np.load(folder / "resnet18_torchvision_layers123/resnet18_bnfolded_conv1_layer3_fp32.npz")
    return {key: torch.from_numpy(file[key]) for key in file.files}


def real_file(folder: Path, path: Path) -> Path:
    """The real weights in torchvision's format: an identity norm with the folded bias after each convolution."""
    state = {}
    for key, value in folded(folder).items():
        conv, kind = key.rsplit(".", 1)
        if kind == "weight":
            state[key] = value
            continue
        bn = conv[:-1] + "1" if conv.endswith("downsample.0") else conv.replace("conv", "bn")
        state |= {f"{bn}.weight": torch.ones_like(value), f"{bn}.bias": value}
        state |= {f"{bn}.running_mean": torch.zeros_like(value), f"{bn}.running_var": torch.full_like(value, 1 - 1e-5)}
    torch.save(state, path)
    return path


def test_imagenet_features_of_the_real_weights(real_data: Path, tmp_path: Path) -> None:
    network = fill_encoder(HFRAE(in_channels=3), real_file(real_data, tmp_path / "resnet18.pth")).eval()
    assert network.encoder_label == "imagenet"
    assert network.config["arguments"]["encoder_label"] == "imagenet"
    w = folded(real_data)
    image = torch.rand(1, 3, 64, 64)

    def conv(x: Tensor, name: str, stride: int, padding: int) -> Tensor:
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride, padding)

    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = conv((image - mean[:, None, None]) / std[:, None, None], "conv1", 2, 3).relu()
    x = F.max_pool2d(x, 3, 2, 1)
    expected = []
    for k in (1, 2, 3):
        for i in (0, 1):
            name, stride = f"layer{k}.{i}", 2 if k > 1 and i == 0 else 1
            short = conv(x, f"{name}.downsample.0", stride, 0) if f"{name}.downsample.0.weight" in w else x
            y = conv(conv(x, f"{name}.conv1", stride, 1).relu(), f"{name}.conv2", 1, 1)
            x = (y + short).relu()
        expected.append(x)
    with torch.no_grad():
        for found, plain in zip(network.encode(image), expected, strict=True):
            torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_frozen_encoders_stay_as_they_are() -> None:
    network = made(in_channels=1).train()
    assert network.training
    assert network.decoder.training
    assert not any(module.training for module in network.encoder.modules())
    assert not any(p.requires_grad for p in network.encoder.parameters())
    before = {key: value.clone() for key, value in network.encoder.state_dict().items()}
    f_enc = network.encode(torch.rand(2, 1, 32, 32, requires_grad=True))
    assert not any(f.requires_grad for f in f_enc)
    loss = HierarchicalFeatureLoss()(network.residuals(f_enc, network.decode(f_enc)))
    loss.backward()
    assert all(p.grad is None for p in network.encoder.parameters())
    gradients = [p.grad for p in network.decoder.parameters()]
    assert all(g is not None and bool(g.abs().sum() > 0) for g in gradients)
    optimizer = torch.optim.SGD(network.decoder.parameters(), lr=0.4)
    optimizer.step()
    assert all(torch.equal(before[key], value) for key, value in network.encoder.state_dict().items())


def test_one_pass_of_the_encoder() -> None:
    network, calls = made(in_channels=2), []
    network.encoder.encoder.conv1.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        network.detect(torch.rand(2, 2, 32, 32))
    assert len(calls) == 1


def test_what_the_encoder_sees() -> None:
    image = torch.rand(2, 3, 32, 32)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def normal(x: Tensor) -> Tensor:
        return (x - mean[:, None, None]) / std[:, None, None]

    colour, each = made(in_channels=3), made(in_channels=3, channel_rule="each")
    mixed, gray = made(in_channels=3, channel_rule="mean"), made(in_channels=1)
    torch.testing.assert_close(colour.encoder_input(image), normal(image))
    torch.testing.assert_close(each.encoder_input(image)[4], normal(image[1, 1].expand(3, 32, 32)))
    torch.testing.assert_close(mixed.encoder_input(image), normal(image.mean(1, keepdim=True).expand(-1, 3, -1, -1)))
    torch.testing.assert_close(gray.encoder_input(image[:, :1]), normal(image[:, :1].expand(-1, 3, -1, -1)))
    bare = made(in_channels=1, input_statistics="none")
    assert torch.equal(bare.encoder_input(image[:, :1]), image[:, :1].expand(-1, 3, -1, -1))
    assert torch.equal(made(**STRIDED, in_channels=3).encoder_input(image), image)


# --------------------------------------------------------------------------------------------------------- equations


def test_decoder_is_equations_3_and_4() -> None:
    torch.manual_seed(0)
    channels, hidden = [4, 6, 8], [2, 3, 5]
    decoder = HierarchicalDecoder(channels, 8, hidden).train()
    decoder(torch.rand(4, 8, 3, 5))  # batch statistics
    decoder.eval()
    state = decoder.state_dict()
    features = torch.rand(2, 8, 3, 5)
    f_tilde, expected = features, []
    for level, k in enumerate((2, 1, 0)):
        if level > 0:
            f_tilde = f_tilde.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)  # Eq. 4
        x = f_tilde
        for i, (size, width) in enumerate(zip((1, 3, 1), (hidden[k], hidden[k], channels[k]))):
            name = f"levels.{level}.convs.{i}"
            weight = state[f"{name}.conv.weight"]
            assert weight.shape == (width, x.shape[1], size, size)
            x = F.conv2d(x, weight, None, 1, size // 2)
            mean, var = state[f"{name}.adn.N.running_mean"], state[f"{name}.adn.N.running_var"]
            x = (x - mean[:, None, None]) / torch.sqrt(var[:, None, None] + 1e-5)
            x = x * state[f"{name}.adn.N.weight"][:, None, None] + state[f"{name}.adn.N.bias"][:, None, None]
            x = torch.where(x > 0, x, 0.1 * x)
        name = f"levels.{level}.output.conv"
        assert state[f"{name}.weight"].shape == (channels[k], channels[k], 1, 1)
        f_tilde = F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"])
        expected.insert(0, f_tilde)
    with torch.no_grad():
        found = decoder(features)
    assert [f.shape for f in found] == [(2, 4, 12, 20), (2, 6, 6, 10), (2, 8, 3, 5)]
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_decoder_of_the_paper() -> None:
    network = HFRAE()
    assert network.size_divisor == 16

    def convs(inputs: int, hidden: int, outputs: int) -> int:
        blocks = inputs * hidden + 9 * hidden * hidden + hidden * outputs + 2 * (2 * hidden + outputs)
        return blocks + outputs * outputs + outputs

    expected = convs(256, 128, 256) + convs(256, 64, 128) + convs(128, 32, 64)
    assert sum(p.numel() for p in network.decoder.parameters()) == expected
    with torch.no_grad():
        f_enc = network.encode(torch.rand(1, 1, 256, 256))
        f_dec = network.decode(f_enc)
    shapes = [(1, 64, 64, 64), (1, 128, 32, 32), (1, 256, 16, 16)]
    assert [f.shape for f in f_enc] == [f.shape for f in f_dec] == shapes


def plain_phi(encoded: np.ndarray, decoded: np.ndarray, over: str) -> np.ndarray:
    """Eq. 5 and 6 for one image, by loops over positions."""
    phi = np.zeros(encoded.shape)
    if over == "map":
        difference = encoded / np.sqrt((encoded**2).sum()) - decoded / np.sqrt((decoded**2).sum())
        return 0.5 * difference**2
    for y in range(encoded.shape[1]):
        for x in range(encoded.shape[2]):
            e, d = encoded[:, y, x], decoded[:, y, x]
            phi[:, y, x] = 0.5 * (e / np.sqrt((e**2).sum()) - d / np.sqrt((d**2).sum())) ** 2
    return phi


def levels(seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    random = np.random.default_rng(seed)
    shapes = [(2, 4, 8, 12), (2, 6, 4, 6), (2, 8, 2, 3)]
    return [random.normal(size=s) for s in shapes], [random.normal(size=s) for s in shapes]


@pytest.mark.parametrize("over", ["channels", "map"])
@pytest.mark.parametrize("reduction", ["position", "mean", "sum"])
def test_residuals_and_loss_are_equations_5_to_8(over: str, reduction: str) -> None:
    f_enc, f_dec = levels()
    network = made(**STRIDED, norm_over=over)
    phis = network.residuals([torch.from_numpy(f) for f in f_enc], [torch.from_numpy(f) for f in f_dec])
    assert all(phi.dtype == torch.float32 for phi in phis)
    losses = []
    for k in range(3):
        plain = np.stack([plain_phi(f_enc[k][b], f_dec[k][b], over) for b in range(2)])
        np.testing.assert_allclose(phis[k].numpy(), plain, rtol=1e-4, atol=1e-7)
        _, c, h, w = plain.shape
        divisor = {"position": w * h, "mean": w * h * c, "sum": 1}[reduction]
        losses.append(np.mean([plain[b].sum() / divisor for b in range(2)]))  # Eq. 7
    assert float(HierarchicalFeatureLoss(reduction)(phis)) == pytest.approx(np.mean(losses), rel=1e-5)  # Eq. 8


def test_features_of_length_zero_are_no_trouble() -> None:
    network = made(**STRIDED)
    zero, other = torch.zeros(1, 4, 2, 2), torch.ones(1, 4, 2, 2, requires_grad=True)
    phi = network.residuals([zero], [other])[0]
    assert float(phi.detach().sum(dim=1).mean()) == pytest.approx(0.5)  # half the square of a unit vector
    phi = network.residuals([zero], [zero.clone().requires_grad_()])[0]
    assert float(phi.detach().abs().max()) == 0.0
    phi.sum().backward()


def plain_resize(a: np.ndarray, shape: tuple[int, int], aligned: bool) -> np.ndarray:
    """Bilinear interpolation of a map, by loops."""

    def place(i: int, small: int, large: int) -> tuple[int, int, float]:
        at = i * (small - 1) / (large - 1) if aligned else max((i + 0.5) * small / large - 0.5, 0.0)
        low = min(int(at), small - 1)
        return low, min(low + 1, small - 1), at - low

    out = np.zeros(shape)
    for i in range(shape[0]):
        y0, y1, v = place(i, a.shape[0], shape[0])
        for j in range(shape[1]):
            x0, x1, u = place(j, a.shape[1], shape[1])
            top, bottom = (1 - u) * a[y0, x0] + u * a[y0, x1], (1 - u) * a[y1, x0] + u * a[y1, x1]
            out[i, j] = (1 - v) * top + v * bottom
    return out


@pytest.mark.parametrize("name", VARIANTS)
def test_map_and_score_are_equations_9_to_11(name: str) -> None:
    kwargs, shape = VARIANTS[name]
    network = made(**kwargs)
    image = torch.rand(shape)
    with torch.no_grad():
        output = network.detect(image)
        f_enc = network.encode(image)
        f_dec = network.decode(f_enc)
        assert torch.equal(network(image), output.anomaly_map)
    assert isinstance(output, AnomalyOutput)
    assert output.anomaly_map.shape == (shape[0], 1, *shape[2:])
    assert output.anomaly_score.shape == shape[:1]
    assert output.restoration is None
    copies = len(f_enc[0]) // shape[0]  # several where each channel is an image of its own
    for b in range(shape[0]):
        f_a = np.zeros(shape[2:])
        for one in range(b * copies, (b + 1) * copies):
            for encoded, decoded in zip(f_enc, f_dec):
                over = kwargs.get("norm_over", "channels")
                total = plain_phi(encoded[one].double().numpy(), decoded[one].double().numpy(), over).sum(axis=0)
                total /= 3 if kwargs.get("level_weights") == "mean" else total.size
                f_a += plain_resize(total, shape[2:], kwargs.get("align_corners", False)) / copies  # Eq. 9
        if kwargs.get("sigma", 4.0):
            f_a = gaussian_filter(f_a, kwargs.get("sigma", 4.0))  # Eq. 10
        np.testing.assert_allclose(output.anomaly_map[b, 0].numpy(), f_a, rtol=1e-3, atol=1e-6)
        assert float(output.anomaly_score[b]) == pytest.approx(f_a.max(), rel=1e-3)  # Eq. 11


@pytest.mark.parametrize("sigma", [0.4, 1.0, 4.0, 5.3])
def test_gaussian_is_scipys(sigma: float) -> None:
    image = torch.rand(2, 1, 32, 41)
    found = GaussianFilter(sigma)(image)
    for b in range(2):
        expected = gaussian_filter(image[b, 0].double().numpy(), sigma)
        np.testing.assert_allclose(found[b, 0].numpy(), expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(GaussianFilter(0.0)(image), image)
    with pytest.raises(ValueError, match="reaches over 40 pixels"):
        GaussianFilter(10.0)(image)


# ------------------------------------------------------------------------------------------------- contract and files


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two channels, each", "fed by level 1", "own, colour, no smoothing"])
def test_torchscript_is_the_eager_network(name: str, tmp_path: Path) -> None:
    kwargs, shape = VARIANTS[name]
    network = made(**kwargs)
    torch.jit.save(torch.jit.script(network), tmp_path / "model.ts")
    scripted = torch.jit.load(tmp_path / "model.ts")
    image = torch.rand(shape)
    with torch.no_grad():
        for _ in range(2):  # the second run is the optimised one
            torch.testing.assert_close(scripted(image), network(image), rtol=0, atol=1e-4)
    assert scripted.state_dict().keys() == network.state_dict().keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two channels, each"])
def test_onnx_is_the_eager_network(name: str, tmp_path: Path) -> None:
    kwargs, shape = VARIANTS[name]
    convert_to_onnx(
        made(**kwargs),
        [torch.rand(shape)],
        filename=str(tmp_path / "model.onnx"),
        verify=True,
        use_ort=True,
        rtol=1e-3,
        atol=1e-4,
        input_names=["image"],
        output_names=["map"],
    )
    assert (tmp_path / "model.onnx").is_file()


@pytest.mark.parametrize("name", VARIANTS)
def test_configuration_and_state_are_the_whole_detector(name: str) -> None:
    kwargs, shape = VARIANTS[name]
    network = made(**kwargs)
    state = network.encoder.encoder.state_dict()
    network.load_encoder(state, "imagenet")
    config = json.loads(json.dumps(network.config))
    assert config == network.config
    again = getattr(networks, config["name"])(**config["arguments"]).eval()
    assert again.config == network.config
    assert again.encoder_label == "random"  # until the weights are there, whatever the configuration says
    again.load_state_dict(network.state_dict())
    assert again.encoder_label == "imagenet"
    image = torch.rand(shape)
    with torch.no_grad():
        for one, two in zip(network.detect(image)[:2], again.detect(image)[:2]):
            assert torch.equal(one, two)


def test_the_label_is_what_the_weights_are() -> None:
    network = HFRAE(**STRIDED, encoder_label="imagenet")
    assert network.encoder_label == "random"
    network.load_state_dict(network.state_dict())
    assert network.config["arguments"]["encoder_label"] == "random"
    with pytest.raises(ValueError, match="label"):
        network.load_encoder(network.encoder.encoder.state_dict(), "random")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"spatial_dims": 3}, "2-D"),
        ({"encoder": "vgg"}, "encoder is one of"),
        ({"encoder": "own"}, "source"),
        ({"source": {"name": "ProxyAno", "arguments": {}}}, "source"),
        ({"encoder": "own", "source": {"name": "Module", "arguments": {}}}, "no detector"),
        ({"encoder": "own", "source": {"name": "ProxyAno", "arguments": {"in_channels": 2}}}, "2 channel"),
        ({"encoder": "own", "source": {"name": "IntensityThreshold", "arguments": {}}}, "feature_encoder"),
        ({"encoder": "strided", "encoder_channels": (4, 4)}, "three or more"),
        ({"encoder": "strided", "channel_rule": "each"}, "channel_rule"),
        ({"encoder": "strided", "input_statistics": "imagenet"}, "ImageNet"),
        ({"input_statistics": "brain"}, "input_statistics"),
        ({"channel_rule": "rgb"}, "rgb"),
        ({"channel_rule": "hsv"}, "channel_rule"),
        ({"norm_over": "pixels"}, "norm_over"),
        ({"level_weights": "sum"}, "level_weights"),
        ({"encoder_label": "brain"}, "encoder_label"),
        ({"hidden_channels": (4, 4)}, "hidden_channels"),
        ({"kernel_sizes": (2, 3)}, "kernel_sizes"),
        ({"input_level": 4}, "input_level"),
        ({"sigma": -1.0}, "sigma"),
    ],
)
def test_unfit_settings_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HFRAE(**kwargs)


def test_unfit_images_are_refused() -> None:
    network = made()
    with pytest.raises(ValueError, match="multiples of 16"):
        network(torch.zeros(1, 1, 40, 32))
    with pytest.raises(ValueError, match="1 input channel"):
        network(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="reduction"):
        HierarchicalFeatureLoss("none")


# ---------------------------------------------------------------------------------------------------------- training


def stripes(number: int, side: int = 16, seed: int = 0) -> list[dict[str, Tensor]]:
    """Gray images of level stripes with random phase."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(float(side))[:, None].expand(side, side)
    phases = torch.rand(number, generator=generator) * 6.28
    return [{"image": (0.5 + 0.4 * torch.sin(rows / 2 + p))[None].clone()} for p in phases]


def stages(network: HFRAE, pretraining: int, epochs: int, schedule: bool = False) -> list[Any]:
    torch.manual_seed(1)
    loader = DataLoader(stripes(16), 8, shuffle=True)
    held_out = DataLoader(stripes(4, seed=1), 4)
    autoencoder = EncoderAutoencoder(1, (4, 6, 8), 4)
    optimizer = torch.optim.SGD(network.decoder.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    schedulers = [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)] if schedule else []
    first = EncoderPretrainingTrainer(
        network, autoencoder, "cpu", pretraining, loader, torch.optim.Adam(autoencoder.parameters(), 5e-3),
        val_data_loader=held_out,
    )  # fmt: skip
    second = HFRAETrainer(network, "cpu", epochs, loader, optimizer, val_data_loader=held_out, lr_schedulers=schedulers)
    return [first, second]


@pytest.mark.slow
def test_training_lowers_both_losses_and_finds_what_is_new(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = HFRAE(encoder="strided", encoder_channels=(6, 8, 10), sigma=1.0)
    autoencoder = EncoderAutoencoder(1, (6, 8, 10), 4)
    loader, held_out = DataLoader(stripes(32, 32), 8, shuffle=True), DataLoader(stripes(4, 32, seed=1), 4)
    adam = torch.optim.Adam(autoencoder.parameters(), 5e-3)
    sgd = torch.optim.SGD(network.decoder.parameters(), 0.4, 0.9, weight_decay=1e-4)
    trainers = [
        EncoderPretrainingTrainer(network, autoencoder, "cpu", 20, loader, adam, val_data_loader=held_out),
        HFRAETrainer(network, "cpu", 60, loader, sgd, val_data_loader=held_out),
    ]
    history = train_stages(trainers, network, tmp_path, progress=False)
    assert network.encoder_label == "own-encoder"
    assert network.config["arguments"]["encoder_label"] == "own-encoder"
    for stage in ("encoder pretraining", "feature reconstruction"):
        for kind in ("train_loss", "val_loss"):
            losses = [row[kind] for row in history if row["stage"] == stage]
            assert losses[-1] < 0.5 * losses[0], (stage, kind)
    learnt, frozen = autoencoder.features().state_dict(), network.encoder.encoder.state_dict()
    assert all(torch.equal(frozen[key], value) for key, value in learnt.items())
    normal = torch.stack([s["image"] for s in stripes(4, 32, seed=2)])
    odd = normal.clone()
    odd[:, :, 8:16, 16:24] = normal.transpose(2, 3)[:, :, 8:16, 16:24]  # stripes across the others
    network.eval()
    with torch.no_grad():
        usual, found = network.detect(normal), network.detect(odd)
    assert (found.anomaly_score > usual.anomaly_score).all()
    assert found.anomaly_map[:, :, 8:16, 16:24].mean() > 2 * found.anomaly_map[:, :, :, :8].mean()


@pytest.mark.slow
@pytest.mark.parametrize("stop", [(1, 0), (3, 2)])
def test_a_resumed_training_is_an_uninterrupted_one(stop: tuple[int, int], tmp_path: Path) -> None:
    def run(folder: Path, pretraining: int, epochs: int) -> HFRAE:
        torch.manual_seed(0)
        network = HFRAE(**STRIDED)
        train_stages(stages(network, pretraining, epochs), network, folder, progress=False, seed=3)
        return network

    whole = run(tmp_path / "whole", 3, 4)
    torch.manual_seed(0)
    network = HFRAE(**STRIDED)
    started = stages(network, *[max(n, 1) for n in stop])
    train_stages(started[: 1 + (stop[1] > 0)], network, tmp_path / "killed", progress=False, seed=3)
    resumed = run(tmp_path / "killed", 3, 4)
    assert resumed.encoder_label == "own-encoder"
    assert resumed.config == whole.config
    state = resumed.state_dict()
    assert all(torch.equal(state[key], value) for key, value in whole.state_dict().items())


@pytest.mark.slow
def test_the_rate_follows_a_schedule(tmp_path: Path) -> None:
    network = HFRAE(**STRIDED)
    trainers = stages(network, 1, 3, schedule=True)
    train_stages(trainers, network, tmp_path, progress=False)
    assert trainers[1].optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.slow
def test_features_are_computed_once_and_training_is_the_same(tmp_path: Path) -> None:
    """Whatever the order and the batches; in half precision, so that weights differ by its rounding."""

    def run(gibibytes: float, epochs: int, folder: Path) -> tuple[HFRAETrainer, HFRAE, dict[str, Any]]:
        torch.manual_seed(0)
        network = HFRAE(**STRIDED)
        loader, held_out = DataLoader(stripes(16), 8, shuffle=True), DataLoader(stripes(4, seed=1), 4)
        optimizer = torch.optim.SGD(network.decoder.parameters(), lr=0.1, momentum=0.9)
        trainer = HFRAETrainer(
            network,
            "cpu",
            epochs,
            loader,
            optimizer,
            val_data_loader=held_out,
            allow_random=True,
            feature_cache=gibibytes,
        )
        return trainer, network, train_stages([trainer], network, folder, progress=False)[-1]

    assert run(1.0, 4, tmp_path / "long")[0].encode.encoded == 20  # 16 training and 4 held-out images
    _, network, last = run(1.0, 1, tmp_path / "kept")
    _, plain, expected = run(0.0, 1, tmp_path / "plain")
    for key, value in plain.decoder.state_dict().items():
        torch.testing.assert_close(network.decoder.state_dict()[key], value, rtol=1e-2, atol=2e-3)
    assert last["val_loss"] == pytest.approx(expected["val_loss"], rel=1e-2)


def test_the_memory_for_features_is_bounded() -> None:
    network = HFRAE(**STRIDED).eval()
    images = torch.stack([item["image"] for item in stripes(4)])
    one = sum(level[:1].numel() * 2 for level in network.encode(images))
    cache = FeatureCache(network.encode, 2.5 * one / 2**30)
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        for level, expected in zip(cache(images[order]), network.encode(images[order]), strict=True):
            assert level.dtype == torch.float32
            torch.testing.assert_close(level, expected, rtol=1e-3, atol=1e-3)
    assert cache.encoded == 4 + 2  # two of them are kept


def test_random_encoders_are_refused(tmp_path: Path) -> None:
    network = HFRAE(**STRIDED)
    _, trainer = stages(network, 1, 1)
    with pytest.raises(InputError, match=r"random weights.*--weights.*own_encoder.yaml"):
        train_stages([trainer], network, tmp_path, progress=False)
    trainer.allow_random = True
    train_stages([trainer], network, tmp_path, progress=False)
    assert network.encoder_label == "random"


def test_pretraining_is_of_the_strided_encoder() -> None:
    loader, autoencoder = DataLoader(stripes(2), 2), EncoderAutoencoder(1, (4, 6, 8))
    optimizer = torch.optim.Adam(autoencoder.parameters())
    with pytest.raises(ValueError, match="resnet18"):
        EncoderPretrainingTrainer(HFRAE(), autoencoder, "cpu", 1, loader, optimizer)
    other = HFRAE(encoder="strided", encoder_channels=(4, 4, 4))
    with pytest.raises(ValueError, match="widths"):
        EncoderPretrainingTrainer(other, autoencoder, "cpu", 1, loader, optimizer)


# ------------------------------------------------------------------------------------------------ encoders of one's own


def test_strided_features_are_the_encoders_stages() -> None:
    encoder = StridedEncoder(2, 1, (3, 4, 5, 6), 2).eval()
    features = StridedFeatures(encoder)
    assert features.channels == [4, 5, 6]
    assert features.size_divisor == 16
    x = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        found, stage = Frozen(features)(x), x
        for i, part in enumerate(list(encoder)[:4]):
            stage = part(stage)
            if i > 0:
                assert torch.equal(found[i - 1], stage)


def trained_source(folder: Path) -> ProxyAno:
    torch.manual_seed(5)
    source = ProxyAno(channels=(4, 6, 8), latent_channels=3, num_items=4).train()
    source(torch.rand(4, 1, 16, 16))  # batch statistics away from their start
    save_detector(folder, source, ScanPreprocessing((16, 16)), {})
    return source.eval()


@pytest.mark.slow
def test_own_encoder_of_a_trained_detector(tmp_path: Path) -> None:
    source = trained_source(tmp_path / "models")
    network = HFRAE(encoder="own", source=own_encoder_source(tmp_path / "models"))
    assert fill_encoder(network, own_encoder=tmp_path / "models") is network
    assert network.encoder_label == "own-encoder"
    assert network.size_divisor == 8
    x = torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        expected = x
        for stage, found in zip(list(source.proxy_module.encoder)[:3], network.encode(x), strict=True):
            expected = stage(expected)
            assert torch.equal(found, expected)
    # The folder is not needed any more: configuration and state are all.
    shutil.rmtree(tmp_path / "models")
    network.eval()
    again = HFRAE(**json.loads(json.dumps(network.config["arguments"]))).eval()
    again.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(again(x), network(x))
        torch.testing.assert_close(torch.jit.script(network)(x), network(x), rtol=0, atol=1e-4)


class Offering(AnomalyDetector):
    """A detector that says itself what its feature encoder is."""

    def __init__(self, halving: int = 2, in_channels: int = 1) -> None:
        super().__init__(2, in_channels, 4)
        self.halving = halving

    def detect(self, image: Tensor) -> AnomalyOutput:
        return AnomalyOutput(image, image.flatten(1).amax(1), None)

    def feature_encoder(self) -> torch.nn.Module:
        halving = self.halving

        class Pyramid(torch.nn.Module):
            def forward(self, x: Tensor) -> list[Tensor]:
                return [x, F.avg_pool2d(x, halving), F.avg_pool2d(x, halving**2).expand(-1, 2, -1, -1)]

        return Pyramid()


def test_a_detector_may_offer_its_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "Offering", Offering, raising=False)
    network = HFRAE(encoder="own", source={"name": "Offering", "arguments": {}}).eval()
    assert network.size_divisor == 4
    assert network(torch.rand(1, 1, 16, 16)).shape == (1, 1, 16, 16)
    with pytest.raises(ValueError, match="half the size"):
        HFRAE(encoder="own", source={"name": "Offering", "arguments": {"halving": 4}})


def test_weights_go_where_they_belong(tmp_path: Path) -> None:
    trained_source(tmp_path / "models")
    with pytest.raises(InputError, match="of a ResNet"):
        fill_encoder(HFRAE(**STRIDED), tmp_path / "weights.pth")
    with pytest.raises(InputError, match="encoder 'own'"):
        fill_encoder(HFRAE(**STRIDED), own_encoder=tmp_path / "models")
    with pytest.raises(InputError, match="no such file"):
        own_encoder_source(tmp_path / "nowhere")
    (tmp_path / "detector.json").write_text("[]")
    with pytest.raises(InputError, match="not a detector"):
        own_encoder_source(tmp_path)
    assert own_encoder_source(None) is None
    untouched = fill_encoder(HFRAE(**STRIDED))
    assert untouched.encoder_label == "random"
    torch.manual_seed(1)
    file = resnet_features("resnet18").state_dict()
    torch.save(file, tmp_path / "radiology.pth")
    network = fill_encoder(HFRAE(), tmp_path / "radiology.pth", label="own-encoder")
    assert network.encoder_label == "own-encoder"
    assert all(torch.equal(file[key], value) for key, value in network.encoder.encoder.state_dict().items())


AUTOENCODERS: dict[str, dict[str, object]] = {
    "Autoencoder": {"channels": [4, 4, 8], "latent_channels": 4},
    "DAAD": {"channels": [4, 4, 8], "image_size": [32, 32], "division_rates": [2, 2, 1], "num_items": 4},
    "DCAE": {"architecture": "dcgan", "channels": 4, "latent_channels": 8},
    "DDRID": {"channels": 4, "latent_channels": 8},
    "DeepSVDD": {"channels": 4, "latent_channels": 16},
    "GANomaly": {"channels": 4, "latent_channels": 8},
    "ITAE": {"channels": [4, 4, 8, 8, 8]},
    "MemAE": {"channels": [4, 4, 8], "decoder_channels": [4, 4], "num_items": 4},
    "ProxyAno": {"channels": [4, 4, 8], "latent_channels": 4, "num_items": 4},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", AUTOENCODERS)
def test_any_autoencoder_of_the_package_can_be_the_encoder(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    kwargs = AUTOENCODERS[name]
    if name == "DAAD":
        kwargs = {**kwargs, "discriminator": False}
    source = getattr(networks, name)(in_channels=1, **kwargs).eval()
    save_detector(tmp_path, source, ScanPreprocessing((32, 32)), {})
    network = HFRAE(encoder="own", source=own_encoder_source(tmp_path), sigma=1.0).eval()
    fill_encoder(network, own_encoder=tmp_path)
    assert network.encoder_label == "own-encoder"
    image = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        for found, expected in zip(network.encode(image), feature_encoder_of(source)(image), strict=True):
            assert torch.equal(found, expected)
            assert found.std() > 0
        assert network(image).shape == (2, 1, 64, 64)
        torch.testing.assert_close(torch.jit.script(network)(image), network(image), rtol=0, atol=1e-4)
