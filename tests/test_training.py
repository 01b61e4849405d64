"""Training: both stages learn, a killed run goes on to the same weights, foreign checkpoints and NaN are rejected."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.networks.nets import PatchDiscriminator

from monai_anomaly.data import Cohort
from monai_anomaly.engines import (
    DetectorTraining,
    ImageReconstructionTrainer,
    ProxyExtractionTrainer,
    TrainingData,
    load_detector,
    train_stages,
)
from monai_anomaly.exceptions import InputError
from monai_anomaly.io.lock import folder_lock
from monai_anomaly.losses import ImageReconstructionLoss
from monai_anomaly.networks import ProxyAno
from monai_anomaly.transforms import RandPseudoAbnormalProxyd, SmoothPatches

SIZE = 32


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Three small scans of a bright cylinder with texture."""
    folder = tmp_path_factory.mktemp("cohort")
    items = []
    for seed in range(3):
        random = np.random.default_rng(seed)
        volume = np.zeros((SIZE, SIZE, 4), dtype=np.float32)
        volume[4:28, 6:26] = 500 + 100 * np.sin(np.arange(24) / 3)[:, None, None] + random.normal(0, 20, (24, 20, 4))
        path = folder / f"{seed}.nii.gz"
        nib.save(nib.Nifti1Image(volume, np.eye(4)), path)
        items.append({"image": str(path), "case": str(seed), "patient": str(seed), "label": 0, "mask": None})
    return items


class Run:
    """A training as a bundle would wire it, small."""

    def __init__(
        self,
        cohort: list[dict[str, Any]],
        folder: Path,
        epochs: tuple[int, int] = (4, 4),
        seed: int = 5,
        learning_rate: float = 0.005,
        size_range: tuple[float, float] = (0.1, 0.5),
        donors: str = "other",
        loss: ImageReconstructionLoss | None = None,
        handlers: list[Any] | None = None,
        **options: Any,
    ) -> None:
        torch.manual_seed(0)
        self.network = ProxyAno(channels=(4, 8), latent_channels=4, num_items=8, decay=0.6, restart_below=0.3)
        self.discriminator = PatchDiscriminator(spatial_dims=2, in_channels=1, channels=4, num_layers_d=2)
        data = TrainingData(
            Cohort(Path(cohort[0]["image"]).parent, cohort[:2], cohort[2:], []),
            image_size=(SIZE, SIZE),
            proxy=SmoothPatches(8),
            slice_transform=RandPseudoAbnormalProxyd("proxy", size_range=size_range),
            donors=donors,
            batch_size=3,
            progress=False,
        )
        loader, validation = data.train_loader, data.val_loader
        torch.manual_seed(99)  # what a fresh process happens to hold does not matter

        def adam(module: torch.nn.Module) -> torch.optim.Adam:
            return torch.optim.Adam(module.parameters(), lr=learning_rate)

        assert self.network.reconstruction_module is not None
        self.stages = [
            ProxyExtractionTrainer(
                self.network,
                "cpu",
                epochs[0],
                loader,
                adam(self.network.proxy_module),
                val_data_loader=validation,
                train_handlers=handlers,
            ),
            ImageReconstructionTrainer(
                self.network,
                self.discriminator,
                "cpu",
                epochs[1],
                loader,
                adam(self.network.reconstruction_module),
                adam(self.discriminator),
                loss_function=loss,
                val_data_loader=validation,
                train_handlers=handlers,
            ),
        ]
        self.training = DetectorTraining(self.network, self.stages, data, folder, seed=seed, progress=False, **options)

    def go(self) -> Run:
        self.history = self.training.run()
        return self

    def weights(self) -> dict[str, torch.Tensor]:
        both = {"network": self.network, "discriminator": self.discriminator}
        return {f"{name}.{key}": value for name, part in both.items() for key, value in part.state_dict().items()}


class Killer:
    """Stops a run in the middle of an epoch, as a full disk or Ctrl-C would."""

    def __init__(self, stage: str, epoch: int, step: int) -> None:
        self.at = (stage, epoch, step)

    def attach(self, engine: Any) -> None:
        from ignite.engine import Events

        def kill(engine: Any) -> None:
            done = (engine.state.iteration - 1) % engine.state.epoch_length + 1
            if (engine.stage, engine.state.epoch, done) == self.at:
                raise KeyboardInterrupt

        engine.add_event_handler(Events.ITERATION_COMPLETED, kill)


@pytest.fixture(scope="module")
def uninterrupted(cohort: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(cohort, tmp_path_factory.mktemp("whole")).go()


def assert_same(run: Run, other: Run) -> None:
    weights, expected = run.weights(), other.weights()
    assert weights.keys() == expected.keys()
    different = [key for key, value in weights.items() if not torch.equal(value, expected[key])]
    assert not different
    assert run.history == other.history


@pytest.mark.slow
def test_both_stages_learn(uninterrupted: Run) -> None:
    history = uninterrupted.history
    assert [(row["stage"], row["epoch"]) for row in history] == [
        (stage, epoch) for stage in ("proxy extraction", "image reconstruction") for epoch in range(1, 5)
    ]
    assert [row["steps"] for row in history] == [3, 6, 9, 12] * 2  # 8 slices in batches of 3
    for rows in (history[:4], history[4:]):
        assert rows[-1]["train_loss"] < rows[0]["train_loss"]
        assert all(row["val_loss"] > 0 for row in rows)


def test_files_of_a_training(uninterrupted: Run) -> None:
    output = uninterrupted.training.output_dir
    with (output / "training" / "losses.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["train_loss"]) for row in rows] == pytest.approx([r["train_loss"] for r in uninterrupted.history])
    assert (output / "training" / "losses.png").stat().st_size > 1000
    files = load_detector(output / "models")
    assert files.description["training"]["epochs"] == [4, 4]
    assert files.description["calibration_patients"] == 1
    state = files.network.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in uninterrupted.network.state_dict().items())


@pytest.mark.slow
def test_runs_repeat_to_the_bit(cohort: list[dict[str, Any]], tmp_path: Path, uninterrupted: Run) -> None:
    assert_same(Run(cohort, tmp_path).go(), uninterrupted)
    other = Run(cohort, tmp_path / "other", seed=6).go()
    assert not torch.equal(other.network.proxy_module.memory.items, uninterrupted.network.proxy_module.memory.items)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "epoch", "step"),
    [
        ("proxy extraction", 1, 2),
        ("proxy extraction", 3, 2),
        ("image reconstruction", 1, 1),
        ("image reconstruction", 3, 3),
    ],
)
def test_killed_in_an_epoch_and_resumed(
    cohort: list[dict[str, Any]], tmp_path: Path, uninterrupted: Run, stage: str, epoch: int, step: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        Run(cohort, tmp_path, handlers=[Killer(stage, epoch, step)]).go()
    assert not (tmp_path / "models").exists()
    resumed = Run(cohort, tmp_path)
    ran: list[tuple[str, int]] = []
    for trainer in resumed.stages:
        step_of = trainer.training_step

        def counted(batch: Any, trainer: Any = trainer, step_of: Callable = step_of) -> Any:
            ran.append((trainer.stage, trainer.state.epoch))
            return step_of(batch)

        trainer.training_step = counted
    assert_same(resumed.go(), uninterrupted)
    # only what the checkpoint did not hold was done again
    assert ran[0] == (stage, epoch)
    assert len(ran) == 3 * ((4 - epoch + 1) + (4 if stage == "proxy extraction" else 0))


@pytest.mark.slow
def test_killed_between_checkpoints(cohort: list[dict[str, Any]], tmp_path: Path, uninterrupted: Run) -> None:
    with pytest.raises(KeyboardInterrupt):
        Run(cohort, tmp_path, save_interval=3, handlers=[Killer("proxy extraction", 3, 1)]).go()
    assert not (tmp_path / "training" / "checkpoint.pt").exists()
    with pytest.raises(KeyboardInterrupt):
        Run(cohort, tmp_path, save_interval=3, handlers=[Killer("image reconstruction", 2, 1)]).go()
    # the end of a stage is always kept
    saved = torch.load(tmp_path / "training" / "checkpoint.pt", weights_only=True)
    assert (saved["stage"], saved["epoch"]) == (0, 4)
    assert_same(Run(cohort, tmp_path, save_interval=3).go(), uninterrupted)


@pytest.mark.slow
def test_more_epochs_go_on_from_fewer(cohort: list[dict[str, Any]], tmp_path: Path, uninterrupted: Run) -> None:
    for epochs in ((2, 0), (4, 0), (4, 3), (4, 4), (4, 4)):
        run = Run(cohort, tmp_path, epochs=epochs).go()
    assert_same(run, uninterrupted)
    assert load_detector(tmp_path / "models").description["training"]["epochs"] == [4, 4]


@pytest.mark.parametrize(("epochs", "stage"), [((4, 3), "image"), ((3, 4), "proxy"), ((5, 4), "proxy")])
def test_epochs_that_the_checkpoint_cannot_give(
    cohort: list[dict[str, Any]], uninterrupted: Run, epochs: tuple[int, int], stage: str
) -> None:
    run = Run(cohort, uninterrupted.training.output_dir, epochs=epochs)
    before = {key: value.clone() for key, value in uninterrupted.weights().items()}
    with pytest.raises(InputError, match=rf"checkpoint\.pt: the stage '{stage}.*' there has 4 epochs"):
        run.go()
    saved = torch.load(uninterrupted.training.output_dir / "training" / "checkpoint.pt", weights_only=True)
    assert all(
        torch.equal(value, before[f"network.{key}"])
        for key, value in saved["network"].items()
        if "cal" not in key and "statistics" not in key
    )


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 6},
        {"learning_rate": 0.001},
        {"size_range": (0.1, 0.4)},
        {"donors": "same"},
        {"loss": ImageReconstructionLoss(lambda_local=0.4)},
        {"loss": ImageReconstructionLoss(saturating=False)},
        {"loss": ImageReconstructionLoss(reduction="sum")},
    ],
    ids=["seed", "learning rate", "patch size", "donors", "weight", "adversarial form", "reduction"],
)
def test_checkpoint_of_other_settings_is_refused(
    cohort: list[dict[str, Any]], uninterrupted: Run, other: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match=r"checkpoint\.pt: .*other settings or other data.*--resume False"):
        Run(cohort, uninterrupted.training.output_dir, **other).go()


def test_checkpoint_of_other_data_is_refused(cohort: list[dict[str, Any]], uninterrupted: Run) -> None:
    with pytest.raises(InputError, match="other settings or other data"):
        Run([cohort[0], cohort[2], cohort[1]], uninterrupted.training.output_dir).go()


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"broken"])
def test_unreadable_checkpoint(cohort: list[dict[str, Any]], tmp_path: Path, content: bytes) -> None:
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "checkpoint.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"checkpoint\.pt: the training checkpoint cannot be read"):
        Run(cohort, tmp_path, epochs=(1, 1)).go()
    started_anew = Run(cohort, tmp_path, epochs=(1, 1), resume=False).go()
    assert len(started_anew.history) == 2


class Poison:
    """Makes a weight NaN after an epoch."""

    def __init__(self, stage: str) -> None:
        self.stage = stage

    def attach(self, engine: Any) -> None:
        from ignite.engine import Events

        def poison(engine: Any) -> None:
            if engine.stage == self.stage:
                next(iter(engine.optimizer.param_groups[0]["params"])).data.fill_(float("nan"))

        engine.add_event_handler(Events.EPOCH_STARTED(once=2), poison)


@pytest.mark.parametrize("stage", ["proxy extraction", "image reconstruction"])
def test_a_loss_that_is_not_finite_is_refused(cohort: list[dict[str, Any]], tmp_path: Path, stage: str) -> None:
    with pytest.raises(InputError, match=f"^{stage}: the loss is not finite in epoch 2"):
        Run(cohort, tmp_path, epochs=(2, 2), handlers=[Poison(stage)]).go()
    assert not (tmp_path / "models").exists()
    saved = torch.load(tmp_path / "training" / "checkpoint.pt", weights_only=True)
    assert all(value.isfinite().all() for value in saved["network"].values())  # of the last sound epoch


@pytest.mark.slow
def test_the_first_module_is_frozen_in_the_second_stage(cohort: list[dict[str, Any]], tmp_path: Path) -> None:
    run = Run(cohort, tmp_path, epochs=(1, 0)).go()
    before = {key: value.clone() for key, value in run.network.proxy_module.state_dict().items()}
    moved = {key: value.clone() for key, value in run.network.reconstruction_module.state_dict().items()}
    run = Run(cohort, tmp_path, epochs=(1, 1)).go()
    assert all(torch.equal(value, before[key]) for key, value in run.network.proxy_module.state_dict().items())
    after = run.network.reconstruction_module.state_dict()
    assert not any(torch.equal(value, moved[key]) for key, value in after.items() if key.endswith("conv.weight"))


def test_scans_with_other_channels_than_the_network(cohort: list[dict[str, Any]], tmp_path: Path) -> None:
    run = Run(cohort, tmp_path)
    with pytest.raises(InputError, match=r"1 channel\(s\), the network takes 3.*--in_channels 1"):
        DetectorTraining(ProxyAno(in_channels=3, channels=(4,)), [], run.training.data, tmp_path)


@pytest.mark.slow
def test_bad_scans_end_the_training_with_their_names(cohort: list[dict[str, Any]], tmp_path: Path) -> None:
    bad = {**cohort[2], "image": str(tmp_path / "gone.nii.gz"), "case": "gone"}
    run = Run([*cohort[:2], cohort[2], bad], tmp_path / "out", epochs=(1, 1)).go()
    with pytest.raises(SystemExit, match="gone"):
        run.training.finish()
    assert "gone" in (tmp_path / "out" / "training" / "failures.csv").read_text()
    # the detector is there all the same, from the scans that could be read
    assert load_detector(tmp_path / "out" / "models").description["calibration_patients"] == 1


def test_two_trainings_do_not_share_a_folder(cohort: list[dict[str, Any]], tmp_path: Path) -> None:
    with folder_lock(tmp_path / "out" / "training"), pytest.raises(InputError, match=f"process {os.getpid()} on "):
        Run(cohort, tmp_path / "out").go()
    assert not (tmp_path / "out" / "models").exists()


def test_second_stage_needs_a_second_module(cohort: list[dict[str, Any]], tmp_path: Path) -> None:
    run = Run(cohort, tmp_path)
    single = ProxyAno(channels=(4, 8), latent_channels=4, bridge=False)
    optimizer = torch.optim.Adam(single.parameters())
    loader = run.stages[0].data_loader
    with pytest.raises(ValueError, match="no second stage"):
        ImageReconstructionTrainer(single, run.discriminator, "cpu", 1, loader, optimizer, optimizer)
    with pytest.raises(ValueError, match="paste_on"):
        ImageReconstructionTrainer(
            run.network, run.discriminator, "cpu", 1, loader, optimizer, optimizer, paste_on="image"
        )
    # which alone is trained from image to image by the first
    trainer = ProxyExtractionTrainer(single, "cpu", 2, loader, optimizer)
    history = train_stages([trainer], single, tmp_path / "single", progress=False)
    assert history[1]["train_loss"] < history[0]["train_loss"]
    assert json.loads(json.dumps(history)) == history


@pytest.mark.parametrize("paste_on", ["proxy", "predicted"])
@pytest.mark.parametrize("repair", [True, False])
def test_what_the_second_module_is_shown(
    cohort: list[dict[str, Any]], tmp_path: Path, paste_on: str, repair: bool
) -> None:
    run = Run(cohort, tmp_path)
    network = run.network
    trainer = ImageReconstructionTrainer(
        network,
        run.discriminator,
        "cpu",
        1,
        run.stages[0].data_loader,
        run.stages[1].optimizer,
        run.stages[1].discriminator_optimizer,
        repair=repair,
        paste_on=paste_on,
    )
    batch = next(iter(run.stages[0].data_loader))
    with torch.no_grad():
        predicted = network.eval().proxy_module(batch["image"])[0]
    seen: list[torch.Tensor] = []
    network.reconstruction_module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    trainer.training_step(batch)
    (shown,) = seen
    if not repair:
        assert torch.equal(shown, predicted)
        return
    mask = batch["paste_mask"].bool()
    ground = batch["proxy"] if paste_on == "proxy" else predicted
    assert torch.equal(shown[:3], predicted)
    assert torch.equal(shown[3:], torch.where(mask, batch["pseudo_proxy"], ground))
