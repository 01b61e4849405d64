"""The machine that a benchmark runs on: the device asked for, and what to say of the hardware."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from monai_anomaly.exceptions import InputError

__all__ = ["checked_device", "hardware"]


def checked_device(given: Any) -> Any:
    """A torch device from its name.

    Args:
        given: such as ``"cpu"`` or ``"cuda:0"``, or a device.

    Raises:
        InputError: if there is no such device on this machine.
    """
    import torch

    try:
        device = torch.device(given)
    except RuntimeError as error:
        raise InputError("--device", f"{given!r} is no device", "Give cpu or cuda:0.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("--device", "there is no GPU", "Give cpu.")
    return device


def hardware(device: Any) -> dict[str, Any]:
    """The machine that a unit runs on.

    Args:
        device: a torch device.
    """
    import torch

    device = torch.device(device)
    facts: dict[str, Any] = {
        "system": platform.system(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["peak_gpu_bytes"] = torch.cuda.max_memory_allocated(device)
    return facts


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
