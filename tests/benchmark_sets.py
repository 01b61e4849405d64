"""Tiny published sets and suites for the tests of the benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import yaml

from monai_anomaly.data.published import ImageSet, Problem, PublishedSet

SIDE = 16


def stripes(count: int, seed: int, abnormal: bool) -> tuple[np.ndarray, np.ndarray]:
    """Images of vertical stripes, uint8, with a bright spot where they are abnormal, and the spots."""
    rng = np.random.default_rng(seed)
    pictures, masks = np.zeros((count, SIDE, SIDE), np.uint8), np.zeros((count, SIDE, SIDE), bool)
    for i in range(count):
        wave = 90 + 30 * np.sin(np.arange(SIDE) + rng.uniform(0, 0.5))
        pictures[i] = np.round(np.tile(wave, (SIDE, 1)) + rng.normal(0, 3, (SIDE, SIDE)))
        if abnormal:
            row, column = rng.integers(0, SIDE - 5, 2)
            masks[i, row : row + 4 + i % 2, column : column + 4] = True
            pictures[i][masks[i]] = 230
    return pictures, masks


class Stripes(PublishedSet):
    """Two problems of stripes; the second has clips, frames and colour."""

    key, title, source, licence, citation = "stripes", "stripes", "-", "CC0", "-"
    protocol = "as the tests want it"
    broken: ClassVar[tuple[str, ...]] = ()

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = Path(self.key)

    @property
    def problems(self) -> tuple[str, ...]:
        return ("masks", "clips", "broken")

    def problem(self, name: str) -> Problem:
        self.require(name)
        if name == "broken":
            raise RuntimeError("no such file")
        normal, _ = stripes(60, 0, False)
        test, masks = (np.concatenate(parts) for parts in zip(stripes(12, 1, False), stripes(12, 2, True)))
        labels = np.repeat([0, 1], 12)
        if name == "masks":
            return Problem(
                name,
                self._pictures(normal, np.zeros(60, int), "train"),
                self._pictures(test, labels, "test", read_mask=lambda i: masks[i]),
            )
        order = np.argsort(np.tile(np.arange(12), 2), kind="stable")  # normal and abnormal frames in turn
        clips = [f"clip{i // 8}" for i in range(24)]
        return Problem(
            name,
            self._pictures(
                np.repeat(normal[..., None], 3, -1),
                np.zeros(60, int),
                "train",
                groups=[f"c{i // 5}" for i in range(60)],
            ),
            self._pictures(
                np.repeat(test[order][..., None], 3, -1),
                labels[order],
                "test",
                groups=clips,
                positions=[i % 8 for i in range(24)],
            ),
            video=True,
            facts={"frames": 24},
        )

    @staticmethod
    def _pictures(images: np.ndarray, labels: np.ndarray, side: str, **more: Any) -> ImageSet:
        return ImageSet([f"{side}/{i:03d}" for i in range(len(images))], labels, lambda i: images[i].copy(), **more)


def tiny_suite(folder: Path, **changes: Any) -> Path:
    """A suite of the stripes, written to a file."""
    content = {
        "title": "stripes",
        "methods": ["autoencoder", "zscore"],
        "ablations": ["autoencoder_skip"],
        "sets": {
            "stripes": {"image_size": [SIDE, SIDE], "problems": ["masks"], "metrics": ["image.auroc", "pixel.auroc"]}
        },
        "scales": {"smoke": {"resamples": 20, "shown": 3, "calibration": 0.4}},
        **changes,
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path
