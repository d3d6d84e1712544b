"""Request bodies. Every field has an upper bound (tests/service/test_schemas)."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Annotated, Any, Literal, TypeVar

from aiohttp import web
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import from_json

from youtu_llm import explain
from youtu_llm.errors import InvalidRequest, UnsupportedMediaType
from youtu_llm.sampling import MAX_NEW_TOKENS, OPTIONS
from youtu_llm.service.requests.options import Priority
from youtu_llm.settings import StopString, with_options

MAX_BODY_BYTES = 1 << 20
MAX_MESSAGES = 512
MAX_SHOWN_CHARS = 200  # of a client's own text in an error message

Text = Annotated[str, StringConstraints(max_length=MAX_BODY_BYTES)]
Name = Annotated[str, StringConstraints(max_length=200)]
StopStrings = Annotated[list[StopString], Field(max_length=8)]
NewTokens = Annotated[int, Field(ge=1, le=MAX_NEW_TOKENS)]
SessionName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9._:-]+$", min_length=1, max_length=64)
]


class Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class OpenAIBody(Body):
    model_config = ConfigDict(extra="ignore")


class Message(Body):
    role: Literal["system", "user", "assistant", "tool"]
    content: Text


class ResponseFormat(OpenAIBody):
    type: Literal["text", "json_object", "json_schema"] = "text"


@with_options(optional=True)
class SamplingBody(Body):
    """Fields with the same name on every route; left out: the live profile's value."""

    postprocess: bool | None = None
    priority: Priority | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The sampling options that were given."""
        return self.model_dump(include=set(OPTIONS), exclude_none=True)


class ChatBody(SamplingBody):
    """POST /chat."""

    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    session: SessionName | None = None
    stream: bool | None = None
    max_new_tokens: NewTokens | None = None
    stop: StopStrings | None = None
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _one_of(self) -> ChatBody:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class ContentPart(OpenAIBody):
    type: Literal["text"]
    text: Text


class OpenAIMessage(OpenAIBody):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[ContentPart], Field(max_length=MAX_MESSAGES)]

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


def _refuse_unserved(value: Any) -> None:
    if value:
        raise ValueError("is not supported by this version: leave it out")


def _refuse_zero_too(value: Any) -> None:
    _refuse_unserved(value is not None and value is not False)


# OpenAI fields that would change the answer: refused, where unknown fields are ignored.
Unserved = Annotated[None, BeforeValidator(_refuse_unserved)]
UnservedEvenZero = Annotated[None, BeforeValidator(_refuse_zero_too)]


class StreamOptions(OpenAIBody):
    include_usage: bool = False


class OpenAISampling(SamplingBody):
    """Fields of both OpenAI routes."""

    model_config = ConfigDict(extra="ignore")

    model: Name | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    max_tokens: NewTokens | None = None
    stop: StopString | StopStrings | None = None
    response_format: ResponseFormat | None = None
    ignore_eos: bool = False  # ours
    logprobs: UnservedEvenZero = None  # on /v1/completions a number: 0 asks for the chosen token's
    logit_bias: Unserved = None
    presence_penalty: Unserved = None
    frequency_penalty: Unserved = None

    @property
    def stop_strings(self) -> list[str] | None:
        return [self.stop] if isinstance(self.stop, str) else self.stop


class ChatCompletionBody(OpenAISampling):
    messages: Annotated[list[OpenAIMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: NewTokens | None = None
    tools: Unserved = None
    functions: Unserved = None
    top_logprobs: Unserved = None
    audio: Unserved = None


class CompletionBody(OpenAISampling):
    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=1)]
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None
    echo: Unserved = None
    suffix: Unserved = None

    @property
    def text(self) -> str:
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]


class ProfileBody(Body):
    """PUT /profile."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$", max_length=64)]


class InterruptBody(Body):
    """POST /sessions/{id}/interrupt; the body is optional. Without `spoken_chars` the whole text
    sent so far counts as heard."""

    spoken_chars: Annotated[int, Field(ge=0, le=MAX_BODY_BYTES)] | None = None


BODIES: tuple[type[Body], ...] = (
    ChatBody,
    ChatCompletionBody,
    CompletionBody,
    ProfileBody,
    InterruptBody,
)

B = TypeVar("B", bound=Body)


async def read_body(request: web.Request, schema: type[B]) -> B:
    """The body as `schema`. Raises InvalidRequest naming the field, UnsupportedMediaType."""
    if request.content_type != "application/json":
        raise UnsupportedMediaType("send Content-Type: application/json")
    value = strict_json(await request.read())
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        raise _explain(error, schema.model_fields) from error


def strict_json(data: bytes) -> Any:
    """JSON without NaN, infinities, lone surrogates or duplicate keys. Raises InvalidRequest."""
    try:
        value = from_json(data, allow_inf_nan=False)
        # from_json takes the last value of a duplicate key; another parser may take the first.
        json.loads(data, object_pairs_hook=_refuse_duplicate_keys)
    except ValueError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from error
    return value


def _refuse_duplicate_keys(pairs: list[tuple[str, Any]]) -> None:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError("an object has the same key twice")


def _explain(error: ValidationError, fields: Collection[str]) -> InvalidRequest:
    """The most deeply nested problem: where it is and what to do about it."""
    problems = error.errors(include_url=False)

    def rank(problem: Any) -> tuple[int, bool]:
        """Picks the member of a union that the client meant."""
        is_list = isinstance(problem["input"], list)
        return len(problem["loc"]), not (is_list and problem["type"] == "string_type")

    problem = max(problems, key=rank)
    # Without pydantic's names for the members of a union.
    path = [str(part) for part in problem["loc"] if re.fullmatch(r"\w+", str(part))]
    if problem["type"] == "extra_forbidden":
        path = [str(part) for part in problem["loc"]]  # as sent
    where = ".".join(path)[:MAX_SHOWN_CHARS]
    what = _words(problem, fields)
    return InvalidRequest(f"{where}: {what}" if where else what, param=where or None)


def _words(problem: Any, fields: Collection[str]) -> str:
    kind = problem["type"]
    if kind == "missing":
        return "is missing"
    if kind == "model_type":
        return "must be a JSON object"
    if kind == "value_error":
        return str(problem["msg"]).removeprefix("Value error, ")
    if kind == "extra_forbidden":
        near = explain.nearest(str(problem["loc"][-1]), fields)
        return "is unknown here" + (f", did you mean {near}" if near else ": leave it out")
    return explain.value_error(problem)
