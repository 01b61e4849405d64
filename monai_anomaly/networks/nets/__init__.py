"""One file a method."""

from __future__ import annotations

from .proxyano import ProxyAno, ProxyExtractionModule

__all__ = ["ProxyAno", "ProxyExtractionModule"]
