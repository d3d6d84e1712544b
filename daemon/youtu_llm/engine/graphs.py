"""Decode steps as captured CUDA graphs: one launch instead of hundreds.

A graph is captured once for each batch size. Its arguments (token ids, positions, slots, lengths
and page tables) are device data, written by one copy per step. Rows beyond the sequences have no
slot and no context: they write nothing and attend to nothing.

A captured step ends by turning its inputs into the next step's, so greedy decoding can be one step
ahead: while the host records a token, the device computes the next one, right if every sequence
continues. If one stops, that step's result is dropped; what it wrote lies behind the end of its
sequence and is overwritten before it is read.
"""

from __future__ import annotations

import ctypes
import gc
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from youtu_llm.engine.models.spec import Model
from youtu_llm.engine.sequence import Sequence
from youtu_llm.ops.api import PAGE_SIZE, Batch, CacheStorage

SIZES = (1, 2, 4, 8)


class _Inputs:
    """A step's arguments in one pinned buffer and their copy on the device.

    `turn` counts the steps since the copy, so that a step's tokens do not overwrite those of the
    one before.
    """

    def __init__(self, rows: int, table_width: int, device: torch.device) -> None:
        # In int32: token ids, positions and slots are int64, then lengths, tables and the turn.
        size = 6 * rows + rows + rows * table_width + 1
        self._host = torch.zeros(size, dtype=torch.int32, pin_memory=True)
        self._device = torch.zeros(size, dtype=torch.int32, device=device)
        self._rows = rows
        self.on_device = self._split(self._device)
        self.turn = self._device[-1:]
        # numpy writes lists into place in a microsecond.
        self._ids, self._positions, self._slots, self._lengths, self._tables = (
            part.numpy() for part in self._split(self._host)
        )
        self._pages: list[list[int]] = [[]] * rows  # in each row of the tables

    def _split(self, flat: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        rows = self._rows
        wide = flat[: 6 * rows].view(torch.int64).view(3, rows)
        lengths, tables = flat[6 * rows : 7 * rows], flat[7 * rows : -1]
        return wide[0], wide[1], wide[2], lengths, tables.view(rows, -1)

    def set(self, sequences: list[Sequence]) -> None:
        for row in range(self._rows):
            if row >= len(sequences):
                self._slots[row], self._lengths[row] = -1, 0
                continue
            seq, place = sequences[row], _place(sequences[row])
            self._ids[row], self._positions[row] = place.token, place.position
            self._slots[row], self._lengths[row] = place.slot, place.length
            if seq.pages != self._pages[row]:
                self._tables[row, : len(seq.pages)] = seq.pages
                self._pages[row] = list(seq.pages)
        # The copy before this one is over: a step that came after it has been waited for.
        self._device.copy_(self._host, non_blocking=True)

    def lists_pages_of(self, sequences: list[Sequence]) -> bool:
        return all(seq.pages == pages for seq, pages in zip(sequences, self._pages, strict=False))


class _Graph:
    def __init__(
        self,
        model: Model,
        cache: CacheStorage,
        rows: int,
        table_width: int,
        pool: Any,
        stream: torch.cuda.Stream,
    ) -> None:
        ops, device = model.ops, model.ops.device
        self.inputs = _Inputs(rows, table_width, device)
        self.inputs.set([])
        ids, positions, slots, lengths, tables = self.inputs.on_device
        batch = Batch(
            token_ids=ids,
            positions=positions,
            slots=slots,
            query_start=torch.arange(rows + 1, dtype=torch.int32, device=device),
            context_len=lengths,
            page_table=tables,
            query_lens=(1,) * rows,
            context_lens=(1,) * rows,  # unused: kernels read context_len on the device
        )
        self.batch = batch  # its tensors must outlive the graph
        # Kernels write here themselves: a copy between two steps would cost 40 us.
        self._found = torch.zeros(2, rows, dtype=torch.int64, pin_memory=True)
        self._done = (torch.cuda.Event(), torch.cuda.Event())
        self._turn = 0  # as on the device, once launched steps are done
        self._ahead: list[_Place] | None = None  # whose next tokens are being computed
        ops.argmax(model.forward(batch, cache))  # warm-up: one-time set-up must not be captured
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            # Older torch.cuda.graph makes a stream even if it is given one.
            self._graph.capture_begin(pool=pool)
            try:
                self.logits = model.forward(batch, cache)  # [rows, vocab]
                self.best = ops.argmax(self.logits)  # [rows]
                ops.advance(batch, self.best, self._found, self.inputs.turn)
            finally:
                self._graph.capture_end()

    def run(self, sequences: list[Sequence]) -> tuple[Tensor, Tensor]:
        self._start(sequences)
        return self.logits[: len(sequences)], self.best[: len(sequences)]

    def run_greedy(self, sequences: list[Sequence]) -> list[int]:
        places = [_place(seq) for seq in sequences]
        if self._ahead != places or not self.inputs.lists_pages_of(sequences):
            self._start(sequences)
        self._ahead = None
        turn = (self._turn - 1) % 2
        # The next page of a sequence is not known yet.
        continues = all((place.position + 1) % PAGE_SIZE for place in places)
        if continues:
            self._launch()
        self._done[turn].synchronize()
        tokens: list[int] = self._found[turn, : len(sequences)].tolist()
        if continues:
            self._ahead = [
                _Place(place.sequence, place.position + 1, token, place.slot + 1, place.length + 1)
                for place, token in zip(places, tokens, strict=True)
            ]
        return tokens

    def _start(self, sequences: list[Sequence]) -> None:
        self._ahead = None
        self.inputs.set(sequences)
        self._turn = 0
        self._launch()

    def _launch(self) -> None:
        self._graph.replay()
        self._done[self._turn % 2].record()
        self._turn += 1


@dataclass(frozen=True, slots=True)
class _Place:
    """What a step of one sequence depends on, except its pages."""

    sequence: Sequence
    position: int
    token: int
    slot: int
    length: int


def _place(seq: Sequence) -> _Place:
    position = seq.num_computed
    slot = seq.page_of(position) * PAGE_SIZE + position % PAGE_SIZE
    return _Place(seq, position, seq.token_ids[position], slot, seq.num_visible + 1)


class DecodeGraphs:
    """The captured decode steps of a model, one graph per batch size."""

    @torch.inference_mode()
    def __init__(
        self, model: Model, cache: CacheStorage, *, max_num_seqs: int, max_pages: int
    ) -> None:
        pool, stream = torch.cuda.graph_pool_handle(), _new_stream()
        enough = next((size for size in SIZES if size >= max_num_seqs), SIZES[-1])
        sizes = [size for size in SIZES if size <= enough]
        # Freeing pinned memory during a capture would invalidate it.
        gc.collect()
        with model.ops.shared_logits():
            # The largest first: the others fit into its memory.
            self._graphs = {
                size: _Graph(model, cache, size, max_pages, pool, stream)
                for size in reversed(sizes)
            }
        self.max_rows = sizes[-1]

    def run(self, sequences: list[Sequence]) -> tuple[Tensor, Tensor]:
        """The next tokens of sequences that each have one token to compute.

        -> (logits [n, vocab], ids of the largest [n]), valid until the next call.
        """
        return self._of(sequences).run(sequences)

    def run_greedy(self, sequences: list[Sequence]) -> list[int]:
        """The likeliest next tokens of such sequences."""
        return self._of(sequences).run_greedy(sequences)

    def _of(self, sequences: list[Sequence]) -> _Graph:
        return self._graphs[next(size for size in SIZES if size >= len(sequences))]


def _new_stream() -> torch.cuda.Stream:
    """A stream to capture on, for the life of the process.

    PyTorch's own come as a pool of them, which takes 73 MB of the device.
    """
    handle = ctypes.c_void_p()
    status = torch.cuda.cudart().cudaStreamCreate(ctypes.addressof(handle))
    torch.cuda.check_error(status)
    assert handle.value is not None
    return torch.cuda.ExternalStream(handle.value)
