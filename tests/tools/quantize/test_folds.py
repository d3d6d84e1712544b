"""Folding scales of input channels into the tensor before leaves a block's function as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.engine import tiny
from tests.tools.quantize import models
from youtu_llm.engine.models.architectures import ARCHITECTURES
from youtu_llm.tools.quantize import folds
from youtu_llm.tools.quantize.block import BlockRunner


def test_every_architecture_declares_its_folds() -> None:
    assert all(architecture.folds for architecture in ARCHITECTURES.values())


@pytest.mark.parametrize("arch", list(tiny.ARCHITECTURES))
def test_folds_leave_the_function_unchanged(arch: str, tmp_path: Path) -> None:
    tensors = models.block_of(models.make(arch, tmp_path))
    config = models.config_of(tmp_path)
    runner = BlockRunner(config, sequence_len=48, group_size=models.GROUP)
    torch.manual_seed(1)
    stream = torch.randn(3, 48, 64)
    expected = runner.run(tensors, stream)
    for fold in ARCHITECTURES[config.architecture].folds:
        in_features = tensors[f"{fold.targets[0]}.weight"].shape[1]
        channels = folds.channels(fold, config, in_features)
        # One scale for each channel of the source, however often it is read.
        scales = torch.randn(int(channels.max()) + 1).mul(1.5).exp()[channels]
        before = tensors[f"{fold.targets[0]}.weight"]
        folds.apply(fold, tensors, config, scales)
        assert not torch.equal(tensors[f"{fold.targets[0]}.weight"], before)
        difference = (runner.run(tensors, stream) - expected).norm() / expected.norm()
        assert difference < 1e-5, fold


@pytest.mark.parametrize("arch", list(tiny.ARCHITECTURES))
def test_a_block_by_itself_is_transformers_own(arch: str, tmp_path: Path) -> None:
    """The residual stream through our blocks, one by one, gives the oracle's hidden states."""
    oracle = models.make(arch, tmp_path)
    ids = torch.tensor([tiny.prompt(64), tiny.prompt(64, seed=1)])
    with torch.inference_mode():
        wanted = oracle(ids, output_hidden_states=True).hidden_states
        runner = BlockRunner(models.config_of(tmp_path), sequence_len=64, group_size=models.GROUP)
        stream = wanted[0]
        for index, expected in enumerate(wanted[1:-1]):  # the last is behind the final norm
            stream = runner.run(models.block_of(oracle, index), stream)
            assert (stream - expected).norm() < 1e-5 * expected.norm()
