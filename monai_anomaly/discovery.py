"""What the modules of a folder define, found without a list of their names: a new method is a new file."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from typing import Any

__all__ = ["discovered"]


def discovered(package: str, path: Iterable[str]) -> dict[str, Any]:
    """Import every module of a package, its packages excepted.

    Args:
        package: its ``__name__``.
        path: its ``__path__``.

    Returns:
        What the modules name in ``__all__``.
    """
    names: dict[str, Any] = {}
    for found in pkgutil.iter_modules(list(path)):
        if not found.ispkg:
            module = importlib.import_module(f"{package}.{found.name}")
            names |= {name: getattr(module, name) for name in module.__all__}
    return names
