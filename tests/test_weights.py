"""Files of weights: what is read, what is rejected, and the checked download."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from monai_anomaly.exceptions import InputError
from monai_anomaly.io import PUBLISHED_WEIGHTS, download_weights, fitting_weights, read_weights


def encoder_state() -> dict[str, Tensor]:
    """As small as a state_dict with torchvision's names can be."""
    torch.manual_seed(0)
    names = ["conv1.weight", "bn1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer3.0.conv1.weight"]
    state = {name: torch.randn(2, 3) for name in names}
    state["bn1.num_batches_tracked"] = torch.tensor(7)
    return state


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    "form", ["torchvision", "partial", "module.", "encoder.backbone.", "state_dict", "model", "parameters", "half"]
)
def test_forms_of_a_file(form: str, tmp_path: Path) -> None:
    expected = encoder_state()
    content: Any = dict(expected)
    if form == "torchvision":
        content |= {"layer4.0.conv1.weight": torch.ones(3), "fc.weight": torch.ones(4, 5), "fc.bias": torch.ones(4)}
    elif form.endswith("."):
        content = {form + key: value for key, value in content.items()} | {"head.weight": torch.ones(2)}
    elif form in ("state_dict", "model"):
        content = {"epoch": 3, form: content}
    elif form == "parameters":
        content = {k: v if v.dtype == torch.int64 else nn.Parameter(v) for k, v in content.items()}
    elif form == "half":
        content = {k: v.half() if v.is_floating_point() else v for k, v in content.items()}
    path = saved(tmp_path / "weights.pth", content)
    found = fitting_weights(path, read_weights(path), expected)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype
        assert not found[key].requires_grad
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-3)


def test_old_files_count_no_batches(tmp_path: Path) -> None:
    expected = encoder_state()
    without = {key: value for key, value in expected.items() if not key.endswith("num_batches_tracked")}
    path = saved(tmp_path / "old.pth", without)
    assert int(fitting_weights(path, read_weights(path), expected)["bn1.num_batches_tracked"]) == 0


def test_wrong_weights_are_refused_by_key_and_file(tmp_path: Path) -> None:
    expected = encoder_state()
    short = {key: value for key, value in expected.items() if key != "bn1.running_mean"}
    with pytest.raises(InputError, match=r"a\.pth: .*bn1\.running_mean is missing.*option encoder"):
        fitting_weights(tmp_path / "a.pth", short, expected)
    other = {**expected, "layer3.0.conv1.weight": torch.zeros(4, 3)}
    with pytest.raises(InputError, match=r"layer3\.0\.conv1\.weight has shape \(4, 3\), not \(2, 3\)"):
        fitting_weights(tmp_path / "a.pth", other, expected)


class Unknown:
    """A class that no file of weights should be able to make."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"not a file of torch", "cannot be read"),
        ({"a": 1}, "not a state_dict"),
        ([torch.zeros(1)], "not a state_dict"),
        ({"a": Unknown()}, "cannot be read"),
    ],
)
def test_unreadable_files_are_refused(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(InputError, match=message):
        read_weights(path)


def test_published_files_bear_their_hash() -> None:
    for url, digits in PUBLISHED_WEIGHTS.values():
        assert url.startswith("https://download.pytorch.org/models/")
        assert url.endswith(f"-{digits}.pth")
        assert len(digits) == 8


def test_download_is_checked_and_made_once(tmp_path: Path) -> None:
    source = saved(tmp_path / "source.pth", encoder_state())
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    cache, url = tmp_path / "deep" / "cache", source.as_uri()
    for digits in (digest, digest[:8].upper()):
        path = download_weights("resnet18", cache, url, digits)
        assert path == cache / "source.pth"
        assert path.read_bytes() == source.read_bytes()
    source.unlink()
    assert download_weights("resnet18", cache, url, digest).is_file()  # no second download
    path.write_bytes(b"damaged")
    with pytest.raises(InputError, match="download failed"):  # a damaged file is fetched anew
        download_weights("resnet18", cache, url, digest)


def test_failed_downloads_leave_nothing(tmp_path: Path) -> None:
    source, cache = saved(tmp_path / "source.pth", encoder_state()), tmp_path / "cache"
    with pytest.raises(InputError, match=r"source\.pth: the download has SHA-256 [0-9a-f]{12}\.\.\., not 00000000"):
        download_weights("resnet18", cache, source.as_uri(), "0" * 8)
    with pytest.raises(InputError, match=r"the download failed .* pass its path as weights"):
        download_weights("resnet18", cache, (tmp_path / "absent.pth").as_uri(), "0" * 8)
    with pytest.raises(InputError, match="the download failed"):
        download_weights("resnet18", cache, "http://127.0.0.1:9/resnet18.pth", "0" * 8, timeout=2)
    with pytest.raises(InputError, match="the download failed"):
        download_weights("resnet18", cache, "no url", "0" * 8)
    assert list(cache.iterdir()) == []
    with pytest.raises(InputError, match="SHA-256"):
        download_weights("resnet18", cache, source.as_uri())
    with pytest.raises(InputError, match=r"'vgg'.*resnet18, wide_resnet50_2"):
        download_weights("vgg", cache)
