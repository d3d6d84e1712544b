"""Plain torch in half precision, as a device without our kernels computes."""

from __future__ import annotations

import pytest
import torch

from tests.ops import cases
from youtu_llm.ops.reference import ReferenceOps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_beyond_float16(dtype: torch.dtype) -> None:
    """Qwen2.5-1.5B has them in its first layer."""
    data = cases.paged([(3, 300)], 2 * 2 * 64, torch.float16)
    q = (torch.randn(3, 14, 64, generator=cases.generator(1)) * 8_000).to(dtype)
    y = ReferenceOps(torch.device("cpu"), dtype).gqa_attention(q, data.batch, data.cache, 1, 2e-4)
    error = cases.relative_error(y, cases.gqa(q, data, 1, 2e-4))
    assert error < torch.finfo(dtype).eps
