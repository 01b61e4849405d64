"""scikit-learn's digits: the set that needs no files, so that a benchmark always runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .classes import ClassifiedSet

__all__ = ["Digits"]

_SEED = 0


class Digits(ClassifiedSet, key="digits"):
    """Handwritten digits, 8 x 8, gray, that come with scikit-learn.

    The set is published without sides. Of each class one image in three, drawn with a fixed seed, is on the test
    side; the draw is part of the protocol. Who wrote which digit is not published, so a writer may be on both sides.
    The published values 0 to 16 are spread over 0 to 255 (``round(255 v / 16)``), as other sets' images are.

    Args:
        root: not used; there are no files.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = Path(self.key)

    @classmethod
    def how_to_get(cls) -> str:
        return "It comes with scikit-learn."

    @classmethod
    def download(cls, root: str | Path | None = None) -> None:
        """Nothing is fetched: the set comes with scikit-learn."""

    def _read(self, side: str) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.datasets import load_digits

        published = load_digits()
        images = np.rint(published.images * (255 / 16)).astype(np.uint8)
        classes = published.target.astype(np.int64)
        generator = np.random.default_rng(_SEED)
        tested = np.zeros(len(classes), dtype=bool)
        for index in range(len(self.classes)):
            members = generator.permutation(np.flatnonzero(classes == index))
            tested[members[: round(len(members) / 3)]] = True
        chosen = tested if side == "test" else ~tested
        return images[chosen], classes[chosen]
