"""The openai client against the daemon, over TCP and over the Unix socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from harness import Daemon

SAY = [{"role": "user", "content": "你好, world"}]


@pytest.fixture(params=["tcp", "unix"])
def client(request: pytest.FixtureRequest, daemon: Daemon) -> Iterator[openai.OpenAI]:
    transport = httpx.HTTPTransport(uds=str(daemon.socket)) if request.param == "unix" else None
    with openai.OpenAI(
        base_url=f"{daemon.url}/v1",
        api_key="none",
        max_retries=0,
        http_client=httpx.Client(transport=transport),
    ) as client:
        yield client


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="any", messages=SAY)
    assert answer.choices[0].message.content == "你好, world"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_chat_stream(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="any", messages=SAY, stream=True, stream_options={"include_usage": True}
        )
    )
    first, *text, last, usage = chunks
    assert first.choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in text) == "你好, world"
    assert last.choices[0].finish_reason == "stop"
    assert last.choices[0].delta.model_dump(exclude_unset=True) == {}
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.completion_tokens == len("你好, world".encode()) + 1
    assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="any", prompt="def f():", max_tokens=3)
    assert answer.choices[0].text == "def"
    assert answer.choices[0].finish_reason == "length"
    stream = client.completions.create(model="any", prompt="def f():", stop=["("], stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "def f"


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.model_dump()["max_model_len"] == 2048
    assert model.model_dump()["meta"] == {"n_ctx": 2048, "digest": None}


def test_errors_have_the_client_s_types(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as too_long:
        client.chat.completions.create(
            model="any", messages=[{"role": "user", "content": "x" * 3000}], stream=True
        )
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="any", messages=SAY, n=2)
    say = [{"role": "user", "content": "!oom 0"}]
    with pytest.raises(openai.InternalServerError) as out_of_memory:
        client.chat.completions.create(model="any", messages=say, stream=True)
    assert out_of_memory.value.code == "out_of_memory"


def test_the_stream_on_the_wire(daemon: Daemon) -> None:
    body = {"messages": SAY, "stream": True, "logit_bias": {}, "made_up": [1]}
    wire = daemon.http.post("/v1/chat/completions", json=body).text
    assert wire.endswith("data: [DONE]\n\n")
    lines = [line.removeprefix("data: ") for line in wire.split("\n\n")[:-2]]
    chunks: list[dict[str, Any]] = [json.loads(line) for line in lines]
    assert all("usage" not in chunk for chunk in chunks)
    assert chunks[-1]["choices"][0]["delta"] == {}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("logprobs", True),
        ("logit_bias", {"1": 2}),
        ("frequency_penalty", 0.5),
        ("response_format", {"type": "json_object"}),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(daemon: Daemon, field: str, value: Any) -> None:
    answer = daemon.http.post("/v1/chat/completions", json={"messages": SAY, field: value})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field
    assert "not supported by this version" in answer.json()["error"]["message"]


def test_completions_has_no_logprobs_not_even_zero(daemon: Daemon) -> None:
    answer = daemon.http.post("/v1/completions", json={"prompt": "a", "logprobs": 0})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "logprobs"


def test_an_error_after_the_start_travels_in_the_stream_and_nothing_follows(daemon: Daemon) -> None:
    body = {"messages": [{"role": "user", "content": "!oom 3"}], "stream": True}
    wire = daemon.http.post("/v1/chat/completions", json=body)
    assert wire.status_code == 200
    *chunks, last = wire.text.strip().split("\n\n")
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "out_of_memory"
    deltas = [json.loads(chunk.removeprefix("data: "))["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta["content"] for delta in deltas) == "xxx"
