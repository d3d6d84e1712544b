"""One answer, from outputs that no engine has to time."""

from __future__ import annotations

import pytest

from tests.byte_tokenizer import ByteTokenizer
from youtu_llm.errors import EngineFault, QueueFull
from youtu_llm.protocol import Add, Output, SamplingParams
from youtu_llm.service.live import LiveConfig
from youtu_llm.service.metrics import Metrics
from youtu_llm.service.requests.generation import Generation
from youtu_llm.service.requests.place import Place
from youtu_llm.service.supervision.client import OutputStream
from youtu_llm.settings import Settings
from youtu_llm.text.stream import TextStream


def make(outputs: OutputStream, *stop: str) -> Generation:
    place = Place("a", LiveConfig(Settings()), priority=0, n_ctx=None)
    place.follow(outputs)
    return Generation(place, outputs, TextStream(ByteTokenizer(), stop), None, Metrics())


async def test_the_text_before_an_error_reaches_a_slow_reader() -> None:
    outputs = OutputStream(Add("a", (1,), SamplingParams()), lambda: None, b"")
    outputs.put(Output("a", (ord("x"),)))
    outputs.put(Output("a", (), "error", error_code="out_of_memory", error_message="too long"))
    generation = make(outputs)
    await generation.start()
    assert await generation.__anext__() == "x"
    with pytest.raises(EngineFault, match="too long"):
        await generation.__anext__()


async def test_an_answer_that_has_ended_outlives_its_engine() -> None:
    outputs = OutputStream(Add("a", (1,), SamplingParams()), lambda: None, b"")
    outputs.put(Output("a", tuple(b"yes.no")))
    generation = make(outputs, ".")
    await generation.start()
    outputs.fail(EngineFault("the engine crashed"))
    answer = await generation.finish()
    assert (answer.text, answer.finish_reason) == ("yes", "stop")
    generation.place.end("interrupted")
    assert generation.place.ending == "stop", "only the first ending counts"


async def test_an_engine_that_dies_under_an_answer_fails_it() -> None:
    outputs = OutputStream(Add("a", (1,), SamplingParams()), lambda: None, b"")
    outputs.put(Output("a", (ord("x"),)))
    generation = make(outputs)
    assert generation.place.ending is None
    assert not generation.place.is_waiting
    outputs.fail(EngineFault("the engine crashed"))
    assert await generation.__anext__() == "x"
    with pytest.raises(EngineFault, match="crashed"):
        await generation.__anext__()


async def test_a_request_that_is_refused_while_it_waits_gets_the_error() -> None:
    aborted = []
    outputs = OutputStream(Add("a", (1,), SamplingParams()), lambda: aborted.append("a"), b"")
    generation = make(outputs)
    assert generation.place.is_waiting
    generation.place.end(QueueFull("full"))
    assert aborted == ["a"]
    outputs.put(Output("a", finish_reason="abort"))
    with pytest.raises(QueueFull):
        await generation.start()
