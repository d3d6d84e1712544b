"""Every kernel on every instruction set this machine has, against float64.

Bounds (relative, root mean square): INT4 linears 8e-3 (activations are int8 by 32), INT8 rows
2e-3 (activations are int16 a row), attention 2e-5 (MLA adds its INT4 products: 1.2e-2),
everything else 1e-6.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import os
import platform
import subprocess
import sys

import pytest
import torch

from tests.ops import cases
from youtu_llm.errors import ModelError, ResourceError
from youtu_llm.ops import library
from youtu_llm.ops.api import DenseWeight
from youtu_llm.ops.cpu import ISA_VARIABLE, CpuOps

ISAS = {"x86_64": ["plain", "avx2", "avx512", "amx"], "aarch64": ["plain", "neon"]}[
    platform.machine()
]
EXACT, LINEAR, ROWS, ATTENTION, MLA = 1e-6, 8e-3, 2e-3, 2e-5, 1.2e-2


def start(isa: str, threads: int = 3) -> CpuOps:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ISA_VARIABLE, isa)
        try:
            return CpuOps(threads)
        except ResourceError:
            pytest.skip(f"this machine has no {isa}")


@pytest.fixture(params=ISAS)
def ops(request: pytest.FixtureRequest) -> CpuOps:
    return start(request.param)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=cases.generator(*shape, seed))


@pytest.mark.parametrize(("n", "k"), cases.LINEARS)
def test_int4_linear(ops: CpuOps, n: int, k: int) -> None:
    weight = cases.int4_weight(n, k, bias=True)
    prepared = ops.prepare_linear(weight)
    for num_tokens in cases.TOKENS if n * k < 3_000_000 or ops.isa != "plain" else [1, 5]:
        x = randn(num_tokens, k + 8)[:, :k]  # rows of a wider tensor
        assert cases.relative_error(ops.linear(x, prepared), cases.linear(x, weight)) < LINEAR


@pytest.mark.parametrize("group", [32, 64, 128])
def test_int4_groups(ops: CpuOps, group: int) -> None:
    weight = cases.int4_weight(72, 384, group)
    x = randn(6, 384)
    x[:, 5] = 60.0  # an outlier costs only its own 32 channels
    y = ops.linear(x, ops.prepare_linear(weight))
    assert cases.relative_error(y, cases.linear(x, weight)) < 2 * LINEAR


def test_a_row_does_not_depend_on_the_rows_beside_it(ops: CpuOps) -> None:
    prepared = ops.prepare_linear(cases.int4_weight(576, 512))
    x = randn(11, 512)
    whole = ops.linear(x, prepared)
    assert torch.equal(whole, torch.cat([ops.linear(row, prepared) for row in x.split(1)]))


def test_int8_head_and_embedding(ops: CpuOps) -> None:
    weight = cases.int8_weight(1003, 896)
    table = ops.prepare_embedding(weight)
    for num_tokens in cases.TOKENS:
        x = randn(num_tokens, 896)
        assert cases.relative_error(ops.logits(x, table), cases.linear(x, weight)) < ROWS
    ids = torch.tensor([0, 1002, 7])
    assert cases.relative_error(ops.embed(ids, table), cases.dense(weight)[ids]) < EXACT
    with pytest.raises(ModelError, match=r"youtu_int8_embed with .*vocab=1003: .* token id"):
        ops.embed(torch.tensor([1003]), table)


def test_zero_activations(ops: CpuOps) -> None:
    x = torch.zeros(2, 128)
    assert torch.equal(ops.linear(x, ops.prepare_linear(cases.int4_weight(8, 128))), x[:, :8])
    assert torch.equal(ops.linear(x, ops.prepare_linear(cases.int8_weight(8, 128))), x[:, :8])


def test_dense_linear(ops: CpuOps) -> None:
    for n, k in ((203, 80), (64, 896)):
        w, b = randn(n, k).half(), randn(n)
        prepared = ops.prepare_linear(DenseWeight(w, b))
        for num_tokens in cases.TOKENS:
            x = randn(num_tokens, k)
            truth = x.double() @ w.double().t() + b.double()
            assert cases.relative_error(ops.linear(x, prepared), truth) < EXACT


@pytest.mark.parametrize("n", [1536, 37])
@pytest.mark.parametrize("num_tokens", [1, 70])
def test_norms_and_activations(ops: CpuOps, n: int, num_tokens: int) -> None:
    x, w, b, eps = randn(num_tokens, n) * 3, randn(n, seed=1), randn(n, seed=2), 1e-6
    wide, mean = x.double(), x.double().mean(-1, keepdim=True)

    def normed(v: torch.Tensor) -> torch.Tensor:
        return v / (v.pow(2).mean(-1, keepdim=True) + eps).sqrt()

    assert cases.relative_error(ops.rms_norm(x, w, eps), normed(wide) * w) < EXACT
    truth = normed(wide - mean) * w + b
    assert cases.relative_error(ops.layer_norm(x, w, b, eps), truth) < EXACT
    residual = randn(num_tokens, n, seed=3)
    total = residual.double() + wide
    y = ops.add_rms_norm(residual, x, w, eps)
    assert cases.relative_error(residual, total) < EXACT
    assert cases.relative_error(y, normed(total) * w) < EXACT

    inner = math.sqrt(2 / math.pi) * (wide + 0.044715 * wide.pow(3))
    assert cases.relative_error(ops.gelu_tanh(x), 0.5 * wide * (1 + inner.tanh())) < EXACT
    gate_up = torch.cat([x * 10, residual], dim=1)
    truth = (wide * 10) * (wide * 10).sigmoid() * residual
    assert cases.relative_error(ops.silu_mul(gate_up), truth) < EXACT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "dim"), cases.HEADS)
def test_rope_cache(
    ops: CpuOps, num_heads: int, num_kv_heads: int, dim: int, interleaved: bool, dtype: torch.dtype
) -> None:
    data = cases.paged([(5, 5), (1, 257), (3, 300)], 2 * num_kv_heads * dim, dtype)
    batch = data.batch
    rope = cases.rope(32 if dim == 80 else dim, interleaved=interleaved)
    heads = randn(batch.num_tokens, num_heads + 2 * num_kv_heads, dim)
    turned = cases.rotate(heads, rope, batch.positions)
    before = data.memory.clone()
    q = ops.rope_cache(heads.flatten(1).clone(), dim, rope, batch, data.cache, 1)
    assert cases.relative_error(q, turned[:, :num_heads]) < EXACT
    k, v = turned[:, num_heads:-num_kv_heads], heads[:, -num_kv_heads:].double()
    written = data.memory[batch.slots // 256, 1, batch.slots % 256]
    bound = EXACT if dtype == torch.float32 else 4e-4
    assert cases.relative_error(written, torch.cat([k, v], dim=1).flatten(1)) < bound
    data.memory[batch.slots // 256, 1, batch.slots % 256] = before[
        batch.slots // 256, 1, batch.slots % 256
    ]
    assert torch.equal(data.memory, before)  # and nothing else was touched


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("sequences", cases.SEQUENCES)
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "dim"), cases.HEADS)
def test_gqa_attention(
    ops: CpuOps,
    num_heads: int,
    num_kv_heads: int,
    dim: int,
    sequences: list[tuple[int, int]],
    dtype: torch.dtype,
) -> None:
    data = cases.paged(sequences, 2 * num_kv_heads * dim, dtype)
    wide = randn(data.batch.num_tokens, num_heads + 2 * num_kv_heads, dim)
    q = wide[:, :num_heads]  # strided, as rope_cache returns it
    y = ops.gqa_attention(q, data.batch, data.cache, 1, dim**-0.5)
    assert cases.relative_error(y, cases.gqa(q, data, 1, dim**-0.5)) < ATTENTION


def test_attention_with_large_scores(ops: CpuOps) -> None:
    """One key takes all the weight, and comes after thousands of units of worse scores."""
    data = cases.paged([(1, 700)], 2 * 64, torch.float32)
    q = randn(1, 1, 64) * 300
    y = ops.gqa_attention(q, data.batch, data.cache, 0, 1.0)
    assert cases.relative_error(y, cases.gqa(q, data, 0, 1.0)) < ATTENTION


def test_a_sequence_does_not_depend_on_the_batch(ops: CpuOps) -> None:
    both = cases.paged([(1, 300), (1, 700)], 2 * 2 * 64, torch.float16)
    q = randn(2, 14, 64)
    batch = both.batch
    alone = dataclasses.replace(
        batch,
        query_start=torch.tensor([0, 1], dtype=torch.int32),
        context_len=batch.context_len[1:].clone(),
        page_table=batch.page_table[1:].clone(),
        query_lens=(1,),
        context_lens=(700,),
    )
    together = ops.gqa_attention(q, batch, both.cache, 0, 0.125)
    assert torch.equal(ops.gqa_attention(q[1:], alone, both.cache, 0, 0.125), together[1:])


def test_mla_rope_cache(ops: CpuOps) -> None:
    data = cases.paged([(5, 5), (1, 257)], 512 + 64, torch.float16)
    rope = cases.rope(64, interleaved=True)
    q, latent = randn(6, 16, 192), randn(6, 600)[:, :576]
    turned = cases.rotate(q[..., 128:], rope, data.batch.positions)
    entry = latent.double().clone()
    entry[:, 512:] = cases.rotate(latent[:, None, 512:], rope, data.batch.positions)[:, 0]
    out = ops.mla_rope_cache(q.clone(), latent, rope, data.batch, data.cache, 1)
    assert cases.relative_error(out, torch.cat([q[..., :128].double(), turned], dim=2)) < EXACT
    slots = data.batch.slots
    assert cases.relative_error(data.memory[slots // 256, 1, slots % 256], entry) < 4e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("sequences", cases.MLA_SEQUENCES)
def test_mla_attention(ops: CpuOps, sequences: list[tuple[int, int]], dtype: torch.dtype) -> None:
    num_heads, v_dim, scale = 16, 128, 192**-0.5
    data = cases.paged(sequences, 512 + 64, dtype)
    kv_b = cases.int4_weight(num_heads * 256, 512)
    q = randn(data.batch.num_tokens, num_heads, 192)
    y = ops.mla_attention(q, ops.prepare_linear(kv_b), data.batch, data.cache, 1, v_dim, scale)
    assert cases.relative_error(y, cases.mla(q, kv_b, data, 1, v_dim, scale)) < MLA


@pytest.mark.parametrize("sequences", [cases.SEQUENCES[2], cases.MLA_SEQUENCES[-1]])
def test_mla_attention_unquantised(ops: CpuOps, sequences: list[tuple[int, int]]) -> None:
    data = cases.paged(sequences, 64 + 16, torch.float32)
    kv_b = DenseWeight(randn(4 * (32 + 48), 64) * 0.2)
    q = randn(data.batch.num_tokens, 4, 32 + 16)
    y = ops.mla_attention(q, ops.prepare_linear(kv_b), data.batch, data.cache, 1, 48, 0.2)
    assert cases.relative_error(y, cases.mla(q, kv_b, data, 1, 48, 0.2)) < ATTENTION


def test_large_outputs_never_share_memory_while_alive() -> None:
    ops = start("")
    prepared = ops.prepare_linear(DenseWeight(torch.eye(1024)))
    inputs = [randn(rows, 1024, seed=i) for i, rows in enumerate((300, 500, 300, 700, 260))]
    kept = [ops.linear(x, prepared)[1:] for x in inputs]  # views keep their memory too
    assert all(torch.equal(y, x[1:]) for x, y in zip(inputs, kept, strict=True))
    address = kept.pop().data_ptr()
    assert ops.linear(inputs[-1], prepared)[1:].data_ptr() == address  # and then it is used again


def test_thread_counts_agree() -> None:
    weight, x = cases.int4_weight(2112, 2048), randn(9, 2048)
    results = []
    for threads in (1, 2, 7):
        ops = start("", threads)
        prepared = ops.prepare_linear(weight)
        results.append([ops.linear(x, prepared) for _ in range(20)])
    for result in results:
        assert all(torch.equal(y, results[0][0]) for y in result)


def test_an_unknown_instruction_set_is_refused() -> None:
    code = "from youtu_llm.ops.cpu import CpuOps; CpuOps(1)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, ISA_VARIABLE: "mmx"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "this machine lacks" in done.stderr
    assert "YOUTU_CPU_ISA='mmx'" in done.stderr


def test_refused_shapes_say_what_is_taken(ops: CpuOps) -> None:
    with pytest.raises(ModelError, match="group size 32, 64 or 128"):
        ops.prepare_linear(cases.int4_weight(16, 32, group=16))
    with pytest.raises(ModelError, match="multiples of 32"):
        ops.prepare_linear(cases.int8_weight(4, 40))
    data = cases.paged([(1, 3)], 2 * 24, torch.float32)
    with pytest.raises(ModelError, match=r"youtu_gqa_attention with .*head_dim=24, .*: a shape"):
        ops.gqa_attention(randn(1, 2, 24), data.batch, data.cache, 0, 1.0)
    with pytest.raises(ModelError, match=r"youtu_silu_mul with num_tokens=1, n=0: a shape"):
        library.load("cpu").youtu_silu_mul(None, None, 1, 0, None)


def test_operations_outlive_later_ones() -> None:
    """The library knows the last workspace only: models loaded before go on with that."""
    first = CpuOps(2)
    x, weight = torch.randn(5, 256), cases.int4_weight(64, 256)
    linear = first.prepare_linear(weight)
    truth = first.linear(x, linear)
    CpuOps(1)
    gc.collect()
    assert torch.equal(first.linear(x, linear), truth)
