"""How the denoising autoencoder is trained."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from monai_anomaly.losses import DenoisingLoss
from monai_anomaly.networks import DenoisingAutoencoder
from monai_anomaly.transforms import RandCoarseNoise

from .reconstruction import Reconstruction
from .selection import SyntheticLesionSelection
from .stages import StageTrainer, distributed

__all__ = ["DenoisingTrainer"]


class DenoisingTrainer(StageTrainer):
    """Take coarse noise off normal images and, where the network has that output, expect the error.

    Args:
        network: the detector.
        device: where the stage runs.
        max_epochs: epochs.
        train_data_loader: batches with ``image`` (B, C, *spatial).
        optimizer: of the detector's parameters.
        noise: added to the training images; its background should be the network's.
        loss_function: by default the Laplace loss with an expected error and the squared error without.
        noise_choices: arguments of ``RandCoarseNoise`` that replace those of ``noise``, one mapping a candidate. Each
            trains the network from its first weights for ``trial_epochs``; the stage then runs with the one whose maps
            find ``lesions`` best, from those weights. None: ``noise`` as it is.
        trial_epochs: epochs of each candidate.
        lesions: synthetic lesions in held-out normals; needed with ``noise_choices``.
        options: further arguments of ``StageTrainer``. Validation noise is the same in each epoch.

    Raises:
        ValueError: for ``noise_choices`` without ``lesions``, or a loss of the expected error for a network without.
    """

    stage = "denoising"

    def __init__(
        self,
        network: DenoisingAutoencoder,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: DataLoader,
        optimizer: Optimizer,
        noise: RandCoarseNoise | None = None,
        loss_function: DenoisingLoss | None = None,
        noise_choices: Sequence[Mapping[str, Any]] | None = None,
        trial_epochs: int = 5,
        lesions: SyntheticLesionSelection | None = None,
        **options: Any,
    ) -> None:
        if noise_choices and lesions is None:
            raise ValueError("choosing the noise needs validation patients to put synthetic lesions in")
        super().__init__(
            network,
            device,
            max_epochs,
            train_data_loader,
            {"optimizer": optimizer},
            **options,
        )
        self.bare = Reconstruction(network)
        self.module = distributed(self.bare)
        self.denoiser = network
        self.optimizer = optimizer
        self.noise = noise or RandCoarseNoise(background=network.background)
        self.loss_function = loss_function or DenoisingLoss("l2" if network.error is None else "laplace")
        if network.error is None and self.loss_function.kind in ("laplace", "gaussian"):
            raise ValueError(f"the {self.loss_function.kind} loss needs a network with expected_error")
        self.noise_choices = [dict(choice) for choice in noise_choices or ()]
        self.trial_epochs = trial_epochs
        self.lesions = lesions
        self.noise_trials: list[dict[str, Any]] = []

    def prepare(self) -> None:
        """Choose the noise; see ``StageTrainer.prepare``."""
        if not self.noise_choices:
            return
        assert self.lesions is not None
        weights = copy.deepcopy(self.network.state_dict())
        optimizer = copy.deepcopy(self.optimizer.state_dict())
        noise = self.noise
        candidates = []
        dataset: Any = getattr(self.data_loader, "dataset", None)
        for choice in self.noise_choices:
            self.noise = RandCoarseNoise(**{**noise.config, **choice})
            # the same batches, augmentation and seeds of noise in every trial
            torch.manual_seed(0)
            if hasattr(dataset, "set_random_state"):
                dataset.set_random_state(0)
            for _ in range(self.trial_epochs):
                for batch in self.data_loader:
                    self.training_step(self.to_device(batch))
            candidates.append(self.noise)
            self.noise_trials.append({"noise": choice, "pixel_ap": self.lesions.score(self.network)})
            self.network.load_state_dict(weights)
            self.optimizer.load_state_dict(optimizer)
        best = max(range(len(candidates)), key=lambda i: self.noise_trials[i]["pixel_ap"])
        self.noise = candidates[best]

    def noisy(self, image: Tensor, seed: int | None = None) -> Tensor:
        """A batch with noise of its own in each image, of the same shape; without a seed drawn from torch's."""
        seed = int(torch.randint(2**31, ())) if seed is None else seed
        self.noise.set_random_state(seed)
        return torch.stack([torch.as_tensor(self.noise(one)) for one in image])

    def training_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """See ``StageTrainer.training_step``."""
        image = batch["image"]
        self.network.train()
        with self.autocast():
            restored, expected = self.module(self.noisy(image))
            loss = self.loss_function(restored, expected, image, self.denoiser.foreground(image))
        self.optimise(self.optimizer, loss)
        return {"loss": loss}

    def validation_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """See ``StageTrainer.validation_loss``."""
        image = batch["image"]
        restored, expected = self.bare(self.noisy(image, seed=0))
        return self.loss_function(restored, expected, image, self.denoiser.foreground(image))

    def choices(self) -> dict[str, Any]:
        """See ``StageTrainer.choices``."""
        return {"noise": self.noise.config, "noise_trials": self.noise_trials}

    def state_to_save(self) -> dict[str, dict[str, Any]]:
        """See ``StageTrainer.state_to_save``."""
        return {**super().state_to_save(), "choices": self.choices()}

    def load_saved_state(self, state: dict[str, dict[str, Any]]) -> None:
        """See ``StageTrainer.load_saved_state``."""
        super().load_saved_state(state)
        self.noise = RandCoarseNoise(**state["choices"]["noise"])
        self.noise_trials = list(state["choices"]["noise_trials"])
