"""What a request asks for, under the live profile's defaults and bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from youtu_llm.errors import ContextLengthExceeded, InvalidRequest
from youtu_llm.sampling import SamplingParams
from youtu_llm.settings import Settings

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
    options: Mapping[str, Any] = field(default_factory=dict)  # the sampling options it gives
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

    wanted = sampling.max_new_tokens if ask.max_new_tokens is None else ask.max_new_tokens
    return SamplingParams(
        max_new_tokens=min(wanted, bounds.max_new_tokens),
        ignore_eos=ask.ignore_eos,
        **{**sampling.options, **ask.options},
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
    return replace(params, max_new_tokens=rest)


def room(params: SamplingParams, n_ctx: int | None, settings: Settings) -> int:
    """Tokens a session's prompt may have so that the answer fits too."""
    bounds = [settings.bounds.max_prompt_tokens, settings.sessions.max_tokens]
    if n_ctx is not None:
        bounds.append(max(n_ctx - params.max_new_tokens, n_ctx // 2))
    return min(bound for bound in bounds if bound)
