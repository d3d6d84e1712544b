"""The INT4 bit layout and the two quantisers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from youtu_llm.ops import awq


def test_a_word_holds_its_channels_in_the_published_order() -> None:
    # Written out by hand from the layout: even channels in the low half, odd ones in the high.
    row = torch.tensor([[0x0, 0x1, 0x2, 0x3, 0x4, 0x5, 0x6, 0xF]])
    word = torch.tensor([[0xF531_6420 - (1 << 32)]], dtype=torch.int32)
    assert torch.equal(awq.pack(row), word)
    assert torch.equal(awq.unpack(word), row.to(torch.uint8))


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**32))
def test_unpack_undoes_pack(rows: int, words: int, seed: int) -> None:
    values = torch.randint(0, 16, (rows, 8 * words), generator=torch.manual_seed(seed))
    assert torch.equal(awq.unpack(awq.pack(values)).long(), values)


def test_rounding_is_to_the_nearest_step_and_keeps_zero() -> None:
    weight = torch.randn(16, 384, generator=torch.manual_seed(1))
    weight[0] = weight[0].abs() + 3  # groups of one sign
    weight[1] = -weight[1].abs() - 3
    weight[2] = 0
    weight[3, ::7] = 0
    qweight, qzeros, scales = awq.quantize_rtn(weight)
    assert (qweight.shape, qzeros.shape, scales.shape) == ((384, 2), (3, 2), (3, 16))
    back = awq.dequantize(qweight, qzeros, scales).t()
    # Half a step, and at the ends of a range what rounding scale and zero point moved them.
    step = scales.float().t().repeat_interleave(128, dim=1)
    assert ((back - weight).abs() <= step * 1.01).all()
    assert ((back - weight).abs() <= step * 0.501).float().mean() > 0.99
    assert (back[weight == 0] == 0).all()


def test_shapes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="100 input channels"):
        awq.quantize_rtn(torch.zeros(8, 100))
    with pytest.raises(ValueError, match="12 output channels"):
        awq.quantize_rtn(torch.zeros(12, 128))


def test_int8_rows_are_within_half_a_step() -> None:
    table = torch.randn(64, 96, generator=torch.manual_seed(2)) * torch.logspace(-3, 3, 64)[:, None]
    table[5] = 0
    values, scales = awq.quantize_rows_int8(table)
    step = scales.float()[:, None]
    assert ((values.float() * step - table).abs() <= step * 0.55).all()
    assert (values[5] == 0).all()
