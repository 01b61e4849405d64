"""Masks as they were written, whatever they were made by, against the reference."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import numpy.typing as npt

from .lesions import LesionDetection
from .ranking import checked_labels
from .scans import ConfusionCounts

__all__ = ["MaskMetrics"]

_NO_MASK = "no mask was written"
_VOXELS = ("dice", "sensitivity", "fpr", "precision")
_COUNTS = ("true_positive", "false_positive", "false_negative", "true_negative")
# Between the values of a mask that is taken for a map.
_INSIDE = 0.5


class MaskMetrics:
    """What written masks find and flag, over scans that come one by one.

    A mask that was cleaned after its threshold has other voxels than the map above that threshold: these are the
    figures of the file. Memory is a few numbers a lesion and patient.
    """

    def __init__(self) -> None:
        self.num_scans = 0
        self._voxels = ConfusionCounts(_INSIDE)
        self._lesions: dict[str, LesionDetection] = {}
        self._patients: dict[Hashable, tuple[bool, bool]] = {}  # all scans normal so far, any voxel flagged

    def update(
        self,
        patient: Hashable,
        label: int | None,
        mask: npt.ArrayLike,
        reference: npt.ArrayLike | None,
        kind: str = "volume",
        voxel_volume: float | None = None,
    ) -> None:
        """Add one scan.

        Args:
            patient: whose it is.
            label: 0 (normal), 1 (abnormal) or None (unknown).
            mask: of any shape, True or 1 where flagged.
            reference: of the same shape, True or 1 on lesions; None where they are not known: then only whether the
                scan is flagged counts.
            kind: scans of which the sizes of lesions compare, ``"volume"`` or ``"image"``.
            voxel_volume: in mm3; None for sizes in pixels.

        Raises:
            ValueError: if the shapes differ, a value of a mask is neither 0 nor 1, or of one kind only some scans have
                a volume.
        """
        flagged = checked_labels(mask)
        if reference is not None:
            lesions = checked_labels(reference)
            if lesions.shape != flagged.shape:
                raise ValueError(f"mask of shape {flagged.shape} but reference of shape {lesions.shape}.")
            detection = self._lesions.setdefault(kind, LesionDetection({"mask": _INSIDE}))
            detection.update(flagged.astype(np.float32), lesions, voxel_volume)
            self._voxels.add(flagged, lesions)
        self.num_scans += 1
        normal, any_flagged = self._patients.get(patient, (True, False))
        self._patients[patient] = normal and label == 0, any_flagged or bool(flagged.any())

    def compute(self) -> dict[str, Any]:
        """The figures of all scans so far; computing changes nothing.

        Returns:
            ``num_scans``; of the voxels ``dice``, ``sensitivity``, ``fpr`` and ``precision``, with the four counts; of
            the patients all whose scans are labelled normal their number ``num_normal_patients``, of those with any
            flagged voxel ``num_normal_patients_flagged``, and the share ``normal_patients_flagged``; ``num_lesions``,
            ``num_lesions_found`` (those with a flagged voxel) and the share ``lesions_found``; ``lesion``: by kind
            ``unit``, ``num_scans``, ``num_lesions``, ``size_classes``, ``sensitivity``, ``sensitivity_by_size``,
            ``false_lesions_per_scan`` (connected parts of the mask that touch no lesion) and ``undefined``, as
            ``LesionDetection`` gives them; ``undefined``: by key the reason for each None.
        """
        voxels = self._voxels.metrics("dice")
        found = {kind: detection.compute() for kind, detection in self._lesions.items()}
        lesions = {kind: _lesions(metrics) for kind, metrics in found.items()}
        total = sum(metrics["num_lesions"] for metrics in lesions.values())
        hits = sum(round((m["sensitivity"] or 0.0) * m["num_lesions"]) for m in lesions.values())
        normal = [flagged for is_normal, flagged in self._patients.values() if is_normal]
        undefined = {name: reason for name, reason in voxels["undefined"].items() if name in _VOXELS}
        if not normal:
            undefined["normal_patients_flagged"] = "no normal patient"
        if not total:
            undefined["lesions_found"] = "no lesion"
        if not self.num_scans:
            undefined = dict.fromkeys(undefined, _NO_MASK)
        return {
            "num_scans": self.num_scans,
            **{name: voxels[name] for name in (*_VOXELS, *_COUNTS)},
            "num_normal_patients": len(normal),
            "num_normal_patients_flagged": sum(normal),
            "normal_patients_flagged": sum(normal) / len(normal) if normal else None,
            "num_lesions": total,
            "num_lesions_found": hits,
            "lesions_found": hits / total if total else None,
            "lesion": lesions,
            "undefined": undefined,
        }


def _lesions(found: dict[str, Any]) -> dict[str, Any]:
    at = found["at"]["mask"]
    undefined = {name: reason for name, reason in found["undefined"].items() if name != "froc_score"}
    return {
        **{name: found[name] for name in ("unit", "num_scans", "num_lesions", "size_classes")},
        **{name: at[name] for name in ("sensitivity", "sensitivity_by_size", "false_lesions_per_scan")},
        "undefined": undefined,
    }
