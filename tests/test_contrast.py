"""Global contrast normalisation: the tensor function, the module in the detectors, the MONAI transforms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from monai_anomaly.networks.blocks import ContrastNormalization, global_contrast


def plain(image: np.ndarray, norm: str) -> np.ndarray:
    """One image, pixel by pixel."""
    values = [float(v) for v in image.ravel()]
    mean = sum(values) / len(values)
    rest = [v - mean for v in values]
    if norm == "l1":
        contrast = sum(abs(v) for v in rest) / len(rest)
    else:
        contrast = (sum(v * v for v in rest) / len(rest)) ** 0.5
    return np.array([v / contrast for v in rest]).reshape(image.shape)


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("shape", [(2, 1, 5, 4), (3, 3, 4, 4), (1, 2, 3, 4, 2)])
def test_contrast_is_taken_away(norm: str, shape: tuple[int, ...]) -> None:
    image = torch.from_numpy(np.random.default_rng(0).random(shape))
    x, mean, contrast = global_contrast(image, norm)
    for b in range(shape[0]):
        np.testing.assert_allclose(x[b].numpy(), plain(image[b].numpy(), norm), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(x * contrast + mean, image)
    torch.testing.assert_close(global_contrast(3.0 * image + 2.0, norm)[0], x)  # brightness and contrast do not count


def test_a_constant_image_stays_finite() -> None:
    for norm in ("l1", "l2"):
        assert torch.isfinite(global_contrast(torch.full((1, 1, 4, 4), 0.7), norm)[0]).all()
    for rescale in ("training", "image", None):
        assert torch.isfinite(ContrastNormalization("l1", rescale)(torch.full((1, 1, 4, 4), 0.7))[0]).all()


@pytest.mark.parametrize("norm", ["l1", "l2", None])
@pytest.mark.parametrize("rescale", ["training", "image", None])
def test_the_module_goes_there_and_back(norm: str | None, rescale: str | None) -> None:
    module = ContrastNormalization(norm, rescale)
    images = torch.rand(6, 2, 5, 4) * torch.linspace(0.2, 1.0, 6)[:, None, None, None]
    if rescale == "training":
        module.fit([images[:3], images[3:]])
    x, offset, scale = module(images)
    torch.testing.assert_close(x * scale + offset, images)
    normalised = np.stack([plain(image, norm) if norm else image for image in images.double().numpy()])
    if rescale == "training":
        low, high = normalised.min(), normalised.max()
        assert float(module.lower) == pytest.approx(low, rel=1e-5)
        assert float(module.upper) == pytest.approx(high, rel=1e-5)
        normalised = (normalised - low) / (high - low)
        assert float(module(5.0 * images - 0.1)[0].max()) == pytest.approx(1.0, abs=1e-4) or norm is None
    elif rescale == "image":
        low, high = normalised.min(axis=(1, 2, 3), keepdims=True), normalised.max(axis=(1, 2, 3), keepdims=True)
        normalised = (normalised - low) / (high - low)
    np.testing.assert_allclose(x.numpy(), normalised, rtol=1e-4, atol=1e-5)


def test_rescaling_each_image_undoes_the_contrast_normalisation() -> None:
    images = torch.rand(3, 1, 6, 6)
    with_contrast = ContrastNormalization("l1", "image")(images)[0]
    torch.testing.assert_close(with_contrast, ContrastNormalization(None, "image")(images)[0])


def test_a_range_needs_images() -> None:
    module = ContrastNormalization()
    with pytest.raises(ValueError, match="range of the training images"):
        module.fit([])
    with pytest.raises(ValueError, match="range of the training images"):
        ContrastNormalization(None).fit([torch.ones(2, 1, 4, 4)])
    assert (float(module.lower), float(module.upper)) == (0.0, 1.0)


@pytest.mark.parametrize(("kwargs", "message"), [({"norm": "l3"}, "contrast"), ({"rescale": "batch"}, "rescale")])
def test_unknown_settings_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ContrastNormalization(**kwargs)
