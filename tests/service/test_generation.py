"""One answer, from outputs that no engine has to time."""

from __future__ import annotations

import pytest

from tests.byte_tokenizer import ByteTokenizer
from youtu_llm.errors import EngineFault
from youtu_llm.protocol import Add, Output, SamplingParams
from youtu_llm.service.live import LiveConfig
from youtu_llm.service.metrics import Metrics
from youtu_llm.service.requests.generation import Generation
from youtu_llm.service.supervision.client import OutputStream
from youtu_llm.settings import Settings
from youtu_llm.text.stream import TextStream


async def test_what_was_said_before_an_error_reaches_a_slow_reader() -> None:
    outputs = OutputStream(Add("a", (1,), SamplingParams()), lambda: None, b"")
    outputs.put(Output("a", (ord("x"),)))
    outputs.put(Output("a", (), "error", error_code="out_of_memory", error_message="too long"))
    generation = Generation("a", LiveConfig(Settings()), Metrics(), priority=0)
    await generation.begin(lambda: outputs, TextStream(ByteTokenizer(), ()), None)
    assert await generation.__anext__() == "x"
    with pytest.raises(EngineFault, match="too long"):
        await generation.__anext__()
