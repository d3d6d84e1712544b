"""Teacher-forced logits from the engine's own models: each predicts the text as it was written.

No daemon is involved. The models share one backend and stay in memory together, so that a
document's logits are compared as they come and only a few hundred rows of them ever exist.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor

from lab.evals.texts import Document
from youtu_llm.engine.backend import Backend
from youtu_llm.engine.build import load
from youtu_llm.engine.checkpoint import Checkpoint
from youtu_llm.engine.kv_cache import KVCache
from youtu_llm.errors import InvalidRequest, ResourceError
from youtu_llm.ops.api import Batch
from youtu_llm.protocol import pages_for
from youtu_llm.text.tokenizer import Tokenizer

MAX_TOKENS = 4096  # of a document
CHUNK_TOKENS = 256  # computed together: 160 MB of logits where a vocabulary has 152,000


class TeacherForced:
    """A model directory, loaded to be asked for every token's logits."""

    def __init__(self, model_dir: Path, backend: Backend) -> None:
        checkpoint = Checkpoint(model_dir)
        config, ops = checkpoint.config, backend.ops
        _check_memory(checkpoint, ops.dtype, ops.device)
        self.vocab_size = config.int("vocab_size")
        self._model = load(checkpoint, ops)
        self.max_tokens = min(MAX_TOKENS, config.int("max_position_embeddings"))
        self._pages = list(range(pages_for(self.max_tokens)))
        self._cache = KVCache(
            self._model.cache_spec(config), backend.cache_dtype, ops.device, len(self._pages)
        )
        self._device = ops.device

    def logits(self, token_ids: Sequence[int], first: int) -> Iterator[Tensor]:
        """Chunks of float32 [rows, vocab], together one row for each of token_ids[first:]: what
        was predicted there from all that is before it. `first` is 1 at least.
        """
        ids = token_ids[:-1]
        for start in range(0, len(ids), CHUNK_TOKENS):
            end = min(start + CHUNK_TOKENS, len(ids))
            self._cache.ensure(self._pages[: pages_for(end)])
            rows = range(max(start, first - 1), end)
            logits = self._model.forward(
                self._batch(ids, start, end, [row - start for row in rows]), self._cache
            )
            if rows:
                yield logits

    def _batch(self, ids: Sequence[int], start: int, end: int, rows: list[int]) -> Batch:
        """One sequence whose pages are 0, 1, 2 ..., so that a token's slot is its position."""
        device = self._device
        num_pages = pages_for(end)
        positions = torch.arange(start, end, device=device)
        return Batch(
            token_ids=torch.tensor(ids[start:end], device=device),
            positions=positions,
            slots=positions,
            query_start=torch.tensor([0, end - start], dtype=torch.int32, device=device),
            context_len=torch.tensor([end], dtype=torch.int32, device=device),
            page_table=torch.arange(num_pages, dtype=torch.int32, device=device)[None],
            query_lens=(end - start,),
            context_lens=(end,),
            logit_rows=torch.tensor(rows, dtype=torch.int64, device=device),
        )


@dataclass(slots=True)
class Sums:
    """Of one document's target tokens; those of a reference are 0 without one."""

    tokens: int = 0
    nll: float = 0.0  # -log p of the tokens, in nats
    hits: int = 0  # tokens that were the likeliest
    kl: float = 0.0  # KL(reference || model), in nats
    agree: int = 0  # both had the same likeliest token
    reference_nll: float = 0.0
    reference_hits: int = 0


@torch.inference_mode()
def measure(
    token_ids: Sequence[int], first: int, model: TeacherForced, reference: TeacherForced | None
) -> Sums:
    """Sums over token_ids[first:]."""
    sums = Sums()
    targets = torch.tensor(token_ids[first:])
    if reference is None:
        for part in model.logits(token_ids, first):
            _add_own(sums, part.log_softmax(-1), targets)
        return sums
    pairs = zip(model.logits(token_ids, first), reference.logits(token_ids, first), strict=True)
    for part, reference_part in pairs:
        target = targets[sums.tokens : sums.tokens + len(part)].to(part.device)
        q, p = part.log_softmax(-1), reference_part.log_softmax(-1)  # [rows, vocab]
        best = _add_own(sums, q, targets)
        sums.kl += float((p.exp() * (p - q)).sum(-1).double().sum())
        reference_best = p.argmax(-1)
        sums.agree += int((best == reference_best).sum())
        sums.reference_hits += int((reference_best == target).sum())
        sums.reference_nll -= float(p.gather(1, target[:, None]).double().sum())
    return sums


def _add_own(sums: Sums, q: Tensor, targets: Tensor) -> Tensor:
    """Books the next rows' log-probabilities. -> the likeliest tokens."""
    target = targets[sums.tokens : sums.tokens + len(q)].to(q.device)
    best = q.argmax(-1)
    sums.tokens += len(q)
    sums.hits += int((best == target).sum())
    sums.nll -= float(q.gather(1, target[:, None]).double().sum())
    return best


def encode(document: Document, tokenizer: Tokenizer) -> tuple[list[int], int]:
    """Ids of what is given and what is to be predicted, and where the latter begins."""
    if document.question:
        given = tokenizer.encode_chat([{"role": "user", "content": document.question}])
    else:
        given = tokenizer.encode(document.prefix)
    ids = [*given, *tokenizer.encode(document.target)]
    first = max(1, len(given))
    if len(ids) <= first:
        raise InvalidRequest(f"{document.id} is too short to predict anything of it")
    return ids, first


def _check_memory(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
    if device.type != "cpu":
        return
    needed = checkpoint.loaded_bytes(dtype)
    available = psutil.virtual_memory().available
    if needed > available:
        raise ResourceError(
            f"{checkpoint.model_dir} needs {needed / 1e9:.1f} GB of memory and there are"
            f" {available / 1e9:.1f}: stop other programs, or use a larger machine"
        )
