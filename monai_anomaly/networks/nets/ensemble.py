"""Several detectors that speak with one voice, by their calibrated p-values."""

# No postponed annotations here: TorchScript reads the real ones.

import math
from collections.abc import Mapping, Sequence
from typing import Any, List, Optional  # noqa: UP035 (TorchScript)

import torch
from torch import Tensor, nn

from monai_anomaly.exceptions import check_choice
from monai_anomaly.networks.detector import AnomalyDetector, AnomalyOutput, make_detector

__all__ = ["Ensemble"]


class Ensemble(AnomalyDetector):
    """One detector made of several calibrated ones, whose scores and maps have no common unit.

    Each member's score becomes its p-value among the calibration normals, each voxel of its map -log10 of the rate at
    which normals' tissue reaches that value. The score combines the p-values over the members, the map is the mean of
    theirs. A p-value has n + 1 levels, and where every member is at its least the score is at its highest: scans beyond
    that tie.

    The members' p-values are no error rate of the ensemble: it is calibrated itself, as any detector is, by
    ``monai_anomaly.engines.calibrate``, which calibrates the members on the same normals first and, for each of them,
    leaves the patient's own values out of the members' tables. With the ranks then counted among n + 1, a calibration
    normal's combined score is never below the one it would have among the n + 1 that include the new patient, which
    are exchangeable: split calibration's bound holds.

    Args:
        members: per member its ``config``, ``{"name", "arguments"}``; two or more.
        combine: ``"fisher"``: -2 sum log p (the order of the mean of -log p); ``"max"``: the highest -log p.

    Attributes:
        members: the detectors.

    Raises:
        ValueError: for fewer than two members, one that is unknown, or members that take other images.

    References:
        R. A. Fisher, *Statistical Methods for Research Workers*, 4th ed., 1932, section 21.1 (the statistic; not its
        chi-squared law, which would need independent members).
    """

    def __init__(self, members: Sequence[Mapping[str, Any]], combine: str = "fisher") -> None:
        check_choice("combine", combine, "fisher", "max")
        if len(members) < 2:
            raise ValueError(f"an ensemble has two members or more, got {len(members)}")
        detectors = [_made(member) for member in members]
        first = detectors[0]
        for number, detector in enumerate(detectors, start=1):
            # Its members' calibrations would not leave a patient out.
            if detector.components():
                raise ValueError(f"member {number} is an ensemble itself: give its members")
        for number, other in enumerate(detectors[1:], start=2):
            for what in ("spatial_dims", "in_channels"):
                one, two = getattr(first, what), getattr(other, what)
                if one != two:
                    raise ValueError(
                        f"member 1 ({type(first).__name__}) has {what} {one}, "
                        f"member {number} ({type(other).__name__}) {two}"
                    )
        super().__init__(
            first.spatial_dims, first.in_channels, math.lcm(*(detector.size_divisor for detector in detectors))
        )
        self.fisher = combine == "fisher"
        # To a checker of types a ModuleList holds modules of no kind.
        self.members: Any = nn.ModuleList(detectors)

    @classmethod
    def of(cls, detectors: Sequence[AnomalyDetector], combine: str = "fisher") -> "Ensemble":
        """An ensemble with copies of the weights and statistics of detectors.

        Args:
            detectors: the members.
            combine: as above.

        Returns:
            The ensemble, in eval mode and itself not calibrated.
        """
        configs: list[Any] = [detector.config for detector in detectors]
        ensemble = cls(configs, combine)
        for member, detector in zip(ensemble.members, detectors):
            member.load_state_dict(detector.state_dict())
        return ensemble.eval()

    @torch.jit.unused
    def components(self) -> "list[AnomalyDetector]":
        """See ``AnomalyDetector.components``."""
        return list(self.members)

    @torch.jit.unused
    def combine(self, outputs: Sequence[AnomalyOutput]) -> AnomalyOutput:
        """See ``AnomalyDetector.combine``.

        Raises:
            ValueError: if a member is not calibrated.
        """
        maps, logs = [], []
        for member, output in zip(self.members, outputs):
            if member.calibration.scores.numel() == 0:
                raise ValueError("a member of the ensemble is not calibrated")
            maps.append(_log_p(member.calibration, output.anomaly_map))
            logs.append(_log_score(member.calibration, output.anomaly_score))
        return self._combined(maps, logs, [output.restoration for output in outputs])

    def detect(self, image: Tensor) -> AnomalyOutput:
        """See ``AnomalyDetector.detect``; each image counts as a scan of its own.

        Raises:
            ValueError: if a member is not calibrated.
        """
        self.check_input(image)
        maps: List[Tensor] = []  # noqa: UP006 (TorchScript)
        logs: List[Tensor] = []  # noqa: UP006
        restorations: List[Optional[Tensor]] = []  # noqa: UP006, UP045
        for member in self.members:
            output = member.detect(image)
            if member.calibration.scores.numel() == 0:
                raise ValueError("a member of the ensemble is not calibrated")
            # A single image is a scan of one slice to the statistics along the stack.
            statistics = member.slice_statistics
            place = statistics.mean.shape[0] // 2
            score = (output.anomaly_score.float() - statistics.mean[place]) / statistics.std[place]
            maps.append(member.calibration.tail.log_p(output.anomaly_map.float()))
            logs.append(-torch.log(member.calibration.item_p_values(score)))
            restorations.append(output.restoration)
        return self._combined(maps, logs, restorations)

    def _combined(
        self,
        maps: List[Tensor],  # noqa: UP006
        logs: List[Tensor],  # noqa: UP006
        restorations: List[Optional[Tensor]],  # noqa: UP006, UP045
    ) -> AnomalyOutput:
        """Maps and scores joined; the restoration is the members' mean where each gives one."""
        stacked = torch.stack(logs)
        score = 2.0 * stacked.sum(dim=0) if self.fisher else stacked.amax(dim=0)
        given: List[Tensor] = []  # noqa: UP006
        for restoration in restorations:
            if restoration is not None:
                given.append(restoration.float())
        mean: Optional[Tensor] = None  # noqa: UP045
        if len(given) == len(restorations):
            mean = torch.stack(given).mean(dim=0)
        return AnomalyOutput(torch.stack(maps).mean(dim=0), score.float(), mean)


def _log_p(calibration: Any, anomaly_map: Tensor) -> Tensor:
    return calibration.tail.log_p(anomaly_map.to(calibration.tail.values.device)).to(anomaly_map.device)


def _log_score(calibration: Any, score: Tensor) -> Tensor:
    return -torch.log(calibration.item_p_values(score.to(calibration.scores.device))).to(score.device)


def _made(member: Mapping[str, Any]) -> AnomalyDetector:
    try:
        return make_detector(member)
    except LookupError as error:
        raise ValueError(f"member {member['name']!r} is unknown") from error
