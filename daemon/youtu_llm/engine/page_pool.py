"""The pages of the cache: reference counts, the prefix index and eviction. No torch.

Pages hold `PAGE_SIZE` tokens each. A page with known content stays cached after its last
reference, until its room is needed: least recently used first. Content is found by the
chain of its ancestors: a full page's name is SHA-256 over its parent's name and its tokens,
seeded per process, so that a client cannot construct a collision.
"""

from __future__ import annotations

import hashlib
import heapq
import os
from array import array
from collections import OrderedDict
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field

from youtu_llm.protocol import PAGE_SIZE


class OutOfPages(Exception):
    """No page is free; the scheduler preempts a sequence."""


@dataclass(slots=True)
class Content:
    """What a page holds: up to PAGE_SIZE tokens that follow the ancestor named `parent`."""

    parent: bytes
    tokens: tuple[int, ...]
    key: bytes | None  # the page's own name once it is full


@dataclass(frozen=True, slots=True)
class Prefix:
    """The longest known beginning of a prompt."""

    pages: list[int] = field(default_factory=list)  # full ones, to share
    keys: list[bytes] = field(default_factory=list)
    partial: tuple[int, int] | None = None  # (page, tokens of it): to copy, then continue

    @property
    def num_tokens(self) -> int:
        return len(self.pages) * PAGE_SIZE + (self.partial[1] if self.partial else 0)


class PagePool:
    """Every page is in one state: used (references > 0), cached (findable) or blank."""

    def __init__(self, num_pages: int, *, seed: bytes | None = None) -> None:
        self.num_pages = num_pages
        self.root = seed or os.urandom(16)
        self._references = [0] * num_pages
        self._blank = list(range(num_pages))  # a heap: low pages first, so storage stays dense
        self._cached: OrderedDict[int, None] = OrderedDict()  # oldest first
        self._content: dict[int, Content] = {}
        self._children: dict[bytes, dict[int, None]] = {}  # parent's name -> pages, in order

    @property
    def num_free(self) -> int:
        return len(self._blank) + len(self._cached)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    @property
    def num_used(self) -> int:
        return self.num_pages - self.num_free

    def references(self, page: int) -> int:
        return self._references[page]

    def is_blank(self, page: int) -> bool:
        return self._references[page] == 0 and page not in self._cached

    def allocate(self) -> int:
        """A page with one reference. Raises OutOfPages."""
        if self._blank:
            page = heapq.heappop(self._blank)
        elif self._cached:
            page, _ = self._cached.popitem(last=False)
            self._forget(page)
        else:
            raise OutOfPages
        self._references[page] = 1
        return page

    def share(self, page: int) -> None:
        """Take one more reference to a used or cached page."""
        if self._references[page] == 0:
            del self._cached[page]
        self._references[page] += 1

    def release(self, page: int) -> None:
        """Give one reference back; without content the page is blank at once."""
        if self._references[page] <= 0:
            raise ValueError(f"page {page} is released more often than it was taken")
        self._references[page] -= 1
        if self._references[page] == 0:
            if page in self._content:
                self._cached[page] = None
            else:
                heapq.heappush(self._blank, page)

    def evict_cached(self) -> None:
        """Forget all cached pages."""
        while self._cached:
            page, _ = self._cached.popitem(last=False)
            self._forget(page)
            heapq.heappush(self._blank, page)

    # --- the prefix index

    def key(self, parent: bytes, tokens: Tokens[int]) -> bytes:
        return hashlib.sha256(parent + array("i", tokens).tobytes()).digest()

    def describe(self, page: int, parent: bytes, tokens: Tokens[int]) -> bytes | None:
        """Make a used page findable; returns its name if it is full.

        A page whose content is indexed already is not indexed again.
        """
        key = self.key(parent, tokens) if len(tokens) == PAGE_SIZE else None
        content = Content(parent, tuple(tokens), key)
        siblings = self._children.setdefault(parent, {})
        if not any(self._content[twin].tokens == content.tokens for twin in siblings):
            siblings[page] = None
            self._content[page] = content
        return key

    def find(self, token_ids: Tokens[int]) -> Prefix:
        """The longest beginning of `token_ids` that pages hold, at least one token short.

        One token must remain to be computed: the caller needs its logits.
        """
        prefix, parent, start = Prefix(), self.root, 0
        limit = len(token_ids) - 1
        while True:
            wanted = tuple(token_ids[start : start + PAGE_SIZE])
            page, common = self._best_child(parent, wanted)
            if page is None or common == 0:
                return prefix
            key = self._content[page].key
            if key is None or common < PAGE_SIZE or start + PAGE_SIZE > limit:
                common = min(common, limit - start)
                partial = (page, common) if common > 0 else None
                return Prefix(prefix.pages, prefix.keys, partial)
            prefix.pages.append(page)
            prefix.keys.append(key)
            parent, start = key, start + PAGE_SIZE

    def _best_child(self, parent: bytes, wanted: tuple[int, ...]) -> tuple[int | None, int]:
        best, best_common = None, 0
        for page in self._children.get(parent, ()):
            common = common_prefix_len(self._content[page].tokens, wanted)
            if common > best_common:
                best, best_common = page, common
        return best, best_common

    def _forget(self, page: int) -> None:
        content = self._content.pop(page)
        siblings = self._children[content.parent]
        del siblings[page]
        if not siblings:
            del self._children[content.parent]

    def check(self) -> None:
        """Raise AssertionError unless the books balance. For tests."""
        blank, cached = set(self._blank), set(self._cached)
        used = {p for p, n in enumerate(self._references) if n > 0}
        assert len(blank) == len(self._blank), "a page is blank twice"
        assert not blank & cached, "a page is blank and cached"
        assert not used & (blank | cached), "a used page is free"
        assert len(blank) + len(cached) + len(used) == self.num_pages, "a page is lost"
        assert cached <= set(self._content), "a cached page has no content"
        listed = [page for siblings in self._children.values() for page in siblings]
        assert sorted(listed) == sorted(self._content), "the index and the contents differ"


def common_prefix_len(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    n = min(len(a), len(b))
    if a[:n] == b[:n]:
        return n
    return next(i for i in range(n) if a[i] != b[i])
