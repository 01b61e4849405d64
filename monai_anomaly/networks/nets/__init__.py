"""One file a method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from monai_anomaly.discovery import discovered

_found = discovered(__name__, __path__)
globals().update(_found)
__all__ = list(_found)

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...
