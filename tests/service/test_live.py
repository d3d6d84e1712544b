"""What is found out about a model before an engine is started for it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.byte_tokenizer import ByteTokenizer
from youtu_llm.errors import ModelError
from youtu_llm.service.live import LiveConfig, prepare
from youtu_llm.settings import Settings

NOBODY = 65534


@pytest.fixture
def model() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="youtu") as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "config.json").write_text("{}")
        (Path(folder) / "model.safetensors").write_bytes(b"x")
        yield Path(folder)
        os.seteuid(os.getuid())


async def test_an_unreadable_file_is_named_with_the_remedy(model: Path) -> None:
    settings = Settings.model_validate({"model": {"name": str(model)}})
    load = ByteTokenizer.load
    assert (await prepare(settings, LiveConfig(settings), load)).engine  # type: ignore[arg-type]
    (model / "model.safetensors").chmod(0)
    if os.geteuid() == 0:  # root may read it all the same
        os.seteuid(NOBODY)
    with pytest.raises(ModelError, match=r"model\.safetensors» cannot be read by .*`chmod a\+r`"):
        await prepare(settings, LiveConfig(settings), load)  # type: ignore[arg-type]
