"""The contract that every method keeps."""

# No postponed annotations here: TorchScript reads the fields of the NamedTuple.

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, List, NamedTuple, Optional  # noqa: UP035 (TorchScript)

import torch
from torch import Tensor, nn

from monai_anomaly.calibration import ConformalCalibration, SliceStatistics

__all__ = ["AnomalyDetector", "AnomalyOutput", "make_detector"]

# Other distributions name their detectors in this group of entry points.
_ENTRY_POINTS = "monai_anomaly.detectors"
# Every detector class by its name; a class enters it by being defined.
_KINDS: dict[str, type["AnomalyDetector"]] = {}


def make_detector(config: Mapping[str, Any]) -> "AnomalyDetector":
    """Make a detector from its ``config``.

    Args:
        config: ``{"name", "arguments"}``. The name is that of a subclass of ``AnomalyDetector``: one that is defined,
            or one that an installed distribution names in the entry point group ``monai_anomaly.detectors``. Nothing
            else is ever made from a file's word.

    Raises:
        LookupError: if there is no such detector.
        TypeError, ValueError: if the arguments do not fit it.
    """
    name = str(config["name"])
    if name not in _KINDS:
        for point in entry_points(group=_ENTRY_POINTS, name=name):
            point.load()
    if name not in _KINDS:
        raise LookupError(f"network {name!r} is unknown")
    return _KINDS[name](**config["arguments"])


class AnomalyOutput(NamedTuple):
    """What a detector says of a batch.

    Attributes:
        anomaly_map: shape (B, 1, *spatial), float, larger = more anomalous, on the grid of the input.
        anomaly_score: shape (B,), float, larger = more anomalous.
        restoration: shape (B, C, *spatial), what the detector takes for the normal version of the input, or None.
    """

    anomaly_map: Tensor
    anomaly_score: Tensor
    restoration: Optional[Tensor]  # noqa: UP045 (TorchScript)


class AnomalyDetector(nn.Module, ABC):
    """Base of all detectors.

    All that a test image is compared against is a buffer, so that one ``state_dict`` is the whole detector. ``forward``
    returns the anomaly map alone, for MONAI's inferers, export and verification.

    Attributes:
        config: ``{"name", "arguments"}``, the class and the arguments that the detector was made with.
        needs_held_out: whether ``fit_statistics`` needs held-out normals.
        paper_map_threshold: the fixed value above which the method's paper calls a pixel of its map abnormal; None
            where it states none. Evaluations report it beside the calibrated thresholds.
        channels_last: whether inference on a CPU is faster in that memory format, as measured (``docs/results.md``).

    Args:
        spatial_dims: 2 (a volume goes slice by slice) or 3 (a volume goes whole).
        in_channels: channels of the input image.
        size_divisor: the spatial sizes of the input must be multiples of it.
    """

    needs_held_out: bool = False
    paper_map_threshold: Optional[float] = None  # noqa: UP045 (TorchScript)
    channels_last: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _KINDS[cls.__name__] = cls

    def __new__(cls, *args: Any, **kwargs: Any) -> "AnomalyDetector":
        # Every detector remembers how it was made, so that a file can say how to make it again.
        detector = super().__new__(cls)
        bound = inspect.signature(cls.__init__).bind_partial(detector, *args, **kwargs)
        bound.apply_defaults()
        arguments = {k: list(v) if isinstance(v, tuple) else v for k, v in list(bound.arguments.items())[1:]}
        object.__setattr__(detector, "config", {"name": cls.__name__, "arguments": arguments})
        return detector

    def __init__(self, spatial_dims: int, in_channels: int, size_divisor: int = 1) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims is 2 or 3, got {spatial_dims}")
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.size_divisor = size_divisor
        self.slice_statistics = SliceStatistics()
        self.calibration = ConformalCalibration()

    @abstractmethod
    def detect(self, image: Tensor) -> AnomalyOutput:
        """Map, score and restoration of a batch.

        Args:
            image: shape (B, C, *spatial), preprocessed as in training.

        Returns:
            The batch's ``AnomalyOutput``.

        Raises:
            ValueError: if the number of channels or the spatial size does not fit the network.
        """

    @torch.jit.unused
    def fit_statistics(self, training: Iterable[Tensor], held_out: Iterable[Tensor]) -> None:
        """Fit, after the last stage, what a test image is compared with; nothing where the weights say it all.

        Called in eval mode and without gradients. Both arguments can be gone through several times and give batches
        of shape (B, C, *spatial) on the detector's device, without augmentation.

        Args:
            training: the training normals.
            held_out: normals of patients that are neither trained on nor calibrated with.

        Raises:
            ValueError: if a set that is needed is empty.
        """

    @torch.jit.unused
    def borrowed_weights(self) -> str:
        """Where weights are from that the detector's own training did not give, in a few words; empty for none."""
        return ""

    @torch.jit.unused
    def components(self) -> "list[AnomalyDetector]":
        """The detectors that this one combines (see ``combine``), each run over whole scans; none as a rule."""
        return []

    @torch.jit.unused
    def combine(self, outputs: Sequence[AnomalyOutput]) -> AnomalyOutput:
        """One output from those of the ``components`` on the same batch, or on the same scan.

        Args:
            outputs: of the components, in their order; maps of any shape, scores (B,).

        Returns:
            Of the same shapes.
        """
        raise NotImplementedError(f"{type(self).__name__} has no components")

    @torch.jit.unused
    def candidate_maps(self, image: Tensor, choices: Sequence[Mapping[str, Any]]) -> list[Tensor]:
        """The maps of a batch under several settings of the map, which no weight depends on.

        Args:
            image: shape (B, C, *spatial).
            choices: arguments of ``choose_map``.

        Returns:
            One map, shape (B, 1, *spatial), for each choice; the detector stays as it is.

        Raises:
            NotImplementedError: if the detector's map has no settings.
        """
        raise NotImplementedError(f"the map of {type(self).__name__} has no settings to choose from")

    @torch.jit.unused
    def choose_map(self, choice: Mapping[str, Any]) -> None:
        """Change settings of the map, by name; ``config`` follows."""
        raise NotImplementedError(f"the map of {type(self).__name__} has no settings to choose from")

    def forward(self, image: Tensor) -> Tensor:
        """The anomaly map of a batch, shape (B, 1, *spatial); see ``detect``."""
        return self.detect(image).anomaly_map

    def check_input(self, image: Tensor, size: Optional[List[int]] = None) -> None:  # noqa: UP006, UP045 (TorchScript)
        """Reject an input that the network would only fail on deep inside.

        Args:
            image: shape (B, C, *spatial).
            size: the only one that the network takes; None: any that ``size_divisor`` allows.

        Raises:
            ValueError: says which of dimensions, channels and size does not fit.
        """
        if image.ndim != self.spatial_dims + 2:
            raise ValueError(f"expected a batch of {self.spatial_dims}-D images (B, C, *spatial), got {image.shape}")
        if image.shape[1] != self.in_channels:
            raise ValueError(f"the network has {self.in_channels} input channel(s), the image {image.shape[1]}")
        for side in image.shape[2:]:
            if side < self.size_divisor or side % self.size_divisor != 0:
                raise ValueError(f"image sides must be multiples of {self.size_divisor}, got {image.shape[2:]}")
        if size is not None and list(image.shape[2:]) != size:
            raise ValueError(f"the network is made for images of {size}, got {image.shape[2:]}")
