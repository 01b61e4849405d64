"""DCAE and Deep SVDD: architectures, objectives, centre, radius, both stages, export, refusals."""

from __future__ import annotations

import copy
import inspect
import itertools
import json
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
from monai_anomaly.engines import DCAETrainer, DeepSVDDTrainer, StageTrainer, train_stages
from monai_anomaly.engines.ddrid import mean_latent
from monai_anomaly.losses import OneClassLoss, SoftBoundaryLoss
from monai_anomaly.networks import DCAE, AnomalyDetector, DeepSVDD
from monai_anomaly.networks.blocks import LeNetDecoder, LeNetEncoder, lenet_widths

SMALL: dict[str, Any] = {"channels": 4, "latent_channels": 16}
KINDS: dict[str, type[DCAE] | type[DeepSVDD]] = {"DCAE": DCAE, "DeepSVDD": DeepSVDD}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "DCAE": ("DCAE", {}),
    "DCAE, MNIST's size": ("DCAE", {"image_size": 28}),
    "DCAE, DDR-ID's networks": ("DCAE", {"architecture": "dcgan", "output_activation": "tanh", "in_channels": 3}),
    "one-class": ("DeepSVDD", {}),
    "one-class, larger": ("DeepSVDD", {"image_size": [64, 64], "distance": "euclidean"}),
    "soft-boundary": ("DeepSVDD", {"objective": "soft-boundary", "in_channels": 2}),
    "soft-boundary, Euclidean": ("DeepSVDD", {"objective": "soft-boundary", "distance": "euclidean"}),
    "one-class, DDR-ID's networks": ("DeepSVDD", {"architecture": "dcgan", "image_size": 28}),
}


def small(name: str, **more: Any) -> Any:
    kind, kwargs = VARIANTS[name]
    torch.manual_seed(0)
    detector = KINDS[kind](**{**SMALL, **kwargs, **more})
    detector.normalisation.lower.fill_(-2.0)
    detector.normalisation.upper.fill_(3.0)
    if isinstance(detector, DeepSVDD):
        detector.centre.copy_(torch.randn(detector.centre.shape))
        if detector.soft_boundary:
            detector.radius.fill_(0.7)
    return detector.eval()


def image_for(detector: Any, batch: int = 2) -> Tensor:
    return torch.rand(batch, detector.in_channels, detector.image_side, detector.image_side)


# Architectures


@pytest.mark.parametrize(
    ("size", "colours", "widths", "latent"), [(28, 1, [8, 4], 32), (32, 3, [32, 64, 128], 128)]
)  # Ruff et al., section 4.2
def test_lenet_of_ruff_et_al(size: int, colours: int, widths: list[int], latent: int) -> None:
    assert lenet_widths(size) == widths
    detector = DCAE(in_channels=colours, image_size=size)
    encoder = detector.autoencoder.encoder
    x, before, side = torch.rand(1, colours, size, size), colours, size
    for i, width in enumerate(widths):
        module, pool = encoder.convolutions[2 * i], encoder.convolutions[2 * i + 1]
        assert module.conv.weight.shape == (width, before, 5, 5)
        assert [type(m) for m in module.adn] == [nn.BatchNorm2d, nn.LeakyReLU]
        assert module.adn.A.negative_slope == 0.1
        assert pool.kernel_size == 2
        side //= 2
        x = pool(module(x))
        assert x.shape == (1, width, side, side)
        before = width
    assert encoder.to_latent.weight.shape == (latent, widths[-1] * side * side)
    # no biases, and batch normalisation without shift: the weights are all there is
    count = sum(25 * a * b for a, b in zip([colours, *widths], widths)) + latent * widths[-1] * side * side
    assert sum(p.numel() for p in encoder.parameters()) == count
    decoder = detector.autoencoder.decoder
    assert decoder(torch.rand(2, latent)).shape == (2, colours, size, size)
    mirror = [latent // 16, *widths[::-1], colours]
    assert sum(p.numel() for p in decoder.parameters()) == sum(25 * a * b for a, b in itertools.pairwise(mirror))


@pytest.mark.parametrize(("size", "extra"), [(64, 1), (128, 2), (256, 3)])
def test_larger_sizes_get_modules_of_128(size: int, extra: int) -> None:
    assert lenet_widths(size) == [32, 64, 128] + [128] * extra
    encoder = LeNetEncoder(1, size, 1, 16)
    assert encoder.to_latent.in_features == 4 * 4 * 4
    assert LeNetDecoder(1, size, 1, 16)(encoder(torch.rand(2, 1, size, size))).shape == (2, 1, size, size)


@pytest.mark.parametrize("architecture", ["lenet", "dcgan"])
def test_the_encoder_has_no_bias(architecture: str) -> None:
    detector = DeepSVDD(architecture=architecture, channels=4, latent_channels=16)
    assert all(p.ndim > 1 for p in detector.encoder.parameters())
    with torch.no_grad():
        # so that nothing maps everything on one point: a black image stays at the origin
        assert torch.equal(detector.encoder(torch.zeros(2, 1, 32, 32)), torch.zeros(2, 16))


def test_both_architectures_have_their_own_widths() -> None:
    assert DeepSVDD().centre.shape == (128,)
    assert DeepSVDD(image_size=28).centre.shape == (32,)
    assert DeepSVDD(architecture="dcgan").centre.shape == (512,)
    assert DeepSVDD(architecture="dcgan", image_size=28).centre.shape == (128,)


# Objectives


def squared_norm(a: np.ndarray) -> float:
    return float(sum(v * v for v in a.ravel().tolist()))


@pytest.mark.parametrize("nu", [0.05, 0.5, 1.0])
def test_soft_boundary_is_equation_3_of_ruff_et_al(nu: float) -> None:
    random = np.random.default_rng(0)
    z, centre, radius = random.normal(size=(6, 3)), random.normal(size=3), 1.5
    expected = radius**2 + sum(max(0.0, squared_norm(v - centre) - radius**2) for v in z) / (nu * 6)
    loss = SoftBoundaryLoss(nu)(torch.from_numpy(z), torch.from_numpy(centre), torch.tensor(radius))
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_one_class_is_equation_4_of_ruff_et_al() -> None:
    random = np.random.default_rng(1)
    z, centre = random.normal(size=(6, 3)), random.normal(size=3)
    expected = sum(squared_norm(v - centre) for v in z) / 6
    assert float(OneClassLoss()(torch.from_numpy(z), torch.from_numpy(centre))) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("nu", [0.05, 0.2])
def test_the_radius_minimises_the_objective(nu: float) -> None:
    detector = DeepSVDD(**SMALL, objective="soft-boundary", nu=nu)
    z = torch.from_numpy(np.random.default_rng(2).normal(size=(101, 16)))
    squared = ((z - detector.centre) ** 2).sum(dim=1)
    detector.set_radius(squared)

    def objective(radius: float) -> float:
        return radius**2 + sum(max(0.0, float(d) - radius**2) for d in squared) / (nu * 101)

    best = min(objective(float(r)) for r in np.linspace(0, 8, 2001))
    assert objective(float(detector.radius)) <= best + 1e-3
    assert float((squared.sqrt() > detector.radius * (1 + 1e-6)).double().mean()) <= nu


@pytest.mark.parametrize("margin", [0.1, 0.0])
def test_a_margin_keeps_the_centre_from_zero(margin: float) -> None:
    z = torch.tensor([[0.3, -0.04, 0.0, -0.2, 0.02], [0.5, -0.02, 0.0, -0.6, 0.06]])
    mean = [0.4, -0.03, 0.0, -0.4, 0.04]
    expected = [v if abs(v) >= margin else (-margin if v < 0 else margin) for v in mean]
    centre = mean_latent(iter([z[:1], z[1:]]), margin)
    np.testing.assert_allclose(centre.numpy(), expected, rtol=1e-6, atol=1e-7)


# Scores and maps


@pytest.mark.parametrize("name", VARIANTS)
def test_scores_and_maps(name: str) -> None:
    detector = small(name)
    image = image_for(detector)
    with torch.no_grad():
        output = detector.detect(image)
        x, offset, scale = detector.normalise(image)
        reconstruction = detector.autoencoder(x)[0]
        z = detector.encoder(x).double().numpy() if isinstance(detector, DeepSVDD) else None
        assert torch.equal(detector(image), output.anomaly_map)
    torch.testing.assert_close(output.restoration, reconstruction * scale + offset)
    torch.testing.assert_close(x * scale + offset, image)
    for b in range(len(image)):
        error = (x[b].double().numpy() - reconstruction[b].double().numpy()) ** 2
        expected_map = sum(error[c] for c in range(len(error))) / len(error)
        np.testing.assert_allclose(output.anomaly_map[b, 0].numpy(), expected_map, rtol=1e-4, atol=1e-7)
        if z is None:
            score = error.sum()
        elif detector.squared:
            score = squared_norm(z[b] - detector.centre.double().numpy()) - float(detector.radius) ** 2
        else:
            score = squared_norm(z[b] - detector.centre.double().numpy()) ** 0.5 - float(detector.radius)
        assert float(output.anomaly_score[b]) == pytest.approx(score, rel=1e-4, abs=1e-5)


def test_the_radius_is_fitted_on_the_training_normals() -> None:
    detector = small("soft-boundary")
    batches = [torch.rand(3, 2, 32, 32), torch.rand(4, 2, 32, 32)]
    with torch.no_grad():
        detector.fit_statistics(batches, [])
        distances = [
            squared_norm(detector.encoder(detector.normalise(image[None])[0])[0].double().numpy() - c) ** 0.5
            for c in [detector.centre.double().numpy()]
            for batch in batches
            for image in batch
        ]
    assert float(detector.radius) == pytest.approx(np.quantile(distances, 0.95), rel=1e-4)
    with pytest.raises(ValueError, match="training normals"):
        detector.fit_statistics([], [])
    other = small("one-class")
    other.fit_statistics([], [])
    assert float(other.radius) == 0.0
    assert not other.needs_held_out


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
    def __init__(
        self,
        network: AnomalyDetector | None = None,
        epochs: tuple[int, int] = (6, 8),
        handlers: list[Any] | None = None,
    ) -> None:
        torch.manual_seed(0)
        self.network: Any = network or DeepSVDD(**SMALL, objective="soft-boundary", nu=0.2)
        loader = DataLoader(Images(17, 0), batch_size=4, shuffle=True)
        validation = DataLoader(Images(3, 1), batch_size=2)
        first = torch.optim.Adam(self.network.autoencoder.parameters(), lr=0.01, weight_decay=1e-6)
        self.stages: list[StageTrainer] = [
            DCAETrainer(
                self.network,
                "cpu",
                epochs[0],
                loader,
                first,
                val_data_loader=validation,
                lr_schedulers=[MultiStepLR(first, [4], 0.1)],
                train_handlers=handlers,
            )
        ]
        if isinstance(self.network, DeepSVDD):
            second = torch.optim.Adam(self.network.encoder.parameters(), lr=0.002, weight_decay=1e-6)
            self.stages.append(
                DeepSVDDTrainer(
                    self.network,
                    "cpu",
                    epochs[1],
                    loader,
                    second,
                    radius_interval=2,
                    warm_up_epochs=3,
                    val_data_loader=validation,
                    lr_schedulers=[MultiStepLR(second, [4], 0.1)],
                    train_handlers=handlers,
                )
            )

    def go(self, folder: Path) -> Run:
        self.history = train_stages(self.stages, self.network, folder, seed=3, progress=False)
        return self


class Watch:
    """Keeps the radius of each epoch; stops a run in the middle of an epoch where asked."""

    def __init__(self, stage: str = "", epoch: int = 0) -> None:
        self.at = (stage, epoch)
        self.radii: list[float] = []

    def attach(self, engine: Any) -> None:
        from ignite.engine import Events

        def look(engine: Any) -> None:
            if (engine.stage, engine.state.epoch) == self.at:
                raise KeyboardInterrupt
            if engine.stage == "hypersphere" and engine.state.iteration % engine.state.epoch_length == 0:
                self.radii.append(float(engine.network.radius))

        engine.add_event_handler(Events.ITERATION_COMPLETED, look)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run().go(tmp_path_factory.mktemp("whole"))


@pytest.mark.slow
def test_both_stages_learn(trained: Run, tmp_path: Path) -> None:
    one_class = Run(DeepSVDD(**SMALL)).go(tmp_path)
    for run, stage in ((trained, "autoencoder"), (one_class, "autoencoder"), (one_class, "hypersphere")):
        rows = [row for row in run.history if row["stage"] == stage]
        for key in ("train_loss", "val_loss"):
            assert rows[-1][key] < 0.9 * rows[0][key], (stage, key)
    assert float(one_class.network.radius) == 0.0
    assert trained.stages[1].optimizers["optimizer"].param_groups[0]["lr"] == pytest.approx(0.0002)


@pytest.mark.slow
def test_the_radius_is_searched_after_the_warm_up_at_its_interval(tmp_path: Path) -> None:
    watch = Watch()
    run = Run(handlers=[watch]).go(tmp_path)
    radii = [*watch.radii, float(run.network.radius)]  # at the ends of epochs 1 to 8, before and after the last search
    assert radii[:3] == [0.0] * 3
    assert radii[3] > 0.0
    changes = [epoch for epoch in range(1, 9) if radii[epoch] != radii[epoch - 1]]
    assert changes == [3, 5, 7]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["autoencoder", "hypersphere"])
def test_a_killed_run_goes_on_to_the_same_weights(stage: str, trained: Run, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Run(handlers=[Watch(stage, 5)]).go(tmp_path)
    again = Run().go(tmp_path)
    expected = trained.network.state_dict()
    assert not [key for key, value in again.network.state_dict().items() if not torch.equal(value, expected[key])]
    assert again.history == trained.history


@pytest.mark.slow
def test_the_second_stage_starts_from_the_autoencoder_and_leaves_it(trained: Run) -> None:
    run = Run(epochs=(1, 1))
    trainer = run.stages[1]
    trainer.prepare()
    pretrained = run.network.autoencoder.encoder.state_dict()
    assert all(torch.equal(value, pretrained[key]) for key, value in run.network.encoder.state_dict().items())
    images = torch.from_numpy(Images(17, 0).images)[:, None]
    with torch.no_grad():
        latent = run.network.encoder(run.network.eval().normalise(images)[0]).double().numpy()
    mean = [sum(float(z[d]) for z in latent) / 17 for d in range(16)]
    expected = [v if abs(v) >= 0.1 else (-0.1 if v < 0 else 0.1) for v in mean]
    np.testing.assert_allclose(run.network.centre.numpy(), expected, rtol=1e-4, atol=1e-6)
    before = copy.deepcopy(run.network.state_dict())
    for _ in range(2):
        trainer.training_step({"image": images})
    changed = {key for key, value in run.network.state_dict().items() if not torch.equal(value, before[key])}
    assert changed
    assert all(key.startswith("encoder.") for key in changed)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DCAE", "soft-boundary"])
def test_an_anomaly_scores_higher_than_a_normal(name: str, trained: Run, tmp_path: Path) -> None:
    network = trained.network if name == "soft-boundary" else Run(DCAE(**SMALL)).go(tmp_path).network
    normals = torch.from_numpy(Images(4, 2).images)[:, None]
    with torch.no_grad():
        output = network.eval().detect(torch.cat([normals, 1.0 - normals]))
    assert output.anomaly_score[:4].max() < output.anomaly_score[4:].min()
    maps = output.anomaly_map.flatten(1).mean(dim=1)
    assert maps[:4].max() < maps[4:].min()


def test_trainer_refuses_an_interval_of_nothing() -> None:
    network = DeepSVDD(**SMALL)
    optimizer = torch.optim.Adam(network.encoder.parameters())
    with pytest.raises(ValueError, match="radius_interval"):
        DeepSVDDTrainer(network, "cpu", 1, DataLoader(Images(2, 0)), optimizer, radius_interval=0)


# Files, export, refusals


@pytest.mark.parametrize("name", VARIANTS)
def test_configuration_and_state_are_the_whole_detector(name: str, tmp_path: Path) -> None:
    detector = small(name)
    config = json.loads(json.dumps(detector.config))
    torch.save(detector.state_dict(), tmp_path / "state.pt")
    again = getattr(networks, config["name"])(**config["arguments"]).eval()
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    image = image_for(detector)
    with torch.no_grad():
        for one, two in zip(detector.detect(image), again.detect(image)):
            assert torch.equal(one, two)
    assert list(config["arguments"]) == list(inspect.signature(type(detector).__init__).parameters)[1:]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DCAE, DDR-ID's networks", "soft-boundary, Euclidean"])
def test_torchscript_is_the_eager_network(name: str, tmp_path: Path) -> None:
    detector = small(name)
    torch.jit.save(torch.jit.script(detector), tmp_path / "model.ts")
    scripted = torch.jit.load(tmp_path / "model.ts")
    image = image_for(detector)
    with torch.no_grad():
        for _ in range(2):  # the second run is the optimised one
            torch.testing.assert_close(scripted(image), detector(image), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one-class, larger"])
def test_onnx_is_the_eager_network(name: str, tmp_path: Path) -> None:
    detector = small(name)
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


@pytest.mark.parametrize("name", ["DCAE", "one-class"])
@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 3, 32, 32), "1 input channel"), ((1, 1, 30, 32), "multiples of 32"), ((1, 1, 64, 64), r"\[32, 32\]")],
)
def test_unfit_input_is_refused(name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(name)(torch.zeros(shape))


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("DCAE", {"spatial_dims": 3}, "spatial_dims"),
        ("one-class", {"spatial_dims": 3}, "spatial_dims"),
        ("DCAE", {"architecture": "resnet"}, "architecture"),
        ("DCAE", {"image_size": [32, 28]}, "square"),
        ("DCAE", {"image_size": 40}, "image_size"),
        ("DCAE", {"latent_channels": 10}, "multiple of 16"),
        ("one-class", {"objective": "two-class"}, "objective"),
        ("one-class", {"nu": 0.0}, "nu"),
        ("one-class", {"distance": "cosine"}, "distance"),
    ],
)
def test_unknown_settings_are_refused(name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(name, **kwargs)


def test_the_loss_refuses_an_impossible_share() -> None:
    with pytest.raises(ValueError, match="nu"):
        SoftBoundaryLoss(0.0)
