"""Choosing the epoch of a training by synthetic lesions in held-out normals: no diseased scan, no label."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monai_anomaly.data.slices import SliceDataset
from monai_anomaly.exceptions import InputError
from monai_anomaly.io.tables import write_csv
from monai_anomaly.networks import AnomalyDetector
from monai_anomaly.transforms import RandSyntheticLesion

from .training_data import ImageBatches

__all__ = ["SyntheticLesionSelection"]

_REMEDY = "Pass --validation_fraction 0.1 (two or more training patients), or list them under validation."


class SyntheticLesionSelection:
    """Keeps the weights whose anomaly maps rank the pixels of fixed synthetic lesions best.

    Every candidate sees the same lesions in the same images: they follow from ``seed`` alone, which is not that of the
    training, so that the figures of trainings with other settings or seeds on the same held-out normals compare. The
    figure is the average precision over all pixels of all images; among equals the earliest candidate is kept. A
    detector whose maps need fitted statistics gets them fitted for the figure alone.

    Args:
        held_out: images of the validation patients; None or none at all is an error.
        training: images that statistics of a detector are fitted on.
        batch_size: images in one forward pass.
        lesions: draws them; None: all kinds at their default sizes.
        most_images: spread evenly over the held-out ones; the others are not looked at.
        most_pixels: of one image, drawn once; above it (volumes) the figure is an estimate from these.
        seed: of the lesions and pixels.

    Attributes:
        rows: the candidates so far, each ``stage, epoch, pixel_ap``.
        lesion_share: share of the pixels that are lesion, the AP of chance.

    Raises:
        InputError: if there is no held-out image, or none has a foreground to put a lesion in.
    """

    name = "synthetic_lesions"

    def __init__(
        self,
        held_out: SliceDataset | None,
        training: SliceDataset | None = None,
        batch_size: int = 8,
        lesions: RandSyntheticLesion | None = None,
        most_images: int = 64,
        most_pixels: int = 2**17,
        seed: int = 0,
    ) -> None:
        self.training, self.batch_size = training, batch_size
        self.lesions = lesions or RandSyntheticLesion()
        self.most_images, self.most_pixels, self.seed = most_images, most_pixels, seed
        if held_out is None or not len(held_out):
            raise InputError("synthetic lesions", "no validation scan can be used", _REMEDY)
        self.held_out, count = held_out, len(held_out)
        places = np.linspace(0, count - 1, min(most_images, count)).round().astype(int)
        self.indices: list[int] = np.unique(places).tolist()
        self.rows: list[dict[str, Any]] = []
        self._best: dict[str, Tensor] | None = None
        self.lesion_share = self._lesion_share()

    @property
    def config(self) -> dict[str, Any]:
        """What the figures depend on besides the network, JSON-able."""
        return {
            "by": self.name,
            "images": len(self.indices),
            "most_pixels": self.most_pixels,
            "seed": self.seed,
            "lesions": self.lesions.config,
            "validation_scans": sorted(self.held_out.hashes),
        }

    def image(self, number: int) -> tuple[Tensor, Tensor]:
        """One of the images with its lesion.

        Args:
            number: from 0 up to the number of images used.

        Returns:
            Image (C, *spatial) and mask (1, *spatial).
        """
        index = self.indices[number]
        # half-way round the held-out images: another scan's, where there are several
        donor = (index + len(self.held_out) // 2) % len(self.held_out)
        self.lesions.set_random_state(seed=(self.seed * 1_000_003 + number) % 2**32)
        image, mask = self.lesions(self.held_out[index]["image"], self.held_out[donor]["image"])
        return torch.as_tensor(image), torch.as_tensor(mask)

    def score(self, network: AnomalyDetector) -> float:
        """The pixel AP of a network, which is left as it was but for its mode (eval).

        Args:
            network: on the device to run on.

        Returns:
            In (0, 1]; ``lesion_share`` is that of chance.

        Raises:
            InputError: if a map is not finite.
        """
        return self._scores(network, lambda images: [network.detect(images).anomaly_map])[0]

    def choose_map(self, network: AnomalyDetector, choices: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Give a trained network the settings of the map that find the lesions best.

        Args:
            network: a detector whose map has settings (``AnomalyDetector.candidate_maps``), on the device to run on.
            choices: the candidates; among equals the first is taken.

        Returns:
            One row for each candidate: its settings, ``pixel_ap`` and ``chosen`` (0 or 1).

        Raises:
            InputError: if there is no candidate, or a map is not finite.
        """
        if not choices:
            raise InputError("map_choices", "is empty", "List settings of the map, or say null.")
        figures = self._scores(network, lambda images: network.candidate_maps(images, choices))
        best = figures.index(max(figures))
        network.choose_map(choices[best])
        return [
            {**choice, "pixel_ap": figure, "chosen": int(i == best)}
            for i, (choice, figure) in enumerate(zip(choices, figures))
        ]

    def _scores(self, network: AnomalyDetector, maps_of: Callable[[Tensor], Sequence[Tensor]]) -> list[float]:
        """The pixel AP of each of the maps that ``maps_of`` gives for a batch."""
        from sklearn.metrics import average_precision_score

        truth, found = self.pixels(network, maps_of)
        joined = np.concatenate(truth)
        return [float(average_precision_score(joined, np.concatenate(parts))) for parts in found]

    @torch.no_grad()
    def pixels(
        self, network: AnomalyDetector, maps_of: Callable[[Tensor], Sequence[Tensor]] | None = None
    ) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
        """Pixels of the images with their lesions; the network is left as it was but for its mode (eval).

        Args:
            network: on the device to run on.
            maps_of: from images (B, C, *spatial) to maps (B, 1, *spatial), one for each candidate; None: the network's.

        Returns:
            For each image which pixels are lesion, shape (P,), and for each candidate and image the map there.

        Raises:
            InputError: if a map is not finite.
        """
        maps_of = maps_of or (lambda images: [network.detect(images).anomaly_map])
        device = next(chain(network.parameters(), network.buffers())).device
        before = {key: value.clone() for key, value in network.state_dict().items()}
        network.eval()
        masks: list[np.ndarray] = []
        maps: dict[int, list[np.ndarray]] = defaultdict(list)
        # a detector with random parts must not shift the training's random numbers
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            try:
                network.fit_statistics(
                    ImageBatches(self.training, self.batch_size, device),
                    ImageBatches(self.held_out, self.batch_size, device),
                )
                for start in range(0, len(self.indices), self.batch_size):
                    numbers = range(start, min(start + self.batch_size, len(self.indices)))
                    images, lesions = zip(*(self.image(number) for number in numbers))
                    chosen = [self._pixels(number, lesion.numel()) for number, lesion in zip(numbers, lesions)]
                    masks += [(lesion.flatten()[kept] > 0).numpy() for kept, lesion in zip(chosen, lesions)]
                    for index, found in enumerate(maps_of(torch.stack(images).to(device))):
                        found = found.float().cpu()
                        if not bool(torch.isfinite(found).all()):
                            problem = "an anomaly map is not finite"
                            raise InputError("select_by", problem, "Lower the learning rate or switch amp off.")
                        maps[index] += [one.flatten()[kept].numpy() for kept, one in zip(chosen, found)]
            finally:
                network.load_state_dict(before)
        return masks, list(maps.values())

    def consider(self, network: AnomalyDetector, stage: str, epoch: int) -> None:
        """Make the network's present state a candidate.

        Args:
            network: at the end of an epoch.
            stage: the stage's name.
            epoch: counted from one.
        """
        figure = self.score(network)
        if self._best is None or figure > max(row["pixel_ap"] for row in self.rows):
            self._best = {key: value.detach().cpu().clone() for key, value in network.state_dict().items()}
        self.rows.append({"stage": stage, "epoch": epoch, "pixel_ap": figure})

    def settle(self, network: AnomalyDetector, folder: Path) -> None:
        """Give the network the best candidate's state, and write ``selection.csv``.

        Args:
            network: gets the state.
            folder: of the training.
        """
        if self._best is None:
            return  # the last stage has no epoch
        network.load_state_dict(self._best)
        best = self.best
        rows = [{**row, "chosen": int(row is best)} for row in self.rows]
        write_csv(folder / "selection.csv", rows, ["stage", "epoch", "pixel_ap", "chosen"])

    @property
    def best(self) -> dict[str, Any] | None:
        """The row of the best candidate so far: the first of the highest figure."""
        return max(self.rows, key=lambda row: row["pixel_ap"]) if self.rows else None

    def report(self) -> dict[str, Any]:
        """What the detector's description says of the choice."""
        best = self.best
        return {
            **{key: value for key, value in self.config.items() if key != "validation_scans"},
            "pixel_ap_of_chance": self.lesion_share,
            "candidates": len(self.rows),
            "stage": None if best is None else best["stage"],
            "epoch": None if best is None else best["epoch"],
            "pixel_ap": None if best is None else best["pixel_ap"],
            "pixel_ap_of_last_epoch": self.rows[-1]["pixel_ap"] if self.rows else None,
        }

    def state_to_save(self) -> dict[str, Any]:
        """What a checkpoint holds of the choice so far."""
        return {"rows": self.rows, "best": self._best}

    def load_saved_state(self, state: dict[str, Any]) -> None:
        """Take up what ``state_to_save`` gave."""
        self.rows = [dict(row) for row in state["rows"]]
        self._best = state["best"]

    def _pixels(self, number: int, size: int) -> Tensor | slice:
        """Which pixels of an image count: the same for every candidate."""
        if size <= self.most_pixels:
            return slice(None)
        generator = np.random.default_rng([self.seed, number])
        return torch.from_numpy(np.sort(generator.choice(size, self.most_pixels, replace=False)))

    def _lesion_share(self) -> float:
        inside, total = 0.0, 0
        for number in range(len(self.indices)):
            mask = self.image(number)[1].flatten()
            mask = mask[self._pixels(number, mask.numel())]
            inside += float(mask.sum())
            total += mask.numel()
        if not inside:
            raise InputError("synthetic lesions", "no validation scan has a foreground to put a lesion in", _REMEDY)
        return inside / total


def selection_named(
    name: str | None, held_out: SliceDataset | None, training: SliceDataset, batch_size: int, stages: Sequence[Any]
) -> SyntheticLesionSelection | None:
    """The selection that an option asks for, on what a training has.

    Args:
        name: ``"synthetic_lesions"`` or None, for the last epoch.
        held_out: images of the validation patients, or None.
        training: of the training patients.
        batch_size: images in one forward pass.
        stages: of the training.

    Raises:
        InputError: for another name, a training without stages, or one without validation patients.
    """
    if name is None:
        return None
    if name != SyntheticLesionSelection.name:
        raise InputError("select_by", f"is {name!r}", "Say synthetic_lesions, or null for the last epoch.")
    if not stages:
        raise InputError(
            "select_by", "this detector is fitted in one pass and has no epochs to choose from", "Say null."
        )
    if held_out is None:
        raise InputError(
            "select_by",
            "choosing the epoch needs validation patients, and there are none",
            _REMEDY,
        )
    return SyntheticLesionSelection(held_out, training, batch_size)
