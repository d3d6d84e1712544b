"""The memory behind the pages, allocated and freed in chunks."""

from __future__ import annotations

import torch
from torch import Tensor

from youtu_llm.engine.page_pool import PagePool
from youtu_llm.ops.api import PAGE_SIZE, CacheSpec, CacheStorage

# Recent L4T refuses large single allocations; smaller chunks are also freed sooner.
CHUNK_BYTES = 32 << 20


class KVCache(CacheStorage):
    """Storage for the pages of a pool, which hands out low pages first."""

    def __init__(
        self, spec: CacheSpec, dtype: torch.dtype, device: torch.device, num_pages: int
    ) -> None:
        addresses = torch.zeros(num_pages, dtype=torch.int64, device=device)
        super().__init__(spec, dtype, addresses, [None] * num_pages)
        self.device = device
        self.page_bytes = PAGE_SIZE * spec.token_bytes(dtype)
        self.chunk_pages = max(1, CHUNK_BYTES // self.page_bytes)
        self._chunks: dict[int, Tensor] = {}

    @property
    def num_bytes(self) -> int:
        return sum(chunk.nbytes for chunk in self._chunks.values())

    def ensure(self, pages: list[int]) -> None:
        """Allocate memory for these pages. May raise torch's out-of-memory error."""
        for page in pages:
            if self.pages[page] is None:
                self._grow(page // self.chunk_pages)

    def trim(self, pool: PagePool) -> None:
        """Free the chunks in which no page is used or cached."""
        for index in list(self._chunks):
            pages = self._pages_of(index)
            if all(pool.is_blank(page) for page in pages):
                del self._chunks[index]
                self.addresses[pages.start : pages.stop] = 0
                self.pages[pages.start : pages.stop] = [None] * len(pages)

    def copy(self, source: int, target: int) -> None:
        """Copy a whole page; the target's owner overwrites what follows the shared part."""
        from_page, to_page = self.pages[source], self.pages[target]
        assert from_page is not None
        assert to_page is not None
        to_page.copy_(from_page)

    def _pages_of(self, index: int) -> range:
        start = index * self.chunk_pages
        return range(start, min(start + self.chunk_pages, len(self.pages)))

    def _grow(self, index: int) -> None:
        pages = self._pages_of(index)
        shape = (len(pages), self.spec.num_layers, PAGE_SIZE, self.spec.width)
        chunk = torch.empty(shape, dtype=self.dtype, device=self.device)
        self._chunks[index] = chunk
        for i, page in enumerate(pages):
            self.pages[page] = chunk[i]
        base = chunk.data_ptr()
        self.addresses[pages.start : pages.stop] = torch.arange(
            base, base + chunk.nbytes, self.page_bytes, device=self.device
        )
