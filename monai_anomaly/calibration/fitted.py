"""Buffers whose sizes only a fit, or a file, knows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["FittedBuffers"]


class FittedBuffers(nn.Module):
    """A module of empty buffers that are filled by a fit and take the sizes of a ``state_dict`` when it is loaded.

    Args:
        buffers: name and number of dimensions of each float32 buffer.
        integers: names of buffers that are int64 instead.
        optional: names that a ``state_dict`` of an older version may lack; they then stay empty.
    """

    def __init__(self, buffers: dict[str, int], integers: tuple[str, ...] = (), optional: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.optional = list(optional)
        for name, dimensions in buffers.items():
            dtype = torch.int64 if name in integers else torch.float32
            self.register_buffer(name, torch.empty([0] * dimensions, dtype=dtype))

    @torch.jit.unused
    def fill(self, **values: Tensor) -> None:
        """Replace buffers, kept on their device and in their dtype.

        Args:
            **values: by name, with as many dimensions as the buffer has.
        """
        for name, value in values.items():
            old = self.get_buffer(name)
            setattr(self, name, value.detach().to(old).contiguous())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name, buffer in list(self.named_buffers(recurse=False)):
            value = state_dict.get(prefix + name)
            if value is None and name in self.optional:
                # torch hands over a copy: nothing of the caller's changes.
                value = state_dict[prefix + name] = buffer.new_empty([0] * buffer.ndim)
            if isinstance(value, Tensor) and value.ndim == buffer.ndim:
                setattr(self, name, buffer.new_empty(value.shape))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
