"""`make bench`: the native CPU kernels, beside the read bandwidth measured in the same run.

Every round times each kernel once and the plain read of memory once, so that a noisy neighbour
disturbs all of them alike; medians are printed. Decode reads weights that no cache holds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from youtu_llm.ops.api import Batch, CacheStorage
    from youtu_llm.ops.cpu import CpuOps

# [out, in] of a layer's linears, then the head's; how many layers.
MODELS: dict[str, tuple[dict[str, tuple[int, int]], tuple[int, int], int]] = {
    "qwen2.5-0.5b": (
        {"qkv": (1152, 896), "o": (896, 896), "gate_up": (9728, 896), "down": (896, 4864)},
        (151936, 896),
        24,
    ),
    "qwen2.5-1.5b": (
        {"qkv": (2048, 1536), "o": (1536, 1536), "gate_up": (17920, 1536), "down": (1536, 8960)},
        (151936, 1536),
        28,
    ),
    "youtu-2b": (
        {
            "q_a kv_a": (2112, 2048),
            "q_b": (3072, 1536),
            "o": (2048, 2048),
            "gate_up": (12288, 2048),
            "down": (2048, 6144),
        },
        (128256, 2048),
        32,
    ),
}
GROUP = 128
UNCACHED_BYTES = 192 << 20  # weights a case walks through, so that none is found in a cache


@dataclass
class Case:
    """One kernel at one shape. `run` works on the next copy of its data at every call."""

    name: str
    num_bytes: int  # read from memory by one call
    multiply_adds: int
    run: Callable[[], object]
    error: float  # against float64, relative root mean square
    calls: int = 1  # in a row, to be timed together
    seconds: list[float] = field(default_factory=list)

    def time(self) -> None:
        start = time.perf_counter()
        for _ in range(self.calls):
            self.run()
        self.seconds.append((time.perf_counter() - start) / self.calls)


def _relative_error(y: Any, truth: Any) -> float:
    return float((y.double() - truth).pow(2).mean().sqrt() / truth.pow(2).mean().sqrt())


def linear_cases(ops: CpuOps, name: str, n: int, k: int, rows: list[int]) -> list[Case]:
    """INT4 [n, k] at each number of rows."""
    import torch

    from youtu_llm.ops import awq
    from youtu_llm.ops.api import Int4Weight

    q, z, s = awq.quantize_rtn(torch.randn(n, k) * 0.05, GROUP)
    weight = Int4Weight(q, z, s)
    num_bytes = n * k // 2 + n * (k // GROUP) * 4
    copies = [ops.prepare_linear(weight) for _ in range(-(-UNCACHED_BYTES // num_bytes))]
    dense = awq.dequantize(q, z, s).double()
    cases = []
    for num_rows in rows:
        x = torch.randn(num_rows, k)
        error = _relative_error(ops.linear(x[:2], copies[0]), x[:2].double() @ dense)
        turn = iter(range(1 << 60))

        def run(x: Any = x, turn: Any = turn) -> object:
            return ops.linear(x, copies[next(turn) % len(copies)])

        calls = max(1, 64 // num_rows) if num_bytes < 32 << 20 else 4
        cases.append(
            Case(f"int4 {name} M={num_rows}", num_bytes, num_rows * n * k, run, error, calls)
        )
    return cases


def head_case(ops: CpuOps, n: int, k: int, num_rows: int) -> Case:
    import torch

    from youtu_llm.ops.api import Int8Weight

    weight = torch.randint(-127, 128, (n, k), dtype=torch.int8)
    scales = torch.full((n,), 0.01, dtype=torch.float16)
    head = ops.prepare_embedding(Int8Weight(weight, scales))
    x = torch.randn(num_rows, k)
    truth = x.double() @ (weight[:999].double() * scales[:999].double()[:, None]).t()
    error = _relative_error(ops.logits(x, head)[:, :999], truth)
    return Case(
        f"int8 head M={num_rows}", n * k, num_rows * n * k, lambda: ops.logits(x, head), error
    )


def _paged(width: int, query: int, context: int) -> tuple[Batch, CacheStorage]:
    import torch

    from youtu_llm.ops.api import PAGE_SIZE, Batch, CacheSpec, CacheStorage
    from youtu_llm.protocol import pages_for

    num_pages = pages_for(context)
    memory = torch.randn(num_pages, 1, PAGE_SIZE, width).half()
    addresses = torch.tensor([page.data_ptr() for page in memory], dtype=torch.int64)
    where = torch.arange(context - query, context)
    batch = Batch(
        token_ids=torch.zeros(query, dtype=torch.int64),
        positions=where,
        slots=where,
        query_start=torch.tensor([0, query], dtype=torch.int32),
        context_len=torch.tensor([context], dtype=torch.int32),
        page_table=torch.arange(num_pages, dtype=torch.int32)[None],
        query_lens=(query,),
        context_lens=(context,),
    )
    return batch, CacheStorage(CacheSpec(1, width), torch.float16, addresses, list(memory))


def gqa_case(ops: CpuOps, heads: int, kv_heads: int, dim: int, query: int, context: int) -> Case:
    import torch

    from youtu_llm.ops.reference import ReferenceOps

    batch, cache = _paged(2 * kv_heads * dim, query, context)
    q = torch.randn(query, heads, dim)

    def run() -> Any:
        return ops.gqa_attention(q, batch, cache, 0, dim**-0.5)

    truth = ReferenceOps(ops.device, torch.float32).gqa_attention(q, batch, cache, 0, dim**-0.5)
    pairs = query * context - query * (query - 1) // 2
    name = f"gqa {heads}/{kv_heads}x{dim} new={query} context={context}"
    num_bytes = context * 4 * kv_heads * dim
    error = _relative_error(run(), truth.double())
    return Case(name, num_bytes, 2 * pairs * heads * dim, run, error, 20 if query == 1 else 1)


def mla_case(ops: CpuOps, query: int, context: int) -> Case:
    import torch

    from youtu_llm.ops import awq
    from youtu_llm.ops.api import Int4Weight
    from youtu_llm.ops.reference import ReferenceOps

    batch, cache = _paged(576, query, context)
    q = torch.randn(query, 16, 192)
    qweight, qzeros, scales = awq.quantize_rtn(torch.randn(4096, 512) * 0.05, GROUP)
    weight = Int4Weight(qweight, qzeros, scales)
    kv_b = ops.prepare_linear(weight)

    def run() -> Any:
        return ops.mla_attention(q, kv_b, batch, cache, 0, 128, 192**-0.5)

    reference = ReferenceOps(ops.device, torch.float32)
    truth = reference.mla_attention(
        q, reference.prepare_linear(weight), batch, cache, 0, 128, 192**-0.5
    )
    pairs = query * context - query * (query - 1) // 2
    num_bytes = context * 1152 + 4096 * 512 // 2
    work = 16 * pairs * (576 + 512) + query * 4096 * 512
    error = _relative_error(run(), truth.double())
    return Case(f"mla new={query} context={context}", num_bytes, work, run, error, 3)


def build_cases(ops: CpuOps, model: str) -> list[Case]:
    linears, head, _ = MODELS[model]
    cases = []
    for name, (n, k) in linears.items():
        cases += linear_cases(ops, name, n, k, [1, 4, 8, 512])
    cases += [head_case(ops, *head, 1), head_case(ops, *head, 4)]
    if model == "youtu-2b":
        return [*cases, mla_case(ops, 1, 512), mla_case(ops, 1, 2048), mla_case(ops, 256, 512)]
    heads = (14, 2, 64) if "0.5b" in model else (12, 2, 128)
    return cases + [gqa_case(ops, *heads, q, c) for q, c in ((1, 512), (1, 2048), (256, 512))]


def step_seconds(model: str, cases: list[Case], rows: int) -> float:
    """The linears and the head of one step of the model, from the medians."""
    linears, _, num_layers = MODELS[model]
    at = {case.name: statistics.median(case.seconds) for case in cases}
    layer = sum(at[f"int4 {name} M={rows}"] for name in linears)
    return layer * num_layers + at[f"int8 head M={rows if rows <= 4 else 1}"]


def measure(model: str, threads: int, rounds: int) -> dict[str, Any]:
    import torch

    from youtu_llm.ops import library
    from youtu_llm.ops.cpu import CpuOps, HugePages

    torch.set_num_threads(1)
    torch.manual_seed(0)
    ops = CpuOps(threads)
    lib = library.load("cpu")
    memory = HugePages().empty(UNCACHED_BYTES).fill_(1)
    read = Case(
        "read",
        UNCACHED_BYTES,
        0,
        lambda: lib.youtu_read_memory(memory.data_ptr(), UNCACHED_BYTES, None),
        0.0,
    )
    cases = build_cases(ops, model)
    for _ in range(rounds + 1):
        read.time()
        for case in cases:
            case.time()
    for case in [read, *cases]:
        del case.seconds[0]  # the first round touches pages
    bandwidth = read.num_bytes / statistics.median(read.seconds)
    return {
        "model": model,
        "isa": ops.isa,
        "threads": threads,
        "read_gb_s": bandwidth / 1e9,
        "linears_tokens_per_s": {
            rows: rows / step_seconds(model, cases, rows) for rows in (1, 4, 512)
        },
        "kernels": [
            {
                "name": case.name,
                "seconds": (seconds := statistics.median(case.seconds)),
                "gb_s": case.num_bytes / seconds / 1e9,
                "share": case.num_bytes / seconds / bandwidth,
                "gflop_s": 2 * case.multiply_adds / seconds / 1e9,
                "error": case.error,
            }
            for case in cases
        ],
    }


def show(result: dict[str, Any]) -> None:
    print(
        f"{result['model']}: {result['isa']}, {result['threads']} threads,"
        f" memory read {result['read_gb_s']:.1f} GB/s"
    )
    print(f"{'kernel':34}{'us':>10}{'GB/s':>8}{'share':>7}{'GFLOP/s':>9}  error")
    for k in result["kernels"]:
        print(
            f"{k['name']:34}{k['seconds'] * 1e6:10.1f}{k['gb_s']:8.2f}{k['share']:6.0%} "
            f"{k['gflop_s']:8.0f}  {k['error']:.1e}"
        )
    for rows, speed in result["linears_tokens_per_s"].items():
        print(f"linears and head alone, {rows} tokens a step: {speed:.1f} tokens/s")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", choices=[*MODELS, "all"], default="qwen2.5-1.5b")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    models = list(MODELS) if options.model == "all" else [options.model]
    results = [measure(model, options.threads, options.rounds) for model in models]
    if options.json:
        json.dump(results, sys.stdout, indent=1)
        print()
    else:
        for result in results:
            show(result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
