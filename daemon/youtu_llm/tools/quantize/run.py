"""`youtu quantize`: a model directory in floating point becomes one in INT4, block by block.

In memory at a time: the calibration text's residual stream (8,192 tokens), one block in fp32
(twice, with AWQ's scales), and the products of its linears' inputs, whose largest is the square
of the intermediate size in fp32 and is held three times while a linear is rounded.

Every block is calibrated on the output of the quantised blocks before it, so that it can
compensate for their errors.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from youtu_llm import atomicfile, manifest
from youtu_llm.engine.checkpoint import ModelConfig
from youtu_llm.errors import ModelError
from youtu_llm.ops import awq
from youtu_llm.text.tokenizer import Tokenizer
from youtu_llm.tools import bar, importer, model_dir
from youtu_llm.tools.quantize import calibration, rounding
from youtu_llm.tools.quantize.block import BlockRunner, Collector, Stats, Tensors
from youtu_llm.tools.quantize.progress import Progress
from youtu_llm.tools.quantize.rounding import Block, Quantised, Recipe
from youtu_llm.tools.safetensors_writer import DTYPE_NAMES, SafetensorsWriter, TensorPlan
from youtu_llm.tools.source_model import SourceModel, SourceTensor

METHODS = ("rtn", "awq", "gptq", "awq+gptq")
REPORT = "quantization_report.json"
FORMAT = 1  # of the unfinished work; raise it when the same plan would give other bytes
_LAYERS = "model.layers."


@dataclass(frozen=True, slots=True)
class Options:
    method: str = "gptq"  # of METHODS, or auto: the best of them, block by block
    recipe: Recipe = dataclasses.field(default_factory=Recipe)
    int8_head: bool = True  # and embedding; else fp16
    calibration_files: tuple[Path, ...] = calibration.DEFAULT_FILES


def quantize(source: Path, out: Path, options: Options) -> Path:
    """Make the model directory `out` from a model directory or .gguf file; returns `out`.

    The same command on the same machine gives the same bytes. Unfinished work is kept beside
    `out`, in .partial. Raises ModelError for a source that is not supported, ResourceError
    when the disk is too small or another process makes the same model.
    """
    importer.require_extra()
    if out.exists():
        raise ModelError(f"{out} exists: remove it first, or choose another directory")
    model = importer.open_source(source)
    if model.ready_files():
        raise ModelError(f"{source} is quantised already: quantise the original model")
    out.parent.mkdir(parents=True, exist_ok=True)
    with model_dir.workspace(out.parent, out.name) as work, torch.inference_mode():
        result = _Run(model, source, work, options).run(out)
        shutil.rmtree(work)
    return result


class _Run:
    def __init__(self, model: SourceModel, source: Path, work: Path, options: Options) -> None:
        self.source, self.work, self.options = source, work, options
        self.license_name = _license(source)
        self.config = ModelConfig(model.config(), str(source))
        self.tensors = {tensor.name: tensor for tensor in model.tensors()}
        self.num_blocks = self.config.int("num_hidden_layers")
        self.staged = work / "model"
        shutil.rmtree(self.staged, ignore_errors=True)
        self.staged.mkdir()
        model.write_tokenizer(self.staged)
        tokenizer = Tokenizer.load(self.staged)
        self.calibration = calibration.load(tokenizer, options.calibration_files)
        self.progress = Progress(work, self._plan())
        self.runner = BlockRunner(
            self.config,
            sequence_len=calibration.SEQUENCE_LEN,
            group_size=options.recipe.group_size,
        )

    def run(self, out: Path) -> Path:
        done = len(self.progress.reports)
        if not done:
            self.progress.start(self._embedded())
        stream = self.progress.stream()
        what = f"Quantising ({self.options.method})"
        for index in bar.track(range(done, self.num_blocks), what, done=done):
            stream = self._block(index, stream)
        config = self._assemble()
        path = model_dir.install(
            self.staged,
            out.parent,
            out.name,
            source=f"quantize:{self.source.name}",
            license_name=self.license_name,
            quantization=config["quantization_config"]["quant_method"],
        )
        # Beside the manifest's files: times differ from run to run, the model does not.
        atomicfile.replace(path / REPORT, self._report())
        return path

    def _plan(self) -> dict[str, Any]:
        """Everything that the result depends on."""
        files = [self.source] if self.source.is_file() else sorted(self.source.iterdir())
        return {
            "format": FORMAT,
            "source": [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files],
            "method": self.options.method,
            "recipe": json.loads(json.dumps(dataclasses.asdict(self.options.recipe))),
            "int8_head": self.options.int8_head,
            "calibration": calibration.digest(self.options.calibration_files),
            "threads": torch.get_num_threads(),  # they change the order of sums
            "torch": torch.__version__,
        }

    def _embedded(self) -> Tensor:
        """The calibration text's embeddings as the quantised model has them, [S, T, hidden]."""
        wanted, places = self.calibration.token_ids.unique(return_inverse=True)
        rows = []
        for first, chunk in importer.chunks(self.tensors["model.embed_tokens.weight"]):
            inside = wanted[(wanted >= first) & (wanted < first + len(chunk))]
            rows.append(chunk[inside - first].float())
        table = torch.cat(rows)
        if self.options.int8_head:
            values, scales = awq.quantize_rows_int8(table)
            table = values.float() * scales.float()[:, None]
        return table[places]

    def _block(self, index: int, stream: Tensor) -> Tensor:
        """Quantise a block; returns the stream behind it."""
        start = time.monotonic()
        prefix = f"{_LAYERS}{index}."
        tensors = {
            name.removeprefix(prefix): _whole(tensor)
            for name, tensor in sorted(self.tensors.items())
            if name.startswith(prefix)
        }
        report: dict[str, Any] = {"block": index}
        if self.options.method == "auto":
            result = self._best(tensors, stream, report)
        else:
            stats, wanted = self._observe(tensors, stream)
            result = self._quantise(tensors, stats, self.options.method)
            report["method"] = self.options.method
        after = self.runner.run(result.tensors, stream)
        if self.options.method != "auto":
            report["error"] = _error(after, wanted)
        report |= {"layers": result.errors, "scales": result.scales}
        report["seconds"] = round(time.monotonic() - start, 1)
        report["peak_memory_bytes"] = _peak_memory_bytes()
        self.progress.finish_block(result.tensors, report, after)
        return after

    def _best(self, tensors: Tensors, stream: Tensor, report: dict[str, Any]) -> Quantised:
        """The method with the least error on held-out text, then fitted on all of it."""
        fit, held_out = self.calibration.split()
        stats, _ = self._observe(tensors, stream[fit])
        unseen, wanted = self._observe(tensors, stream[held_out])
        plain = Block(tensors, stats)
        scaled = rounding.scale(plain, self.config, self.options.recipe)
        errors = {}
        for method in METHODS:
            block = scaled if method.startswith("awq") else plain
            candidate = self._round(block, method)
            errors[method] = _error(self.runner.run(candidate.tensors, stream[held_out]), wanted)
        method = min(METHODS, key=lambda name: errors[name])
        report |= {"method": method, "error": errors[method], "errors": errors}
        for names in stats:
            stats[names] += unseen[names]
        return self._quantise(tensors, stats, method)

    def _observe(self, tensors: Tensors, stream: Tensor) -> tuple[Stats, Tensor]:
        """Statistics of the linears' inputs, and the stream [S, T, hidden] behind the block."""
        collector = Collector()
        after = self.runner.run(tensors, stream, collector)
        return collector.finish(), after

    def _quantise(self, tensors: Tensors, stats: Stats, method: str) -> Quantised:
        block = Block(tensors, stats)
        if method.startswith("awq"):
            block = rounding.scale(block, self.config, self.options.recipe)
        return self._round(block, method)

    def _round(self, block: Block, method: str) -> Quantised:
        return rounding.quantise(block, self.options.recipe, compensate=method.endswith("gptq"))

    def _assemble(self) -> dict[str, Any]:
        """Write the model directory except its manifest; returns its config."""
        others = [t for name, t in self.tensors.items() if not name.startswith(_LAYERS)]
        tables = [t for t in others if self.options.int8_head and t.name in importer.TABLES]
        plan: dict[str, TensorPlan] = {}
        for tensor in others:
            plan |= importer.plan_of(tensor, quantize=tensor in tables, dtype="float16")
        int8_modules = [tensor.name.removesuffix(".weight") for tensor in tables]
        for index in range(self.num_blocks):
            with safe_open(self.progress.block_file(index), framework="pt") as file:
                for name in sorted(file.keys()):
                    full, part = f"{_LAYERS}{index}.{name}", file.get_slice(name)
                    dtype = _TORCH_NAMES[part.get_dtype()]
                    plan[full] = TensorPlan(dtype, tuple(part.get_shape()))
                    if dtype == "int8":
                        int8_modules.append(full.removesuffix(".weight"))
        num_bytes = sum(tensor.num_bytes for tensor in plan.values())
        model_dir.require_disk(self.staged, num_bytes, "the quantised model")
        with SafetensorsWriter(self.staged / "model.safetensors", plan) as writer:
            for tensor in others:
                if tensor in tables:
                    importer.write_int8(writer, tensor)
                else:
                    importer.write_plain(writer, tensor, "float16")
            for index in range(self.num_blocks):
                with safe_open(self.progress.block_file(index), framework="pt") as file:
                    for name in sorted(file.keys()):
                        writer.write(f"{_LAYERS}{index}.{name}", file.get_tensor(name))
        return self._write_config(int8_modules)

    def _write_config(self, int8_modules: list[str]) -> dict[str, Any]:
        config = dict(self.config.values)
        config.pop("dtype", None)  # the key's newer spelling
        config["torch_dtype"] = "float16"
        config["quantization_config"] = importer.quantization_config(
            int8_modules, group_size=self.options.recipe.group_size
        )
        text = json.dumps(config, indent=2) + "\n"
        (self.staged / "config.json").write_text(text, encoding="utf-8")
        return config

    def _report(self) -> bytes:
        blocks = self.progress.reports
        chosen = [block["method"] for block in blocks]
        values = {
            "source": self.source.name,
            "method": self.options.method,
            "blocks_by_method": {name: chosen.count(name) for name in sorted(set(chosen))},
            "recipe": dataclasses.asdict(self.options.recipe),
            "int8_head": self.options.int8_head,
            "calibration": {
                "files": [file.name for file in self.options.calibration_files],
                "tokens": self.calibration.token_ids.numel(),
            },
            "mean_error": sum(block["error"] for block in blocks) / len(blocks),
            "seconds": round(sum(block["seconds"] for block in blocks), 1),
            "peak_memory_bytes": max(block["peak_memory_bytes"] for block in blocks),
            "blocks": blocks,
        }
        return (json.dumps(values, indent=1) + "\n").encode()


_TORCH_NAMES = {short: name for name, short in DTYPE_NAMES.items()}


def _whole(tensor: SourceTensor) -> Tensor:
    return torch.cat([rows.float() for _, rows in importer.chunks(tensor)])


def _error(got: Tensor, wanted: Tensor) -> float:
    """Relative error, the mean over tokens of |got - wanted|^2 / |wanted|^2."""
    lost = (got - wanted).square().sum(-1) / wanted.square().sum(-1)
    return float(lost.mean())


def _license(source: Path) -> str:
    return manifest.read(source).license if (source / manifest.MANIFEST).is_file() else "unknown"


def _peak_memory_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
