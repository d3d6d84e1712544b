"""Weights on a device share slabs that add up to what was announced."""

from __future__ import annotations

import random

import torch

from youtu_llm.ops.cuda_memory import DeviceMemory

MIB = 1 << 20


def slabs_of(tensors: list[torch.Tensor]) -> dict[int, int]:
    """Address -> bytes of the allocations behind these."""
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def sizes() -> list[int]:
    """Of a model's linears, the table first."""
    layer = (2_251_872, 2_451_456, 1_089_536, 2_179_072, 13_074_432, 6_537_216)
    return [50_000_000, *(size for _ in range(40) for size in layer)]


def test_slabs_add_up_to_what_was_announced() -> None:
    memory, wanted = DeviceMemory(torch.device("cpu")), sizes()
    memory.expected = sum(wanted) + MIB  # norms are announced too, but lie elsewhere
    tensors = [memory.empty(size) for size in wanted]
    slabs = slabs_of(tensors)
    assert max(slabs.values()) <= 480 * MIB
    assert sum(slabs.values()) - sum(wanted) < 6 * MIB
    after = memory.empty(3 * MIB)  # what nobody announced takes its own room
    assert sum(slabs_of([*tensors, after]).values()) - sum(slabs.values()) <= 4 * MIB


def test_pieces_are_aligned_and_apart() -> None:
    memory, rng = DeviceMemory(torch.device("cpu")), random.Random(0)
    tensors = [memory.empty(rng.randrange(1, 3 * MIB)) for _ in range(60)]
    assert len(slabs_of(tensors)) > 1
    ends: dict[int, int] = {}
    for tensor in sorted(tensors, key=lambda t: t.data_ptr()):
        slab, start = tensor.untyped_storage().data_ptr(), tensor.data_ptr()
        assert (start - slab) % 256 == 0
        assert start >= ends.get(slab, slab)
        ends[slab] = start + tensor.nbytes
