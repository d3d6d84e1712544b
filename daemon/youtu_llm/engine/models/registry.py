"""From a model's config to the class that implements its architecture."""

from __future__ import annotations

import importlib

from youtu_llm.engine.checkpoint import ModelConfig
from youtu_llm.engine.models import architectures
from youtu_llm.engine.models.spec import Model


def find(config: ModelConfig) -> type[Model]:
    """Imports that model's module only. Raises ModelError for an unknown architecture."""
    module, _, name = architectures.find(config.architecture, config.source).model.partition(":")
    found: type[Model] = getattr(importlib.import_module(f"youtu_llm.engine.models.{module}"), name)
    return found
