"""Allocates weights on a device: few large allocations, no larger than needed."""

from __future__ import annotations

import torch
from torch import Tensor

_SLAB_BYTES = 32 << 20  # until the total is announced
_LARGEST_SLAB_BYTES = 480 << 20  # recent L4T refuses large single allocations
_GRAIN = 2 << 20  # what PyTorch rounds large allocations up to
_ALIGNMENT = 256


class DeviceMemory:
    """Weights of any size, taken from slabs: PyTorch's allocator would leave holes between them."""

    def __init__(self, device: torch.device) -> None:
        self.expected: int | None = None  # bytes still to come, if known
        self._device = device
        self._free: list[Tensor] = []  # what is left of each

    def empty(self, num_bytes: int) -> Tensor:
        """uint8 [num_bytes], aligned to 256 bytes."""
        wanted = _round_up(num_bytes, _ALIGNMENT)
        fits = [i for i, free in enumerate(self._free) if wanted <= free.numel()]
        if not fits:
            fits = [len(self._free)]
            self._free.append(self._slab(wanted))
        if self.expected is not None:
            self.expected = max(0, self.expected - wanted)
        best = min(fits, key=lambda i: self._free[i].numel())
        taken, self._free[best] = self._free[best][:num_bytes], self._free[best][wanted:]
        return taken

    def _slab(self, wanted: int) -> Tensor:
        """As much as is still to come; what is left of others will be used first."""
        size = _SLAB_BYTES
        if self.expected is not None:
            rest = self.expected - sum(free.numel() for free in self._free)
            size = min(rest, _LARGEST_SLAB_BYTES)
        size = _round_up(max(wanted, size), _GRAIN)
        return torch.empty(size, dtype=torch.uint8, device=self._device)


def _round_up(size: int, grain: int) -> int:
    return -(-size // grain) * grain
