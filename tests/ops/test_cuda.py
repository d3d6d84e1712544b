"""Every CUDA kernel against float64. Bounds are relative, root mean square: results are fp16."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from tests.ops import cases
from youtu_llm.errors import ModelError
from youtu_llm.ops import library
from youtu_llm.ops.api import Batch, DenseWeight, Linear
from youtu_llm.ops.cuda import CudaOps

if not torch.cuda.is_available():
    pytest.skip("this machine has no CUDA device", allow_module_level=True)

ROUNDING, LINEAR, ATTENTION, MLA = 3e-4, 6e-4, 1e-3, 2e-3
DEVICE = torch.device("cuda")
TOKENS = [1, 2, 3, 5, 8, 13, library.FEW_ROWS + 1, 67, 300]
MLA_SHAPE = (16, 128, 64, 128, 512)  # heads, nope, rope, v, rank


@pytest.fixture(scope="module")
def ops() -> CudaOps:
    return CudaOps(DEVICE)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    """Numbers that fp16 holds exactly, on the CPU."""
    return torch.randn(*shape, generator=cases.generator(*shape, seed)).half()


def on_device(data: cases.Paged) -> cases.Paged:
    memory = data.memory.to(DEVICE)
    batch = dataclasses.replace(
        data.batch,
        **{
            name: getattr(data.batch, name).to(DEVICE)
            for name in (
                "token_ids",
                "positions",
                "slots",
                "query_start",
                "context_len",
                "page_table",
            )
        },
    )
    cache = dataclasses.replace(
        data.cache,
        addresses=torch.tensor([page.data_ptr() for page in memory], device=DEVICE),
        pages=list(memory),
    )
    return cases.Paged(batch, cache, memory)


@pytest.mark.parametrize(("n", "k"), cases.LINEARS)
def test_int4_linear(ops: CudaOps, n: int, k: int) -> None:
    weight = cases.int4_weight(n, k, bias=True)
    prepared = ops.prepare_linear(weight)
    for num_tokens in TOKENS:
        x = randn(num_tokens, k + 8)[:, :k]  # rows of a wider tensor
        y = ops.linear(x.to(DEVICE), prepared)
        truth = cases.linear(x, weight)
        assert cases.relative_error(y, truth) < LINEAR, num_tokens


@pytest.mark.parametrize("group", [32, 64])
def test_other_groups_are_refused(ops: CudaOps, group: int) -> None:
    with pytest.raises(ModelError, match="group size 128"):
        ops.prepare_linear(cases.int4_weight(72, 384, group))


@pytest.mark.parametrize(("n", "k"), [(2112, 2048), (1536, 256), (12288, 2048), (9728, 896)])
@pytest.mark.parametrize("with_delta", [False, True])
def test_norm_and_linear_in_one(ops: CudaOps, n: int, k: int, with_delta: bool) -> None:
    weight, norm, eps = cases.int4_weight(n, k, bias=True), randn(k, seed=1), 1e-6
    prepared = ops.prepare_linear(weight)
    for num_tokens in (1, 2, 4, 8, 11, library.FEW_ROWS + 1, 300):
        x, delta = randn(num_tokens, k) * 3, randn(num_tokens, k, seed=2)
        total = x + delta if with_delta else x
        wide = total.double()
        normed = wide / (wide.pow(2).mean(-1, keepdim=True) + eps).sqrt() * norm.double()
        truth = cases.linear(normed, weight)
        args = (delta.to(DEVICE) if with_delta else None, norm.to(DEVICE), eps, prepared)
        got_total, y = ops.norm_linear(x.to(DEVICE), *args)
        assert torch.equal(got_total.cpu(), total)
        assert cases.relative_error(y, truth) < 2 * LINEAR
        got_total, y = ops.norm_gated(x.to(DEVICE), *args)
        assert torch.equal(got_total.cpu(), total)
        gate, up = truth.chunk(2, dim=1)
        assert cases.relative_error(y, gate * gate.sigmoid() * up) < 3 * LINEAR


def test_a_row_does_not_depend_on_the_rows_beside_it(ops: CudaOps) -> None:
    prepared = ops.prepare_linear(cases.int4_weight(576, 512))
    x = randn(11, 512).to(DEVICE)
    whole = ops.linear(x, prepared)
    assert torch.equal(whole, torch.cat([ops.linear(row, prepared) for row in x.split(1)]))


def test_int8_head_and_embedding(ops: CudaOps) -> None:
    weight = cases.int8_weight(1003, 896)
    table = ops.prepare_embedding(weight)
    for num_tokens in TOKENS:
        x = randn(num_tokens, 896)
        logits = ops.logits(x.to(DEVICE), table)
        assert logits.dtype == torch.float32
        assert cases.relative_error(logits, cases.linear(x, weight)) < 1e-5
        assert torch.equal(ops.argmax(logits), logits.argmax(-1))
    ids = torch.tensor([0, 1002, 7])
    rows = ops.embed(ids.to(DEVICE), table)
    assert cases.relative_error(rows, cases.dense(weight)[ids]) < ROUNDING


def test_argmax_takes_the_first_of_equals(ops: CudaOps) -> None:
    x = torch.full((3, 5000), -7.0, device=DEVICE)
    x[1, 123] = x[1, 4567] = 0.5
    x[2, :] = 0.0
    assert ops.argmax(x).tolist() == [0, 123, 0]


def test_argmax_knows_what_is_no_number(ops: CudaOps) -> None:
    x = randn(4, 5000).float().to(DEVICE)
    x[0, 17], x[1, 4999], x[2, :] = math.nan, math.inf, -math.inf
    assert ops.argmax(x).tolist() == [-1, -1, -1, int(x[3].argmax())]


def test_advance(ops: CudaOps) -> None:
    """Three steps of two rows, the second of which is not used."""
    data = cases.paged([(1, 5), (1, 9)], 64, torch.float16)
    batch = dataclasses.replace(
        data.batch,
        token_ids=torch.tensor([3, 4], device=DEVICE),
        positions=torch.tensor([4, 8], device=DEVICE),
        slots=torch.tensor([260, -1], device=DEVICE),
        context_len=torch.tensor([5, 0], dtype=torch.int32, device=DEVICE),
    )
    found = torch.zeros(2, 2, dtype=torch.int64, pin_memory=True)
    turn = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    for step, token in enumerate((70, 80, -1), start=1):
        ops.advance(batch, torch.tensor([token, 5], device=DEVICE), found, turn)
        torch.cuda.synchronize()
        assert found[(step - 1) % 2].tolist() == [token, 5]
        assert turn.tolist() == [step]
        assert batch.token_ids.tolist() == [max(token, 0), 4]
        assert batch.positions.tolist() == [4 + step, 8]
        assert batch.slots.tolist() == [260 + step, -1]
        assert batch.context_len.tolist() == [5 + step, 0]
    assert found[1].tolist() == [80, 5]


def test_dense_linear(ops: CudaOps) -> None:
    w, b, x = randn(24, 40), randn(24), randn(3, 40)
    y = ops.linear(x.to(DEVICE), ops.prepare_linear(DenseWeight(w, b)))
    assert cases.relative_error(y, x.double() @ w.double().t() + b.double()) < LINEAR


@pytest.mark.parametrize("n", [1536, 40])
@pytest.mark.parametrize("num_tokens", [1, 70])
def test_norms_and_activations(ops: CudaOps, n: int, num_tokens: int) -> None:
    x, w, b, eps = randn(num_tokens, n) * 3, randn(n, seed=1), randn(n, seed=2), 1e-6
    wide, mean = x.double(), x.double().mean(-1, keepdim=True)

    def normed(v: torch.Tensor) -> torch.Tensor:
        return v / (v.pow(2).mean(-1, keepdim=True) + eps).sqrt()

    xd, wd = x.to(DEVICE), w.to(DEVICE)
    truth = normed(wide) * w.double()
    assert cases.relative_error(ops.rms_norm(xd, wd, eps), truth) < ROUNDING
    wider = torch.cat([xd, xd], dim=1)[:, :n]
    assert cases.relative_error(ops.rms_norm(wider, wd, eps), truth) < ROUNDING
    truth = normed(wide - mean) * w.double() + b.double()
    assert cases.relative_error(ops.layer_norm(xd, wd, b.to(DEVICE), eps), truth) < ROUNDING
    residual = randn(num_tokens, n, seed=3)
    total, summed = residual.to(DEVICE), residual + x
    y = ops.add_rms_norm(total, xd, wd, eps)
    assert torch.equal(total.cpu(), summed)
    assert cases.relative_error(y, normed(summed.double()) * w.double()) < ROUNDING

    inner = math.sqrt(2 / math.pi) * (wide + 0.044715 * wide.pow(3))
    assert cases.relative_error(ops.gelu_tanh(xd), 0.5 * wide * (1 + inner.tanh())) < ROUNDING
    gate_up = torch.cat([x, residual], dim=1)
    truth = wide * wide.sigmoid() * residual.double()
    assert cases.relative_error(ops.silu_mul(gate_up.to(DEVICE)), truth) < ROUNDING


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "dim"), cases.HEADS)
def test_rope_cache(
    ops: CudaOps, num_heads: int, num_kv_heads: int, dim: int, interleaved: bool
) -> None:
    data = cases.paged([(5, 5), (1, 257), (3, 300)], 2 * num_kv_heads * dim, torch.float16)
    batch, there = data.batch, on_device(data)
    rope = cases.rope(32 if dim == 80 else dim, interleaved=interleaved)
    heads = randn(batch.num_tokens, num_heads + 2 * num_kv_heads, dim)
    turned = cases.rotate(heads, rope, batch.positions)
    before = data.memory.clone()
    tables = dataclasses.replace(rope, cos=rope.cos.to(DEVICE), sin=rope.sin.to(DEVICE))
    q = ops.rope_cache(heads.flatten(1).to(DEVICE), dim, tables, there.batch, there.cache, 1)
    assert cases.relative_error(q, turned[:, :num_heads]) < ROUNDING
    k, v = turned[:, num_heads:-num_kv_heads], heads[:, -num_kv_heads:].double()
    after, places = there.memory.cpu(), (batch.slots // 256, 1, batch.slots % 256)
    assert cases.relative_error(after[places], torch.cat([k, v], dim=1).flatten(1)) < ROUNDING
    after[places] = before[places]
    assert torch.equal(after, before)  # and nothing else was touched


@pytest.mark.parametrize("sequences", [*cases.SEQUENCES, [(1, 9000)]])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "dim"), cases.HEADS)
def test_gqa_attention(
    ops: CudaOps,
    num_heads: int,
    num_kv_heads: int,
    dim: int,
    sequences: list[tuple[int, int]],
) -> None:
    data = cases.paged(sequences, 2 * num_kv_heads * dim, torch.float16)
    there = on_device(data)
    q = randn(data.batch.num_tokens, num_heads, dim)
    wider = torch.cat([q, q], dim=1).to(DEVICE)[:, :num_heads]  # as a view of qkv has it
    y = ops.gqa_attention(wider, there.batch, there.cache, 1, dim**-0.5)
    assert cases.relative_error(y, cases.gqa(q, data, 1, dim**-0.5)) < ATTENTION


def mla_case(
    ops: CudaOps, sequences: list[tuple[int, int]]
) -> tuple[cases.Paged, cases.Paged, torch.Tensor, Linear]:
    num_heads, nope, rope, v_dim, rank = MLA_SHAPE
    data = cases.paged(sequences, rank + rope, torch.float16)
    kv_b = ops.prepare_linear(cases.int4_weight(num_heads * (nope + v_dim), rank))
    return data, on_device(data), randn(data.batch.num_tokens, num_heads, nope + rope), kv_b


MLA_SEQUENCES = [*cases.MLA_SEQUENCES, [(1, 9000)], [(1, 33)] * 7, [(20, 5000)]]


@pytest.mark.parametrize("sequences", MLA_SEQUENCES)
def test_mla_attention(ops: CudaOps, sequences: list[tuple[int, int]]) -> None:
    num_heads, nope, _, v_dim, rank = MLA_SHAPE
    data, there, q, kv_b = mla_case(ops, sequences)
    weight, scale = cases.int4_weight(num_heads * (nope + v_dim), rank), 192**-0.5
    y = ops.mla_attention(q.to(DEVICE), kv_b, there.batch, there.cache, 1, v_dim, scale)
    assert cases.relative_error(y, cases.mla(q, weight, data, 1, v_dim, scale)) < MLA


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("sequences", MLA_SEQUENCES)
def test_mla_in_one(ops: CudaOps, sequences: list[tuple[int, int]], interleaved: bool) -> None:
    num_heads, nope, rope_dim, v_dim, rank = MLA_SHAPE
    data, there, q, kv_b = mla_case(ops, sequences)
    batch: Batch = data.batch
    rope = cases.rope(rope_dim, interleaved=interleaved)
    latent, norm, eps = randn(batch.num_tokens, rank + rope_dim), randn(rank, seed=4), 1e-6

    wide = latent[:, :rank].double()
    normed = wide / (wide.pow(2).mean(-1, keepdim=True) + eps).sqrt() * norm.double()
    where = batch.positions % len(rope.cos)
    key = cases.rotate(latent[:, None, rank:], rope, where)[:, 0]
    entry = torch.cat([normed, key], dim=1)
    places = (batch.slots // 256, 1, batch.slots % 256)
    data.memory[places] = entry.half()
    q_turned = q.double().clone()
    q_turned[..., nope:] = cases.rotate(q[..., nope:], rope, where)
    weight, scale = cases.int4_weight(num_heads * (nope + v_dim), rank), 192**-0.5
    truth = cases.mla(q_turned, weight, data, 1, v_dim, scale)

    tables = dataclasses.replace(rope, cos=rope.cos.to(DEVICE), sin=rope.sin.to(DEVICE))
    step = dataclasses.replace(there.batch, positions=where.to(DEVICE))
    wider = torch.cat([latent, latent], dim=1).to(DEVICE)[:, : rank + rope_dim]
    y = ops.mla(
        q.to(DEVICE), wider, norm.to(DEVICE), eps, tables, kv_b, step, there.cache, 1, v_dim, scale
    )
    assert cases.relative_error(there.memory.cpu()[places], entry) < ROUNDING
    assert cases.relative_error(y, truth) < MLA


def test_rows_that_fill_up_a_batch_touch_nothing(ops: CudaOps) -> None:
    """A captured batch has rows without slot and context."""
    _, _, rope_dim, v_dim, rank = MLA_SHAPE
    data, there, q, kv_b = mla_case(ops, [(1, 300), (1, 300)])
    empty = torch.tensor([0, 1], device=DEVICE)
    step = dataclasses.replace(
        there.batch,
        slots=torch.where(empty == 1, -1, there.batch.slots),
        context_len=torch.where(empty == 1, 0, there.batch.context_len).int(),
    )
    before, rope = there.memory.clone(), cases.rope(rope_dim, interleaved=True)
    tables = dataclasses.replace(rope, cos=rope.cos.to(DEVICE), sin=rope.sin.to(DEVICE))
    latent = randn(2, rank + rope_dim).to(DEVICE)
    norm = torch.ones(rank, dtype=torch.float16, device=DEVICE)
    y = ops.mla(
        q.to(DEVICE), latent, norm, 1e-6, tables, kv_b, step, there.cache, 1, v_dim, 192**-0.5
    )
    assert y.isfinite().all()
    assert (y[1] == 0).all()
    changed = (there.memory != before).any(-1).nonzero().tolist()
    slot = int(data.batch.slots[0])
    assert changed == [[slot // 256, 1, slot % 256]]

    heads = randn(2, 14 + 2 * 2, 64).to(DEVICE)
    gqa = on_device(cases.paged([(1, 300), (1, 300)], 256, torch.float16))
    step = dataclasses.replace(gqa.batch, slots=step.slots, context_len=step.context_len)
    rope = cases.rope(64, interleaved=False)
    tables = dataclasses.replace(rope, cos=rope.cos.to(DEVICE), sin=rope.sin.to(DEVICE))
    q = ops.rope_cache(heads.flatten(1), 64, tables, step, gqa.cache, 0)
    y = ops.gqa_attention(q, step, gqa.cache, 0, 0.125)
    assert y.isfinite().all()
    assert (y[1] == 0).all()
