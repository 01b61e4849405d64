"""What is minimised."""

from __future__ import annotations

from .proxyano import AdversarialLoss, ImageReconstructionLoss, SquaredErrorLoss

__all__ = ["AdversarialLoss", "ImageReconstructionLoss", "SquaredErrorLoss"]
