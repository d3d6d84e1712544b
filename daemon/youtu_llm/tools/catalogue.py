"""The models that can be pulled, as catalogue.yaml names them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from youtu_llm.errors import ModelError
from youtu_llm.tools.sources import HubSource, PypiSource, Source, Wanted

CATALOGUE = Path(__file__).with_name("catalogue.yaml")


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    name: str
    title: str
    license: str
    must_accept: bool  # the licence, before a pull
    wanted: Wanted
    model_bytes: int  # of the imported model, about
    sources: tuple[Source, ...]

    @property
    def disk_bytes(self) -> int:
        """The most a pull occupies: the download, its pieces while they are joined, the model."""
        joined = any(isinstance(source, PypiSource) for source in self.sources)
        return self.wanted.num_bytes * (2 if joined else 1) + self.model_bytes

    def not_accepted(self) -> ModelError:
        return ModelError(
            f"{self.name} has a licence to be accepted, «{self.license}»: read it at"
            f" {self.sources[0]}, then add --accept-license"
        )


def catalogue(path: Path = CATALOGUE) -> dict[str, CatalogueEntry]:
    """The models that can be pulled, by name."""
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {name: _entry(name, fields) for name, fields in entries.items()}


def _entry(name: str, fields: dict[str, Any]) -> CatalogueEntry:
    return CatalogueEntry(
        name=name,
        title=fields["title"],
        license=fields["license"],
        must_accept=fields.get("must_accept", False),
        wanted=Wanted(fields["bytes"], fields.get("file"), fields.get("sha256")),
        model_bytes=fields["model_bytes"],
        sources=tuple(_source(source) for source in fields["sources"]),
    )


def _source(fields: dict[str, Any]) -> Source:
    if "hub" in fields:
        return HubSource(fields["hub"])
    return PypiSource(fields["pypi"], str(fields["version"]), fields["parts"])
