"""Eq. 7 to 11 against plain computations in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from monai_anomaly.losses import AdversarialLoss, ImageReconstructionLoss, SquaredErrorLoss


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-logits))


def squared(prediction: np.ndarray, target: np.ndarray, reduction: str) -> float:
    per_image = [((p - t) ** 2).sum() for p, t in zip(prediction, target)]
    return float(np.mean(per_image)) / (prediction[0].size if reduction == "mean" else 1)


def linear_logits(image: np.ndarray) -> np.ndarray:
    """A discriminator that can be computed by hand: one logit per pixel."""
    return 1.5 * image - 0.4


def batch(seed: int = 0) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(seed)
    image, reconstruction, repaired = random.random((3, 2, 3, 6, 5))
    mask = (random.random((2, 1, 6, 5)) < 0.4).astype(np.float64)
    return image, reconstruction, repaired, mask


def as_tensors(arrays: tuple[np.ndarray, ...]) -> list[Tensor]:
    return [torch.from_numpy(array) for array in arrays]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("shape", [(2, 1, 4, 5), (3, 3, 2, 3, 4)])
def test_squared_error(reduction: str, shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(1)
    prediction, target = random.normal(size=(2, *shape))
    loss = SquaredErrorLoss(reduction)(torch.from_numpy(prediction), torch.from_numpy(target))
    assert loss.ndim == 0
    assert float(loss) == pytest.approx(squared(prediction, target, reduction), rel=1e-12)


def test_unknown_reduction_is_refused() -> None:
    with pytest.raises(ValueError, match="reduction"):
        SquaredErrorLoss("none")
    with pytest.raises(ValueError, match="reduction"):
        ImageReconstructionLoss(reduction="average")


def test_adversarial_terms() -> None:
    random = np.random.default_rng(2)
    real, fake = random.normal(scale=3, size=(2, 4, 1, 3, 3))
    r, f = torch.from_numpy(real), torch.from_numpy(fake)
    assert float(AdversarialLoss().generator(f)) == pytest.approx(np.log(1 - sigmoid(fake)).mean(), rel=1e-9)
    assert float(AdversarialLoss(False).generator(f)) == pytest.approx(-np.log(sigmoid(fake)).mean(), rel=1e-9)
    expected = -(np.log(sigmoid(real)).mean() + np.log(1 - sigmoid(fake)).mean())
    for saturating in (True, False):
        assert float(AdversarialLoss(saturating).discriminator(r, f)) == pytest.approx(expected, rel=1e-9)


def test_adversarial_terms_stay_finite_where_the_discriminator_is_sure() -> None:
    sure = torch.tensor([-1000.0, 1000.0])
    for saturating in (True, False):
        loss = AdversarialLoss(saturating)
        assert torch.isfinite(loss.generator(sure))
        assert torch.isfinite(loss.discriminator(sure, sure))


def test_both_forms_push_the_generator_the_same_way() -> None:
    for saturating in (True, False):
        logits = torch.zeros(3, requires_grad=True)
        AdversarialLoss(saturating).generator(logits).backward()
        assert (logits.grad < 0).all()  # a higher logit is a lower loss


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("saturating", [True, False])
@pytest.mark.parametrize("lambda_g", [0.01, 0.3, 0.0])
def test_generator_terms_are_equations_8_to_11(reduction: str, saturating: bool, lambda_g: float) -> None:
    image, reconstruction, repaired, mask = batch()

    def term(output: np.ndarray, target: np.ndarray) -> float:
        d = sigmoid(linear_logits(output))
        adversarial = np.log(1 - d).mean() if saturating else -np.log(d).mean()
        return squared(output, target, reduction) + lambda_g * float(adversarial)

    rec = term(reconstruction, image)
    whole = term(repaired, image)
    local = term(mask * repaired, mask * image)
    loss = ImageReconstructionLoss(lambda_g, reduction=reduction, saturating=saturating)
    terms = loss(linear_logits, *as_tensors((image, reconstruction, repaired, mask)))
    assert float(terms["rec"]) == pytest.approx(rec, rel=1e-9)
    assert float(terms["global"]) == pytest.approx(whole, rel=1e-9)
    assert float(terms["local"]) == pytest.approx(local, rel=1e-9)
    assert float(terms["loss"]) == pytest.approx(rec + 0.25 * whole + 0.5 * local, rel=1e-9)
    without = loss(linear_logits, *as_tensors((image, reconstruction)))
    assert set(without) == {"loss", "rec"}
    assert float(without["loss"]) == pytest.approx(rec, rel=1e-9)


def test_weights_are_the_papers_by_default() -> None:
    loss = ImageReconstructionLoss()
    assert (loss.lambda_g, loss.lambda_global, loss.lambda_local) == (0.01, 0.25, 0.5)
    assert loss.adversarial.saturating


@pytest.mark.parametrize(("lambda_global", "lambda_local"), [(0.25, 0.5), (2.0, 0.0), (0.0, 0.0)])
def test_discriminator_terms_have_the_weights_of_equation_11(lambda_global: float, lambda_local: float) -> None:
    image, reconstruction, repaired, mask = batch(4)

    def term(real: np.ndarray, fake: np.ndarray) -> float:
        return -float(np.log(sigmoid(linear_logits(real))).mean() + np.log(1 - sigmoid(linear_logits(fake))).mean())

    expected = (
        term(image, reconstruction)
        + lambda_global * term(image, repaired)
        + lambda_local * term(mask * image, mask * repaired)
    )
    loss = ImageReconstructionLoss(lambda_global=lambda_global, lambda_local=lambda_local)
    tensors = as_tensors((image, reconstruction, repaired, mask))
    assert float(loss.discriminator(linear_logits, *tensors)) == pytest.approx(expected, rel=1e-6)
    assert float(loss.discriminator(linear_logits, *tensors[:2])) == pytest.approx(
        term(image, reconstruction), rel=1e-6
    )


def test_only_the_generator_step_reaches_the_generator() -> None:
    image, reconstruction, repaired, mask = as_tensors(batch())
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    outputs = [reconstruction.requires_grad_(), repaired.requires_grad_()]
    loss = ImageReconstructionLoss()
    loss.discriminator(lambda x: scale * x, image, *outputs, mask).backward()
    assert all(output.grad is None for output in outputs)
    assert float(scale.grad) != 0.0
    loss(lambda x: scale * x, image, *outputs, mask)["loss"].backward()
    assert all(float(output.grad.abs().sum()) > 0 for output in outputs)


def test_discriminator_is_not_asked_without_adversarial_weight() -> None:
    def never(x: Tensor) -> Tensor:
        raise AssertionError("the discriminator was asked")

    terms = ImageReconstructionLoss(lambda_g=0.0)(never, *as_tensors(batch()))
    assert torch.isfinite(terms["loss"])
