"""From logits to token ids."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from youtu_llm.engine.sequence import Sequence
from youtu_llm.protocol import SamplingParams

NOT_A_TOKEN = -1  # sampled where the logits are no numbers
_MASK64 = (1 << 64) - 1


class Sampler:
    """Chooses by each sequence's SamplingParams.

    The draw depends on the seed and the token's position alone, so an answer is the same in
    any batch and after preemption.
    """

    def __init__(self) -> None:
        # The ids in a sequence's prompt and answer; only for sequences with a penalty.
        self._seen: weakref.WeakKeyDictionary[Sequence, tuple[int, Tensor]] = (
            weakref.WeakKeyDictionary()
        )

    def sample(
        self, logits: Tensor, sequences: list[Sequence], best: Tensor | None = None
    ) -> list[int]:
        """logits [R, vocab] float32, a row for each sequence -> R token ids.

        `best` [R] is their ops.argmax if computed already. The host waits for the device only
        when it reads the result.
        """
        for row, seq in zip(logits, sequences, strict=True):
            if seq.params.repetition_penalty != 1.0:
                _penalise(row, self._seen_mask(seq, row), seq.params.repetition_penalty)
                best = None
        if best is not None and not any(seq.params.temperature for seq in sequences):
            known: list[int] = best.tolist()
            return known
        if best is None:
            best = logits.argmax(-1)
        if any(seq.params.temperature for seq in sequences):
            drawn = [
                token if seq.params.temperature == 0.0 else _draw(row, seq)
                for row, token, seq in zip(logits, best, sequences, strict=True)
            ]
            best = torch.stack(drawn)
        finite = logits.amax(-1).isfinite()  # a NaN would make every answer nonsense, silently
        ids: list[int] = torch.where(finite, best, NOT_A_TOKEN).tolist()
        return ids

    def _seen_mask(self, seq: Sequence, row: Tensor) -> Tensor:
        known, mask = self._seen.get(seq) or (0, torch.zeros_like(row, dtype=torch.bool))
        count = seq.num_prompt + seq.num_generated  # grows even when a rebase shortens the text
        new = seq.token_ids[-(count - known) :] if count > known else []
        if len(new) == 1:  # as at every step: without an upload, which would wait for the device
            mask[new[0]] = True
        else:
            mask[torch.tensor(new, dtype=torch.int64, device=row.device)] = True
        self._seen[seq] = (count, mask)
        return mask


def is_greedy(params: SamplingParams) -> bool:
    """Whether the largest logit as it is decides."""
    return params.temperature == 0.0 and params.repetition_penalty == 1.0


def _penalise(row: Tensor, seen: Tensor, penalty: float) -> None:
    """Repetition penalty of Keskar et al. 2019 (CTRL), in place on row [vocab]."""
    torch.where(seen, torch.where(row > 0, row / penalty, row * penalty), row, out=row)


def _draw(row: Tensor, seq: Sequence) -> Tensor:
    """One draw from row [vocab] by inverting the cumulative distribution. -> id, no dimensions"""
    params = seq.params
    row = (row - row.max()) / params.temperature  # at most 0: the least temperature is greedy
    ids: Tensor | None = None
    if params.top_k:
        row, ids = row.topk(min(params.top_k, row.shape[0]))  # sorted
    elif params.top_p < 1.0:
        row, ids = row.sort(descending=True)
    probs = row.softmax(-1)
    if params.top_p < 1.0:  # keep the first that reach top_p (Holtzman et al. 2020)
        probs = probs * (probs.cumsum(-1) - probs < params.top_p)
    if params.min_p > 0.0:  # Nguyen et al. 2024
        probs = probs * (probs >= params.min_p * probs.max())
    cumulative = probs.double().cumsum(-1)
    point = _uniform(params, seq.num_prompt + seq.num_generated) * cumulative[-1]
    index = torch.searchsorted(cumulative, point[None], right=True)
    places = torch.arange(len(probs), device=row.device)
    last = (places * (probs > 0)).amax()  # rounding at the very end may point beyond it
    index = torch.minimum(index, last)
    return index[0] if ids is None else ids.gather(0, index)[0]


def _uniform(params: SamplingParams, position: int) -> float:
    """A number in [0, 1) from (seed, position): SplitMix64 (Steele et al. 2014)."""
    assert params.seed is not None, "the core draws a seed for requests without one"
    z = (params.seed + (position + 1) * 0x9E3779B97F4A7C15) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return ((z ^ (z >> 31)) >> 11) / (1 << 53)
