"""What a request asks for, under the live profile's defaults and bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from youtu_llm.config import Settings
from youtu_llm.errors import ContextLengthExceeded, InvalidRequest
from youtu_llm.protocol import SamplingParams

Priority = Literal["high", "normal", "low"]

PRIORITIES: dict[Priority, int] = {"low": -1, "normal": 0, "high": 1}


@dataclass(frozen=True)
class Ask:
    """One request, whichever route it came by. None: the live profile's value."""

    id: str
    session: str | None = None  # the conversation that the messages continue
    messages: Sequence[Mapping[str, str]] = ()  # for the chat template
    text: str | None = None  # instead of messages: continued as it stands
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: Sequence[str] | None = None
    postprocess: bool | None = None
    priority: Priority | None = None  # None: high in a session, where a person listens
    ignore_eos: bool = False

    @property
    def rank(self) -> int:
        return PRIORITIES[self.priority or ("normal" if self.session is None else "high")]


def sampling_params(ask: Ask, settings: Settings) -> SamplingParams:
    """The profile's defaults under what was asked. Raises InvalidRequest over a bound."""
    sampling, bounds = settings.sampling, settings.bounds
    if ask.max_new_tokens is not None and ask.max_new_tokens > bounds.max_new_tokens:
        raise InvalidRequest(
            f"max_new_tokens is {ask.max_new_tokens}, but the profile «{settings.profile}» allows"
            f" at most {bounds.max_new_tokens} (bounds.max_new_tokens)",
            param="max_new_tokens",
        )

    def pick(name: str) -> Any:
        asked = getattr(ask, name)
        return getattr(sampling, name) if asked is None else asked

    return SamplingParams(
        max_new_tokens=min(pick("max_new_tokens"), bounds.max_new_tokens),
        temperature=pick("temperature"),
        top_k=pick("top_k"),
        top_p=pick("top_p"),
        min_p=pick("min_p"),
        repetition_penalty=pick("repetition_penalty"),
        seed=pick("seed"),
        ignore_eos=ask.ignore_eos,
    )


def fit(
    params: SamplingParams, num_prompt: int, n_ctx: int | None, settings: Settings
) -> SamplingParams:
    """Cuts max_new_tokens to the context's rest. Raises ContextLengthExceeded without one."""
    if num_prompt == 0:
        raise InvalidRequest("the prompt is empty", param="prompt")
    bound = settings.bounds.max_prompt_tokens
    if num_prompt > bound:
        raise InvalidRequest(
            f"the prompt has {num_prompt} tokens, but the profile «{settings.profile}» takes at"
            f" most {bound} (bounds.max_prompt_tokens)",
            param="messages",
        )
    if n_ctx is None:
        return params
    rest = n_ctx - num_prompt
    if rest < 1:
        raise ContextLengthExceeded(
            f"the prompt has {num_prompt} tokens and the context {n_ctx}: shorten the prompt",
            param="messages",
            n_prompt_tokens=num_prompt,
            n_ctx=n_ctx,
        )
    if params.max_new_tokens <= rest:
        return params
    return msgspec.structs.replace(params, max_new_tokens=rest)


def room(params: SamplingParams, n_ctx: int | None, settings: Settings) -> int:
    """Tokens a session's prompt may have so that the answer fits too."""
    bounds = [settings.bounds.max_prompt_tokens, settings.sessions.max_tokens]
    if n_ctx is not None:
        bounds.append(max(n_ctx - params.max_new_tokens, n_ctx // 2))
    return min(bound for bound in bounds if bound)
