"""Memory and speed of a model on this machine's CUDA device, beside what its memory gives.

`python -m lab.bench.gpu MODEL_DIR`; `random_model` makes a model of full
size. Prints Markdown tables, as docs/PERFORMANCE.md has them. Nothing else may use the device.
"""

from __future__ import annotations

import argparse
import cProfile
import functools
import io
import pstats
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from youtu_llm.protocol import PAGE_SIZE

if TYPE_CHECKING:
    from youtu_llm.ops.cuda import CudaOps

PROMPT, ANSWER, LONG = 512, 256, 32_000


class Bench:
    def __init__(self, model_dir: Path, max_num_seqs: int) -> None:
        import torch

        from youtu_llm.engine.build import build

        self.lines: list[str] = []
        torch.zeros(1, device="cuda")
        torch.cuda.synchronize()
        self.free_at_start = torch.cuda.mem_get_info()[0]
        self.device = torch.cuda.get_device_name()
        config, started = self._config(model_dir, max_num_seqs), time.perf_counter()
        self.core, hello = build(config)
        self.load_s = time.perf_counter() - started
        self.ops: CudaOps = self.core.runner.model.ops  # type: ignore[assignment]
        self.say(f"{self.device}, torch {torch.__version__}, device code {self.ops.image}")
        torch.cuda.empty_cache()
        reserved = torch.cuda.memory_reserved() / 1e9
        self.say(
            f"load to ready {hello.load_s:.2f} s; on the device {self.used_gb():.3f} GB, of which"
            f" {reserved:.3f} GB tensors, and weights {hello.memory.weights / 1e9:.3f} GB"
        )

    def _config(self, model_dir: Path, max_num_seqs: int) -> Any:
        from youtu_llm.protocol import EngineConfig

        # Prefixes that are kept for a next time would count as memory that grows.
        return EngineConfig(
            str(model_dir),
            device="cuda",
            max_num_seqs=max_num_seqs,
            max_context_tokens=LONG + PAGE_SIZE,
            prefix_cache=False,
        )

    def say(self, line: str) -> None:
        self.lines.append(line)
        print(line, flush=True)

    def used_gb(self) -> float:
        """Device memory above the bare context."""
        import torch

        return (self.free_at_start - torch.cuda.mem_get_info()[0]) / 1e9

    def generate(self, prompts: list[int], num_new: int, **params: Any) -> tuple[float, float]:
        """Serve prompts of these lengths together. -> (s to the first token of the first,
        tokens a second once all decode)"""
        from youtu_llm.protocol import SamplingParams

        core, vocab = self.core, self.core.vocab_size
        wanted = SamplingParams(max_new_tokens=num_new, ignore_eos=True, **params)
        for i, length in enumerate(prompts):
            ids = [random.randrange(100, vocab) for _ in range(length)]
            assert core.add(str(i), ids, wanted) is None
        started, first, count, decoding = time.perf_counter(), 0.0, 0, 0.0
        while core.has_work:
            outputs = core.step()
            assert not any(output.error_code for output in outputs), outputs
            if outputs and not first:
                first = time.perf_counter() - started
            if decoding and len(outputs) == len(prompts):
                count += len(outputs)
                ended = time.perf_counter()
            elif len(outputs) == len(prompts):
                decoding = ended = time.perf_counter()
        return first, count / (ended - decoding) if count else 0.0

    def speed(self) -> None:
        self.say("\n| batch | context | first token, ms | decode, tok/s | memory, GB |")
        self.say("|---|---|---|---|---|")
        for _ in range(3):
            self.generate([PROMPT], 16)
        sizes = [n for n in (1, 2, 4, 8) if n <= self.core.scheduler.limits.max_num_seqs]
        for batch in sizes:
            runs = [self.generate([PROMPT] * batch, ANSWER) for _ in range(3)]
            first = statistics.median(run[0] for run in runs)
            rate = statistics.median(run[1] for run in runs)
            self.row(batch, PROMPT, first, rate)

    def long(self) -> None:
        first, rate = self.generate([LONG], 128)
        self.row(1, LONG, first, rate)

    def sampling(self) -> None:
        self.say("")
        for name, params in {
            "temperature 0.7, top_k 20, top_p 0.8": {"temperature": 0.7, "top_k": 20, "top_p": 0.8},
            "temperature 0.7, top_p 0.8, penalty 1.05": {
                "temperature": 0.7,
                "top_p": 0.8,
                "repetition_penalty": 1.05,
            },
        }.items():
            rates = [self.generate([PROMPT] * n, 64, seed=1, **params)[1] for n in (1, 4)]
            self.say(f"{name}: {rates[0]:.0f} tok/s at batch 1, {rates[1]:.0f} at batch 4")

    def row(self, batch: int, context: int, first: float, rate: float) -> None:
        self.say(f"| {batch} | {context} | {first * 1e3:.1f} | {rate:.0f} | {self.used_gb():.3f} |")

    def endurance(self, num_requests: int) -> None:
        used = []
        for i in range(num_requests // 4):
            self.generate([random.randrange(16, PROMPT) for _ in range(4)], 8)
            if i:
                used.append(self.used_gb())
        self.say(f"{num_requests} requests by four: {min(used):.3f} to {max(used):.3f} GB")

    def steps(self) -> None:
        """The captured step alone, with a context: what the host's part costs is the difference."""
        import torch

        graphs, cache = self.core.runner._graphs, self.core.cache
        assert graphs is not None
        pages = PROMPT // PAGE_SIZE + 1
        with torch.inference_mode():
            cache.ensure(list(range(pages * graphs.max_rows)))
            for size, graph in graphs._graphs.items():
                _, positions, slots, lengths, tables = graph.inputs.on_device
                first = torch.arange(size, device="cuda") * pages  # a row's pages are neighbours
                tables[:, :pages] = first[:, None] + torch.arange(pages, device="cuda")
                times = []
                for context in (1, PROMPT):
                    positions[:], slots[:] = context, first * PAGE_SIZE + context
                    lengths[:] = context + 1
                    times.append(per_call(graph._graph.replay, torch.cuda.current_stream()) * 1e3)
                slots[:], lengths[:] = -1, 0
                self.say(
                    f"captured step of {size}: {times[0]:.3f} ms without context, "
                    f"{times[1]:.3f} ms with {PROMPT} tokens"
                )
            cache.trim(self.core.pool)

    def kernels(self) -> None:
        """The large linears, over all layers in turn so that no weight is in cache."""
        import torch

        stream = torch.cuda.Stream()
        read = read_bandwidth(stream)
        self.say(f"\nreading gives {read / 1e12:.2f} TB/s\n")
        self.say("| linear | rows | MB | µs | share of bandwidth |")
        self.say("|---|---|---|---|---|")
        model: Any = self.core.runner.model
        ops, layers = self.ops, model.layers
        cases: dict[str, Callable[[Any, Any], Any]] = {
            "q_a + kv_a (norm)": lambda x, layer: ops.norm_linear(
                x, None, layer.input_norm, 1e-6, layer.attention.input
            ),
            "gate + up (norm, SiLU)": lambda x, layer: ops.norm_gated(
                x, None, layer.post_norm, 1e-6, layer.gate_up
            ),
            "down": lambda x, layer: ops.linear(x, layer.down),
            "o": lambda x, layer: ops.linear(x, layer.attention.out),
            "q_b (norm)": lambda x, layer: ops.norm_linear(
                x, None, layer.attention.q_norm, 1e-6, layer.attention.q_b
            ),
        }
        weights = {
            "q_a + kv_a (norm)": lambda layer: layer.attention.input,
            "gate + up (norm, SiLU)": lambda layer: layer.gate_up,
            "down": lambda layer: layer.down,
            "o": lambda layer: layer.attention.out,
            "q_b (norm)": lambda layer: layer.attention.q_b,
        }
        for name, call in cases.items():
            weight = weights[name](layers[0])
            for rows in (1, 4, 8):
                x = torch.randn(rows, weight.in_features, device="cuda").half()
                over_layers = functools.partial(_each, functools.partial(call, x), layers)
                graph, _results = capture(over_layers, stream)
                seconds = per_call(graph.replay, stream) / len(layers)
                self.kernel_row(name, rows, weight.data.packed.numel(), seconds, read)
        for rows in (1, 4, 8):
            x = torch.randn(rows, model.head.in_features, device="cuda").half()
            graph, _results = capture(functools.partial(ops.logits, x, model.head), stream)
            seconds = per_call(graph.replay, stream)
            self.kernel_row("head, INT8", rows, model.head.data.weight.numel(), seconds, read)

    def kernel_row(self, name: str, rows: int, size: int, seconds: float, read: float) -> None:
        share = size / seconds / read
        self.say(f"| {name} | {rows} | {size / 1e6:.2f} | {seconds * 1e6:.2f} | {share:.0%} |")

    def profile(self) -> None:
        """Where a decode step's and a prompt's time goes, by kernel."""
        import torch
        from torch.profiler import ProfilerActivity

        for prompts, num_new in (([PROMPT], 33), ([PROMPT], 1)):
            with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as profiler:
                self.generate(prompts, num_new)
            self.say(f"\nprofile of a prompt of {prompts[0]} and {num_new} tokens")
            for event in sorted(profiler.key_averages(), key=lambda e: -e.self_device_time_total)[
                :16
            ]:
                each = event.self_device_time_total / event.count
                total = event.self_device_time_total / 1e3
                self.say(f"  {event.key[:60]:60} x{event.count:6} {each:8.2f} us {total:8.2f} ms")
        for num_new in (1, 129):
            host = cProfile.Profile()
            host.runcall(self.generate, [PROMPT], num_new)
            text = io.StringIO()
            pstats.Stats(host, stream=text).sort_stats("tottime").print_stats(22)
            self.say(text.getvalue())


def _each(call: Callable[[Any], Any], layers: list[Any]) -> list[Any]:
    return [call(layer) for layer in layers]


def capture(call: Callable[[], Any], stream: Any) -> Any:
    import torch

    with torch.inference_mode(), torch.cuda.stream(stream):
        call()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            results = call()
    return graph, results  # which must outlive it


def per_call(call: Callable[[], Any], stream: Any, repeats: int = 50) -> float:
    """Median seconds, by events."""
    import torch

    times: list[float] = []
    with torch.inference_mode(), torch.cuda.stream(stream):
        for _ in range(5):
            call()
        for _ in range(repeats):
            start, end = torch.cuda.Event(True), torch.cuda.Event(True)
            start.record()
            call()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def read_bandwidth(stream: Any) -> float:
    """Bytes a second of a large sum."""
    import torch

    with torch.cuda.stream(stream):
        x = torch.empty(1 << 28, dtype=torch.float32, device="cuda").normal_()
        seconds = per_call(x.sum, stream, 20)
    size = x.nbytes
    del x
    torch.cuda.empty_cache()
    return size / seconds


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="youtu-bench-gpu", description=__doc__)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--seqs", type=int, default=4, help="requests at a time, at most")
    parser.add_argument("--requests", type=int, default=1000, help="of the endurance run")
    parser.add_argument("--kernels", action="store_true", help="the table of kernels too")
    parser.add_argument("--quick", action="store_true", help="the first table alone")
    parser.add_argument("--profile", action="store_true", help="and where the time goes")
    options = parser.parse_args(arguments)
    bench = Bench(options.model_dir, options.seqs)
    bench.speed()
    if options.quick:
        return 0
    if options.requests:
        bench.endurance(options.requests)
    bench.long()
    bench.sampling()
    bench.steps()
    if options.profile:
        bench.profile()
    if options.kernels:
        bench.kernels()
    return 0


if __name__ == "__main__":
    sys.exit(main())
