"""From a config's architectures[0] to the class that implements it."""

from __future__ import annotations

from youtu_llm.engine.checkpoint import ModelConfig
from youtu_llm.engine.models.llama import Llama
from youtu_llm.engine.models.phi import Phi
from youtu_llm.engine.models.qwen2 import Qwen2
from youtu_llm.engine.models.spec import Model
from youtu_llm.engine.models.youtu import Youtu
from youtu_llm.errors import ModelError

ARCHITECTURES: dict[str, type[Model]] = {
    "YoutuForCausalLM": Youtu,
    "Qwen2ForCausalLM": Qwen2,
    "LlamaForCausalLM": Llama,
    "PhiForCausalLM": Phi,
}


def find(config: ModelConfig) -> type[Model]:
    try:
        return ARCHITECTURES[config.architecture]
    except KeyError:
        known = ", ".join(ARCHITECTURES)
        raise ModelError(
            f"{config.source}: architecture {config.architecture!r} is not implemented; "
            f"known are {known}"
        ) from None
