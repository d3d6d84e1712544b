"""The open requests, over the deaths of engines."""

from __future__ import annotations

import pytest

from youtu_llm.errors import EngineFault
from youtu_llm.protocol import Add, Hello, MemoryStats, PageStats, SamplingParams, ToEngine
from youtu_llm.service.metrics import Metrics
from youtu_llm.service.supervision.client import EngineClient
from youtu_llm.service.supervision.poison import PoisonRequest

HELLO = Hello("fake", "none", "cpu", 2048, 0, 257, (256,), 0.0, PageStats(), MemoryStats())


async def test_who_kills_before_the_engine_says_a_word_is_not_sent_for_ever() -> None:
    client = EngineClient(Metrics())
    sent: list[ToEngine] = []
    ask = Add("a", (1, 2), SamplingParams())
    client.detach(EngineFault("it died while it loaded"))
    for _ in range(2):
        outputs = client.submit(ask)
        client.attach(sent.append, HELLO)
        client.detach(EngineFault("it died"))
        with pytest.raises(EngineFault):
            await outputs.__anext__()
    assert sent == [ask, ask]
    with pytest.raises(PoisonRequest):
        client.submit(ask)


async def test_who_waits_behind_another_is_sent_to_the_next_engine() -> None:
    client = EngineClient(Metrics())
    sent: list[ToEngine] = []
    client.attach(sent.append, HELLO)
    asks = [Add(id, (1, 2), SamplingParams()) for id in "ab"]
    begun, waiting = map(client.submit, asks)
    client.begin(["a"])
    client.detach(EngineFault("it died"))
    with pytest.raises(EngineFault):
        await begun.__anext__()
    client.attach(sent.append, HELLO)
    assert sent == [*asks, asks[1]]
    assert not waiting.has_begun
