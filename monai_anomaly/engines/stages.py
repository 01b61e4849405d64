"""Training as a list of stages, each a MONAI trainer; resumable to the same weights."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Events
from monai.data import MetaTensor
from monai.engines import Trainer, Workflow
from monai.utils import CommonKeys
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from monai_anomaly.exceptions import InputError
from monai_anomaly.io.atomic import atomic_path
from monai_anomaly.io.tables import write_csv
from monai_anomaly.networks import AnomalyDetector
from monai_anomaly.report.plots import draw_loss_curves

from .selection import SyntheticLesionSelection

__all__ = ["StageTrainer", "distributed", "first_process", "still_improving", "sum_over_processes", "train_stages"]


def first_process() -> bool:
    """Whether this is the process that writes."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


class StageTrainer(Trainer, ABC):
    """One stage of a detector's training; a method states ``training_step`` and ``validation_loss``.

    Args:
        network: the detector.
        device: where the stage runs.
        max_epochs: epochs of this stage.
        train_data_loader: batches, dictionaries of tensors.
        optimizers: by name; what they hold is checkpointed.
        modules: by name, further networks of this stage (a discriminator); checkpointed too.
        val_data_loader: held-out normals for the validation loss; watched only: nothing is chosen by that loss.
        amp: mixed precision on a GPU.
        train_handlers: MONAI or ignite handlers.
        lr_schedulers: each is stepped after every epoch; checkpointed.
    """

    stage = "training"

    def __init__(
        self,
        network: AnomalyDetector,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: DataLoader,
        optimizers: dict[str, Optimizer],
        modules: dict[str, nn.Module] | None = None,
        val_data_loader: DataLoader | None = None,
        amp: bool = False,
        train_handlers: Sequence[Any] | None = None,
        lr_schedulers: Sequence[LRScheduler] = (),
    ) -> None:
        self.network = network
        self.optimizers = dict(optimizers)
        self.lr_schedulers = list(lr_schedulers)
        self.modules = dict(modules or {})
        self.val_data_loader = val_data_loader
        # Handlers attach before the stage is known to be run or skipped, which does them no harm.
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            data_loader=train_data_loader,
            amp=amp and torch.device(device).type == "cuda",
            handlers=train_handlers,
            decollate=False,
        )
        # Made here and not at the run's start as MONAI does, so that a checkpoint can bring its scale back.
        self.scaler = torch.amp.GradScaler("cuda") if self.amp else None

    def run(self) -> None:
        """Run the epochs that are left."""
        Workflow.run(self)

    def prepare(self) -> None:
        """Before the first step of the stage, and not when a killed run goes on; what it sets is in buffers."""

    def choices(self) -> dict[str, Any]:
        """What the stage chose for itself, JSON-able, for the detector's description and the report."""
        return {}

    def epoch_completed(self, epoch: int) -> None:
        """After the last step of an epoch, before its validation loss and its checkpoint.

        Args:
            epoch: counted from one.
        """

    @abstractmethod
    def training_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """One optimiser step.

        Args:
            batch: tensors on the stage's device.

        Returns:
            Scalars: ``loss`` is the whole objective; ``error``, where they differ, what ``validation_loss`` measures.
        """

    @abstractmethod
    def validation_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """The mean error of a batch of held-out normals, a scalar, with the network in eval mode."""

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> list[dict[str, Any]]:
        batch = self.to_device(batchdata)
        losses = self.training_step(batch)
        losses.setdefault("error", losses["loss"])
        if not torch.isfinite(losses["loss"]):
            raise InputError(
                self.stage,
                f"the loss is not finite in epoch {engine.state.epoch}",
                "Lower the learning rate or switch amp off.",
            )
        # A list of one, as MONAI's handlers expect of a decollated output.
        return [{name: value.detach() for name, value in losses.items()}]

    def to_device(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The tensors of a batch on the stage's device, plain ones: a MetaTensor slows every operation down."""
        device = self.state.device
        tensors = {k: v for k, v in batch.items() if isinstance(v, Tensor)}
        return {
            k: (v.as_tensor() if isinstance(v, MetaTensor) else v).to(device, non_blocking=self.non_blocking)
            for k, v in tensors.items()
        }

    def autocast(self) -> torch.autocast:
        """The context that a forward pass of this stage runs in."""
        return torch.autocast(self.state.device.type, enabled=self.amp)

    def optimise(self, optimizer: Optimizer, loss: Tensor) -> None:
        """Backward pass and step, scaled under mixed precision."""
        optimizer.zero_grad(set_to_none=True)
        if self.scaler is None:
            loss.backward()
            optimizer.step()
        else:
            self.scaler.scale(loss).backward()
            self.scaler.step(optimizer)
            self.scaler.update()

    def _parts(self) -> dict[str, Any]:
        scaler = {} if self.scaler is None else {"scaler": self.scaler}
        schedulers = {f"lr_scheduler_{i}": scheduler for i, scheduler in enumerate(self.lr_schedulers)}
        return {**self.optimizers, **self.modules, **scaler, **schedulers}

    def state_to_save(self) -> dict[str, dict[str, Any]]:
        """What this stage needs besides the detector to go on."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_saved_state(self, state: dict[str, dict[str, Any]]) -> None:
        """Take up what ``state_to_save`` gave."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    @torch.no_grad()
    def mean_validation_loss(self) -> float | None:
        """The validation loss over all held-out slices, or None without any."""
        if self.val_data_loader is None:
            return None
        self.network.eval()
        total, count = 0.0, 0
        for batchdata in self.val_data_loader:
            batch = self.to_device(batchdata)
            size = len(batch["image"])
            total += float(self.validation_loss(batch)) * size
            count += size
        return total / count if count else None


def distributed(module: nn.Module) -> nn.Module:
    """The module, wrapped for gradients averaged over the processes where there are several."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        # Each process keeps its own batch statistics; the first one's are saved.
        return DistributedDataParallel(module, broadcast_buffers=False)
    return module


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes, in place; the tensor itself where there is one process."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def train_stages(
    stages: Sequence[StageTrainer],
    network: AnomalyDetector,
    folder: str | Path,
    *,
    seed: int = 0,
    identity: dict[str, Any] | None = None,
    resume: bool = True,
    save_interval: int = 1,
    val_interval: int = 1,
    selection: SyntheticLesionSelection | None = None,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Run the stages in order, keep their loss curves, and resume from the last checkpoint after a kill.

    The random numbers of an epoch follow from the seed and the epoch alone, so that a run that was killed and resumed
    ends with the weights of one that was not.

    Args:
        stages: in order.
        network: the detector that they train.
        folder: for ``checkpoint.pt``, ``losses.csv`` and ``losses.png``.
        seed: of the whole run.
        identity: what makes this run this run (settings, hashes of the data); a checkpoint of another is rejected.
        resume: take up a checkpoint that is there; False starts anew.
        save_interval: epochs between checkpoints.
        val_interval: epochs between validation losses; the last epoch of a stage always has one.
        selection: chooses among the states after every ``val_interval`` epochs of the last stage, and after its last;
            the network ends with the chosen one. None: it ends with the last.
        progress: show a progress bar.

    Returns:
        The history: rows ``stage, epoch, steps, train_loss, val_loss, objective``.

    Raises:
        InputError: if no stage has an epoch; if the checkpoint there is of another run, has a stage that was trained
            for more epochs than asked for or that was left behind with fewer, or cannot be read.
    """
    if stages and all(stage.state.max_epochs < 1 for stage in stages):
        raise InputError("--max_epochs", "no stage has an epoch to train", "Pass 1 or more.")
    folder = Path(folder)
    fingerprint = hashlib.sha256(json.dumps(identity or {}, sort_keys=True, default=str).encode()).hexdigest()
    run = _StagedRun(list(stages), network, folder, seed, fingerprint, save_interval, val_interval, selection, progress)
    if resume:
        run.load()
    run.go()
    return run.history


def still_improving(history: Sequence[dict[str, Any]], share: float = 0.2, least: float = 0.02) -> list[str]:
    """The stages that were stopped while they still improved: under-trained ones.

    Args:
        history: what ``train_stages`` returns.
        share: of a stage's losses, at its end, that are compared with as many before them (at least one).
        least: relative fall of the mean loss (of the validation, where it was measured four times) that counts.

    Returns:
        The stages' names, in order.
    """
    names = list(dict.fromkeys(row["stage"] for row in history))
    improving = []
    for name in names:
        rows = [row for row in history if row["stage"] == name]
        losses = [row["val_loss"] for row in rows if row["val_loss"] is not None]
        if len(losses) < 4:  # too few to see a trend
            losses = [row["train_loss"] for row in rows]
        width = max(1, round(share * len(losses)))
        last, before = losses[-width:], losses[-2 * width : -width]
        if before:
            now, then = sum(last) / len(last), sum(before) / len(before)
        # a likelihood's loss may be negative
        if not before or now < then - least * abs(then):
            improving.append(name)
    return improving


class _StagedRun:
    def __init__(
        self,
        stages: list[StageTrainer],
        network: AnomalyDetector,
        folder: Path,
        seed: int,
        fingerprint: str,
        save_interval: int,
        val_interval: int,
        selection: SyntheticLesionSelection | None,
        progress: bool,
    ) -> None:
        self.selection = selection
        self.stages, self.network, self.folder = stages, network, folder
        self.seed, self.fingerprint, self.progress = seed, fingerprint, progress
        self.save_interval, self.val_interval = save_interval, val_interval
        self.checkpoint = folder / "checkpoint.pt"
        self.history: list[dict[str, Any]] = []
        self.first_stage, self.first_epoch = 0, 0

    def load(self) -> None:
        if not self.checkpoint.is_file():
            return
        try:
            saved = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            if saved["fingerprint"] != self.fingerprint:
                raise InputError(
                    self.checkpoint,
                    "the checkpoint there belongs to a run with other settings or other data",
                    "Choose another output_dir, or start anew with --resume False.",
                )
            self.network.load_state_dict(saved["network"])
            self.first_stage, self.first_epoch = saved["stage"], saved["epoch"]
            self._refuse_other_epochs(saved["max_epochs"])
            self.stages[self.first_stage].load_saved_state(saved["state"])
            self.history = [dict(row) for row in saved["history"]]
            if self.selection is not None:
                self.selection.load_saved_state(saved["selection"])
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                self.checkpoint,
                f"the training checkpoint cannot be read ({type(error).__name__})",
                "Delete it to start anew, or pass --resume False.",
            ) from error

    def _refuse_other_epochs(self, max_epochs: list[int]) -> None:
        """Only the stage that the checkpoint is in can go on for longer."""
        for index in range(self.first_stage + 1):
            trainer, wanted = self.stages[index], self.stages[index].state.max_epochs
            done = max_epochs[index] if index < self.first_stage else self.first_epoch
            if wanted < done or (index < self.first_stage and wanted != done):
                raise InputError(
                    self.checkpoint,
                    f"the stage {trainer.stage!r} there has {done} epochs, not the {wanted} asked for",
                    "Ask for as many, choose another output_dir, or start anew with --resume False.",
                )

    def save(self, stage: int, epoch: int) -> None:
        saved = {
            "fingerprint": self.fingerprint,
            "stage": stage,
            "epoch": epoch,
            "network": self.network.state_dict(),
            "max_epochs": [trainer.state.max_epochs for trainer in self.stages],
            "state": self.stages[stage].state_to_save(),
            "history": self.history,
        }
        if self.selection is not None:
            saved["selection"] = self.selection.state_to_save()
        with atomic_path(self.checkpoint) as path:
            torch.save(saved, path)

    def go(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for index in range(self.first_stage, len(self.stages)):
            trainer = self.stages[index]
            start = self.first_epoch if index == self.first_stage else 0
            self._run_stage(index, trainer, start)
        if self.selection is not None and first_process():
            self._settle(self.selection)

    def _settle(self, selection: SyntheticLesionSelection) -> None:
        """The network has the state of the last epoch, which counts too but is no candidate of a longer run."""
        trainer = self.stages[-1]
        epochs = trainer.state.max_epochs
        if epochs % self.val_interval != 0:
            selection.consider(self.network, trainer.stage, epochs)
        selection.settle(self.network, self.folder)

    def _run_stage(self, index: int, trainer: StageTrainer, start: int) -> None:
        from tqdm import tqdm

        if start >= trainer.state.max_epochs:
            return
        if start == 0:
            trainer.prepare()
        trainer.state.epoch = start
        trainer.state.iteration = start * trainer.state.epoch_length
        sums: dict[str, float] = {}
        bar = tqdm(
            total=trainer.state.max_epochs,
            initial=start,
            desc=trainer.stage,
            unit="epoch",
            disable=not self.progress or not first_process(),
        )

        def seed_epoch(engine: Any) -> None:
            sums.clear()
            # 2 ** 32 bounds the seeds of numpy's generators; stages are kept apart by a prime.
            rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
            seed = (self.seed * 1_000_003 + index * 100_003 + engine.state.epoch * 101 + rank) % 2**32
            torch.manual_seed(seed)
            dataset: Any = getattr(trainer.data_loader, "dataset", None)
            if hasattr(dataset, "set_random_state"):
                dataset.set_random_state(seed)

        def add_up(engine: Any) -> None:
            for name, value in engine.state.output[0].items():
                sums[name] = sums.get(name, 0.0) + float(value)

        def close_epoch(engine: Any) -> None:
            trainer.epoch_completed(engine.state.epoch)
            for scheduler in trainer.lr_schedulers:
                scheduler.step()
            if first_process():
                self._record(trainer, sums)
                last_stage = index == len(self.stages) - 1
                if self.selection is not None and last_stage and engine.state.epoch % self.val_interval == 0:
                    self.selection.consider(self.network, trainer.stage, engine.state.epoch)
                bar.set_postfix(loss=f"{self.history[-1]['train_loss']:.4g}", refresh=False)
                if engine.state.epoch % self.save_interval == 0 or engine.state.epoch == engine.state.max_epochs:
                    self.save(index, engine.state.epoch)
            bar.update()

        removable = [
            trainer.add_event_handler(Events.EPOCH_STARTED, seed_epoch),
            trainer.add_event_handler(Events.ITERATION_COMPLETED, add_up),
            trainer.add_event_handler(Events.EPOCH_COMPLETED, close_epoch),
        ]
        try:
            trainer.run()
        finally:
            bar.close()
            for handler in removable:
                handler.remove()

    def _record(self, trainer: StageTrainer, sums: dict[str, float]) -> None:
        steps, epoch = trainer.state.epoch_length, trainer.state.epoch
        last = epoch == trainer.state.max_epochs
        row = {
            "stage": trainer.stage,
            "epoch": epoch,
            "steps": trainer.state.iteration,
            "train_loss": sums["error"] / steps,
            "val_loss": trainer.mean_validation_loss() if last or epoch % self.val_interval == 0 else None,
            "objective": sums[CommonKeys.LOSS] / steps,
        }
        self.history.append(row)
        write_csv(self.folder / "losses.csv", self.history, list(row))
        if last or epoch % 10 == 0:
            draw_loss_curves(self.folder / "losses.png", self.history)
