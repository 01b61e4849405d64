"""The folder ``models/``: ``model.pt``, a plain ``state_dict``, and ``detector.json``, what it belongs to."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from monai_anomaly import __version__
from monai_anomaly.calibration import FittedBuffers
from monai_anomaly.data import ScanPreprocessing
from monai_anomaly.data.split import seen_scans
from monai_anomaly.exceptions import InputError
from monai_anomaly.io.atomic import atomic_path
from monai_anomaly.io.content import content_hash
from monai_anomaly.io.series import SeriesFit
from monai_anomaly.io.tables import write_json
from monai_anomaly.io.untrusted import refuse_damage
from monai_anomaly.networks import AnomalyDetector, make_detector

__all__ = ["DetectorFiles", "check_unseen", "load_detector", "network_as_trained", "save_detector"]

_FORMAT = 1
# What is read of detector.json beside the settings of network and preprocessing, which their classes check.
_SIDE = {
    "type": "object",
    "required": ["scans", "patients", "digests"],
    "properties": {
        "scans": {"type": "integer"},
        "patients": {"type": "integer"},
        "digests": {"type": "array", "items": {"type": "string"}},
    },
}
_SPLIT = {
    "type": ["object", "null"],
    "required": ["sides"],
    "properties": {
        "sides": {
            "type": "object",
            "required": ["training", "validation", "calibration"],
            "additionalProperties": _SIDE,
        },
        "dicom": {
            "type": ["object", "null"],
            "required": ["modalities", "volumes"],
            "properties": {
                "modalities": {"type": "array", "items": {"type": "string"}},
                "volumes": {"type": "boolean"},
            },
        },
    },
}
_STAGE = {
    "type": "object",
    "properties": {"optimizers": {"type": "object", "additionalProperties": {"type": "object"}}},
}
_SCHEMA = {
    "type": "object",
    "required": ["format", "network", "preprocessing"],
    "properties": {
        "network": {"type": "object", "required": ["name", "arguments"]},
        "preprocessing": {"type": "object"},
        "training": {
            "type": "object",
            "properties": {"stages": {"type": "array", "items": _STAGE}, "split": _SPLIT},
        },
    },
}
# A description may ask for this many times the bytes of model.pt, or this many, before it is refused unmade.
_MOST_TIMES, _MOST_BYTES = 4, 1 << 26
_REMEDY = "model.pt and detector.json are of different detectors: copy both from one training."


@dataclass(frozen=True)
class DetectorFiles:
    """A detector and the preprocessing that it was trained with, rebuilt from its two files.

    Attributes:
        network: the detector, in eval mode on the CPU.
        preprocessing: of the scans.
        description: the content of ``detector.json``, and ``model_sha256``, the SHA-256 of ``model.pt``.
    """

    network: AnomalyDetector
    preprocessing: ScanPreprocessing
    description: dict[str, Any]

    @property
    def series_fit(self) -> SeriesFit:
        """What a DICOM series for this detector is like."""
        known = (self.description.get("training", {}).get("split") or {}).get("dicom") or {}
        volumes = self.network.spatial_dims == 3 or known.get("volumes", True)
        return SeriesFit(self.network.in_channels, volumes, tuple(known.get("modalities", ())))


def save_detector(
    folder: str | Path, network: AnomalyDetector, preprocessing: ScanPreprocessing, training: dict[str, Any]
) -> None:
    """Write ``model.pt`` and ``detector.json``, each whole or not at all.

    Args:
        folder: the folder ``models``; made where it is missing.
        network: the trained and calibrated detector.
        preprocessing: what its slices were made with.
        training: JSON-able facts on the training (data, hashes, epochs, seed).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # the description last: it says which weights it belongs to
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    # through a file object: a path's random name would go into the archive, and equal states give equal bytes
    with atomic_path(folder / "model.pt") as path, path.open("wb") as file:
        torch.save(state, file)
    write_json(
        folder / "detector.json",
        {
            "format": _FORMAT,
            "version": __version__,
            "model_sha256": content_hash(str(folder / "model.pt")),
            "network": network.config,
            "preprocessing": preprocessing.config,
            "calibration_patients": int(network.calibration.scores.numel()),
            "training": training,
            "use": "Research use only, not for diagnosis.",
        },
    )


def load_detector(folder: str | Path, time_point: int | None = None) -> DetectorFiles:
    """Rebuild a detector from ``model.pt`` and ``detector.json``.

    Args:
        folder: the folder ``models``.
        time_point: which volume of 4-D scans to read.

    Returns:
        The detector with its preprocessing.

    Raises:
        InputError: if a file is missing, unreadable or of another form (names the key), names an unknown network, or
            the two disagree (says where).
    """
    folder = Path(folder)
    for name in ("detector.json", "model.pt"):
        if not (folder / name).is_file():
            raise InputError(folder / name, "no such file", "Train first, or name the output_dir of a training.")
    described = folder / "detector.json"
    description = _read_description(described)
    with refuse_damage(described, "not a detector's description", "Train again."):
        preprocessing = ScanPreprocessing(**description["preprocessing"], time_point=time_point)
    network = _build(described, description["network"])
    _load_state(folder / "model.pt", network)
    digest = content_hash(str(folder / "model.pt"))
    if description.setdefault("model_sha256", digest) != digest:  # older versions wrote none
        raise InputError(folder / "model.pt", "is not the one that detector.json belongs to", _REMEDY)
    return DetectorFiles(network.eval(), preprocessing, description)


def network_as_trained(folder: str | Path, otherwise: Callable[[], AnomalyDetector]) -> AnomalyDetector:
    """The network that ``model.pt`` is the ``state_dict`` of, without these weights.

    Args:
        folder: the folder ``models``; it need not exist.
        otherwise: makes the network where there is no ``detector.json``, as before any training.

    Raises:
        InputError: if ``detector.json`` is unreadable or names an unknown network.
    """
    described = Path(folder) / "detector.json"
    return _build(described, _read_description(described)["network"]) if described.is_file() else otherwise()


def check_unseen(
    description: dict[str, Any], data: Sequence[dict[str, Any]], *, refuse: bool = True, num_workers: int = 1
) -> list[dict[str, str]]:
    """Find the scans that a detector was trained, validated or calibrated with: its figures on them would be flattered.

    Args:
        description: the content of ``detector.json``.
        data: items of the cohort to detect in.
        reject: raise where there are any, for an evaluation; False: warn, for maps alone.
        num_workers: threads that read the files.

    Returns:
        Those scans, as ``seen_scans`` gives them.

    Raises:
        InputError: where there are any and ``reject``.

    Warns:
        UserWarning: where there are any and not ``reject``, or the description says nothing of the cohort's files.
    """
    split = description.get("training", {}).get("split")
    if split is None:
        problem = "detector.json holds no hashes of its cohort: whether these scans are new to it cannot be checked."
        warnings.warn(problem, stacklevel=2)
        return []
    seen = seen_scans(split, data, num_workers)
    if seen:
        sides = " and ".join(sorted({scan["side"] for scan in seen}))
        problem = (
            f"{len(seen)} of {len(data)} scans were among those of the detector's {sides} (first: {seen[0]['case']})"
        )
        error = InputError(seen[0]["image"], problem, "Leave them out: their scores say nothing of new scans.")
        if refuse:
            raise error
        warnings.warn(str(error), stacklevel=2)
    return seen


def _read_description(described: Path) -> dict[str, Any]:
    from jsonschema import ValidationError, validate

    with refuse_damage(described, "not a detector's description", "Train again."):
        description = json.loads(described.read_text(encoding="utf-8"))
        try:
            validate(description, _SCHEMA)
        except ValidationError as error:
            raise ValueError(f"{error.json_path}: {error.message[:150]}") from error
        if description["format"] != _FORMAT:
            raise InputError(described, f"format {description['format']} is not {_FORMAT}", "Update the package.")
    return description


def _build(described: Path, config: dict[str, Any]) -> AnomalyDetector:
    name = config["name"]
    _check_size(described, config)
    with refuse_damage(described, f"the arguments of {name} do not fit it", "Train again."):
        try:
            return make_detector(config)
        except LookupError as error:
            raise InputError(described, f"network {name!r} is unknown", "Update the package.") from error


def _check_size(described: Path, config: dict[str, Any]) -> None:
    """Refuse a description of a network far larger than ``model.pt`` can be of, before memory is taken for it."""
    stated = 0
    # a network that cannot be made without values, or not at all, says so where it is made
    with suppress(Exception), torch.device("meta"):
        state = make_detector(config).state_dict()
        stated = sum(value.numel() * value.element_size() for value in state.values())
    model = described.with_name("model.pt")
    held = model.stat().st_size if model.is_file() else 0
    if stated > max(_MOST_TIMES * held, _MOST_BYTES):
        problem = f"describes a network of {stated} bytes, where model.pt has {held}"
        raise InputError(described, problem, "Copy both files from one training.")


def _load_state(path: Path, network: AnomalyDetector) -> None:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch raises a dozen types for a damaged file.
        raise InputError(
            path, f"not a readable state_dict ({type(error).__name__})", "Copy it again or train again."
        ) from error
    expected = network.state_dict()
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise InputError(path, "not a plain state_dict of tensors", "Train again.")
    for key in expected:
        module, _, name = key.rpartition(".")
        owner = network.get_submodule(module)
        fitted = isinstance(owner, FittedBuffers)
        if key not in state:
            if isinstance(owner, FittedBuffers) and name in owner.optional:
                continue  # written by an older version
            raise InputError(path, f"disagrees with detector.json: {key} is missing", _REMEDY)
        # Of the calibration the file alone knows the number of patients.
        if not (state[key].ndim == expected[key].ndim if fitted else state[key].shape == expected[key].shape):
            found, wanted = tuple(state[key].shape), tuple(expected[key].shape)
            raise InputError(path, f"disagrees with detector.json: {key} has shape {found}, not {wanted}", _REMEDY)
    for key in state:
        if key not in expected:
            raise InputError(path, f"disagrees with detector.json: {key} is not part of the network", _REMEDY)
    network.load_state_dict(state)
