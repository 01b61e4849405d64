"""The metrics inside MONAI's evaluators: as ``Metric`` classes on tensors, and as handlers.

    evaluator = SupervisedEvaluator(
        ...,
        key_val_metric={"pixel_ap": PixelMapHandler("ap", output_transform=from_engine(["pred", "label"]))},
    )

A handler puts one figure into ``engine.state.metrics``, under the name that it is attached by, so that it can be the
key metric; all of them, with their bounds and the reasons for what is undefined, are in
``engine.state.metric_details``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from monai.handlers import IgniteMetricHandler
from monai.metrics import CumulativeIterationMetric
from torch import Tensor

from .lesions import LesionDetection
from .scans import image_metrics
from .voxels import PixelMetrics

__all__ = [
    "ImageScoreMetric",
    "ImageScoreHandler",
    "LesionDetectionMetric",
    "LesionDetectionHandler",
    "PixelMapMetric",
    "PixelMapHandler",
]


class _MapMetric(CumulativeIterationMetric):
    """Metrics of maps against masks whose sums are kept on the CPU, not the maps.

    Args:
        make: gives an empty ``PixelMetrics`` or ``LesionDetection``.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        super().__init__()

    def reset(self) -> None:
        """Forget all scans."""
        super().reset()
        self.sums = self._make()

    def __call__(self, y_pred: Any, y: Any = None, **kwargs: Any) -> Any:
        """Add a batch.

        Args:
            y_pred: anomaly maps, shape (B, 1, *spatial), of any floating type; or a list of (1, *spatial).
            y: masks of the same shape, 1 on lesions.
            kwargs: for ``LesionDetectionMetric`` ``voxel_volume``.

        Returns:
            How many voxels of each scan are abnormal, shape (B,).

        Raises:
            ValueError: if there are no masks, the shapes differ, there is more than one channel, or a score is NaN.
        """
        # past Cumulative, which would keep the tensors and stack them
        return super(CumulativeIterationMetric, self).__call__(y_pred, y, **kwargs)

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        if y is None:
            raise ValueError("maps are measured against masks, and there are none")
        if y_pred.shape != y.shape or y_pred.ndim < 3 or y_pred.shape[1] != 1:
            raise ValueError(f"maps and masks are (B, 1, *spatial), got {tuple(y_pred.shape)} and {tuple(y.shape)}")
        # half precision is widened before anything is compared or summed; NumPy has no bfloat16
        maps, masks = y_pred.detach().cpu().float(), y.detach().cpu().float()
        for one, mask in zip(maps, masks, strict=True):
            self.sums.update(one[0].numpy(), mask[0].numpy(), **kwargs)
        return masks.flatten(1).sum(dim=1)

    def aggregate(self) -> dict[str, Any]:
        """The metrics of all scans so far, those of all processes together.

        Returns:
            As ``compute`` of ``PixelMetrics`` or ``LesionDetection``.
        """
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self.sums.compute()
        gathered: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, self.sums)
        everything = self._make()
        for sums in gathered:
            everything.merge(sums)
        return everything.compute()


class PixelMapMetric(_MapMetric):
    """``PixelMetrics`` of tensors.

    Args:
        thresholds: see ``PixelMetrics``.
        settings: its further ones.
    """

    def __init__(self, thresholds: Mapping[str, float] | None = None, **settings: Any) -> None:
        super().__init__(lambda: PixelMetrics(thresholds, **settings))


class LesionDetectionMetric(_MapMetric):
    """``LesionDetection`` of tensors.

    Args:
        thresholds: see ``LesionDetection``.
        settings: its further ones.
    """

    def __init__(self, thresholds: Mapping[str, float], **settings: Any) -> None:
        super().__init__(lambda: LesionDetection(thresholds, **settings))


class ImageScoreMetric(CumulativeIterationMetric):
    """``image_metrics`` of tensors.

    Args:
        threshold: of the calibration, above which a scan is flagged; None for rankings alone.
    """

    def __init__(self, threshold: float | None = None) -> None:
        super().__init__()
        self.threshold = threshold

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> list[Tensor]:
        if y is None or y_pred.numel() != y_pred.shape[0] or y.numel() != y_pred.numel():
            raise ValueError("scores and labels are (B,) or (B, 1), one label for each score")
        return [y_pred.detach().cpu().double().reshape(-1), y.detach().cpu().double().reshape(-1)]

    def _compute_list(self, y_pred: Any, y: Any = None, **kwargs: Any) -> list[Tensor]:
        # decollated scores have no dimension at all, or one
        stacked = [torch.stack([torch.as_tensor(one).reshape(()) for one in part]) for part in (y_pred, y)]
        return self._compute_tensor(*stacked)

    def aggregate(self) -> dict[str, Any]:
        """The metrics of all scans so far, those of all processes together.

        Returns:
            As ``image_metrics``.

        Raises:
            ValueError: if a score is NaN or a label neither 0 nor 1.
        """
        buffers = self.get_buffer()
        if buffers is None:
            return image_metrics([], [], self.threshold)
        scores, labels = (part.tolist() for part in buffers)
        if any(label not in (0, 1) for label in labels):
            raise ValueError("labels must be 0 (normal) or 1 (abnormal).")
        return image_metrics([int(label) for label in labels], scores, self.threshold)


class _Handler(IgniteMetricHandler):
    """Computes at the end of a run and takes one figure of the result as the metric.

    Args:
        metric_fn: gives a dictionary.
        key: the figure; keys within keys are joined by slashes, as in ``decisions/paper/f1``.
        output_transform: from the engine's output to the pair of prediction and reference.
    """

    def __init__(self, metric_fn: CumulativeIterationMetric, key: str, output_transform: Callable[[Any], Any]) -> None:
        super().__init__(metric_fn=metric_fn, output_transform=output_transform, save_details=False)
        self.key = key

    def compute(self) -> float | None:
        """The figure of all scans of the run; None where it is undefined, which MONAI takes for no best metric.

        Raises:
            KeyError: if there is no such figure.
        """
        details = self.metric_fn.aggregate()
        self._is_reduced = True
        if self._engine is not None and self._name is not None:
            self._engine.state.metric_details[self._name] = details
        value: Any = details
        for part in self.key.split("/"):
            value = value[part]
        return value

    def attach(self, engine: Any, name: str) -> None:
        """Compute at the end of each run of an engine.

        Args:
            engine: a MONAI or ignite engine.
            name: of the figure in ``engine.state.metrics``, and of everything in ``engine.state.metric_details``.
        """
        super().attach(engine, name)
        if not hasattr(engine.state, "metric_details"):
            engine.state.metric_details = {}


class PixelMapHandler(_Handler):
    """``PixelMapMetric`` as a handler.

    Args:
        key: the figure that is the metric, such as ``ap``, ``aupro`` or ``decisions/<threshold>/dice``.
        output_transform: from the engine's output to maps and masks.
        thresholds: see ``PixelMetrics``.
        settings: its further ones.
    """

    def __init__(
        self,
        key: str = "ap",
        output_transform: Callable[[Any], Any] = lambda x: x,
        thresholds: Mapping[str, float] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(PixelMapMetric(thresholds, **settings), key, output_transform)


class LesionDetectionHandler(_Handler):
    """``LesionDetectionMetric`` as a handler.

    Args:
        thresholds: see ``LesionDetection``.
        key: the figure that is the metric, such as ``froc_score`` or ``at/<threshold>/sensitivity``.
        output_transform: from the engine's output to maps and masks.
        settings: the further ones of ``LesionDetection``. Sizes are in voxels.
    """

    def __init__(
        self,
        thresholds: Mapping[str, float],
        key: str = "froc_score",
        output_transform: Callable[[Any], Any] = lambda x: x,
        **settings: Any,
    ) -> None:
        super().__init__(LesionDetectionMetric(thresholds, **settings), key, output_transform)


class ImageScoreHandler(_Handler):
    """``ImageScoreMetric`` as a handler.

    Args:
        key: the figure that is the metric, such as ``auroc`` or ``decision/f1``.
        output_transform: from the engine's output to scores and labels.
        threshold: of the calibration, above which a scan is flagged; None for rankings alone.
    """

    def __init__(
        self,
        key: str = "auroc",
        output_transform: Callable[[Any], Any] = lambda x: x,
        threshold: float | None = None,
    ) -> None:
        super().__init__(ImageScoreMetric(threshold), key, output_transform)
