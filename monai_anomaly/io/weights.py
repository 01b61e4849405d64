"""Files of ImageNet weights: a checked download at set-up, and the reading of a file that is at hand."""

from __future__ import annotations

import hashlib
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path

import torch
from torch import Tensor

from monai_anomaly.exceptions import InputError
from monai_anomaly.io.atomic import atomic_path

__all__ = ["PUBLISHED_WEIGHTS", "download_weights", "fitting_weights", "read_weights"]

# torchvision's published files. The digits in a name are the first of the file's SHA-256.
PUBLISHED_WEIGHTS = {
    "resnet18": ("https://download.pytorch.org/models/resnet18-f37072fd.pth", "f37072fd"),
    "wide_resnet50_2": ("https://download.pytorch.org/models/wide_resnet50_2-95faca4d.pth", "95faca4d"),
}
_OFFLINE = "Where there is no network, fetch the file elsewhere and pass its path as weights."


def download_weights(
    encoder: str, folder: str | Path, url: str | None = None, sha256: str | None = None, timeout: float = 60.0
) -> Path:
    """The published weights of an encoder, downloaded unless the folder holds them.

    Args:
        encoder: a key of ``PUBLISHED_WEIGHTS``; any name where ``url`` and ``sha256`` are given.
        folder: where the file goes; made where it is missing.
        url: of the file; None: torchvision's.
        sha256: of the file, or its first eight or more digits; None: of torchvision's.
        timeout: seconds without an answer after which the download fails.

    Returns:
        The file's path. The file is whole and has the hash, or it is not there.

    Raises:
        InputError: if nothing is published under the name, the download fails or the hash differs.
    """
    if url is None:
        if encoder not in PUBLISHED_WEIGHTS:
            known = ", ".join(PUBLISHED_WEIGHTS)
            raise InputError("weights", f"no weights are published for {encoder!r}", f"Known: {known}; or pass a path.")
        url, published = PUBLISHED_WEIGHTS[encoder]
        sha256 = sha256 or published
    sha256 = (sha256 or "").lower()
    if len(sha256) < 8:
        raise InputError(url, "a download needs eight or more digits of its SHA-256", "Pass them beside the url.")
    path = Path(folder) / url.rstrip("/").rsplit("/", 1)[-1]
    if path.is_file() and _sha256(path).startswith(sha256):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as partial:
            with urllib.request.urlopen(url, timeout=timeout) as answer, open(partial, "wb") as file:
                while block := answer.read(1 << 20):
                    file.write(block)
            found = _sha256(partial)
            if not found.startswith(sha256):
                raise InputError(url, f"the download has SHA-256 {found[:12]}..., not {sha256}...", "Try again.")
    except InputError:
        raise
    except (OSError, HTTPException, ValueError) as error:  # urllib's errors are among the first, a bad url is the last
        reason = getattr(error, "reason", None) or error
        raise InputError(url, f"the download failed ({reason})", _OFFLINE) from error
    return path


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file of weights.

    Args:
        path: a ``state_dict`` as torchvision or timm write it, which have the same names, or one that a training wrote
            under ``state_dict`` or ``model``, its names with or without one common prefix (``module.``, ``encoder.``).

    Returns:
        The tensors by torchvision's names.

    Raises:
        InputError: if there is no such file, or it holds no such tensors. Nothing but tensors is unpickled.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(path, "no such file of weights", "Check the path.")
    remedy = "Pass a state_dict in torchvision's format."
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen types for a damaged file
        raise InputError(path, f"the weights cannot be read ({type(error).__name__})", remedy) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise InputError(path, "is not a state_dict of tensors", remedy)
    first = "layer1.0.conv1.weight"
    prefixes = {key[: -len(first)] for key in loaded if key.endswith(first)}
    prefix = min(prefixes, key=len) if prefixes else ""
    return {key[len(prefix) :]: value for key, value in loaded.items() if key.startswith(prefix)}


def fitting_weights(path: str | Path, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that an encoder takes; what it does not have (``layer4``, ``fc``) is left out.

    Args:
        path: where the weights are from, for the message.
        state: the weights.
        expected: the encoder's ``state_dict``.

    Returns:
        A ``state_dict`` with the very keys and shapes of ``expected``.

    Raises:
        InputError: names the first key that is missing or of another shape.
    """
    remedy = "Pass weights of the very encoder that is trained (option encoder or backbone)."
    fitting = {}
    for key, wanted in expected.items():
        if key not in state and key.endswith("num_batches_tracked"):
            fitting[key] = torch.zeros_like(wanted)  # files from before PyTorch 0.4.1 have none; eval mode reads none
        elif key not in state:
            raise InputError(path, f"the weights do not fit the encoder: {key} is missing", remedy)
        elif state[key].shape != wanted.shape:
            found, shape = tuple(state[key].shape), tuple(wanted.shape)
            raise InputError(path, f"the weights do not fit the encoder: {key} has shape {found}, not {shape}", remedy)
        else:
            fitting[key] = state[key].detach().to(wanted.dtype)
    return fitting


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
