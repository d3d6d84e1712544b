"""`youtu pull`: a model by its name in the catalogue, from the first source that has it."""

from __future__ import annotations

import shutil
from datetime import datetime, timezone
from pathlib import Path

from youtu_llm.errors import DownloadError, ModelError
from youtu_llm.tools import importer, model_dir
from youtu_llm.tools.catalogue import CATALOGUE, CatalogueEntry, catalogue
from youtu_llm.tools.importer import import_model
from youtu_llm.tools.model_dir import ModelInfo, list_models, verify
from youtu_llm.tools.sources import Source, size_of

__all__ = [
    "CatalogueEntry",
    "ModelInfo",
    "catalogue",
    "import_model",
    "list_models",
    "pull",
    "verify",
]


def pull(
    name: str,
    *,
    models_dir: Path,
    catalogue_file: Path = CATALOGUE,
    keep_download: bool = False,
    accept_license: bool = False,
) -> Path:
    """Fetch, check and import a model; returns its directory. A sound one is left as it is.

    A pull resumes what an interrupted one has fetched. Raises ModelError for a name the
    catalogue lacks, ResourceError when the disk is too small, DownloadError when no source has
    the model, and ModelError unless a licence that must be accepted is, which the manifest
    records. `keep_download` leaves the raw download under models_dir/.partial.
    """
    known = catalogue(catalogue_file)
    if name not in known:
        raise ModelError(f"{name!r} is not in the catalogue, which has: {', '.join(known)}")
    entry = known[name]
    target = models_dir / name
    if importer.is_sound(target):
        return target
    if entry.must_accept and not accept_license:
        raise entry.not_accepted()
    importer.require_extra()
    with model_dir.workspace(models_dir, name) as work:
        missing = max(0, entry.disk_bytes - size_of(work))
        model_dir.require_disk(work, missing, f"pulling {name}")
        download = work / "download"
        download.mkdir(exist_ok=True)
        path, source = _fetch(entry, download)
        target = importer.build(
            path,
            work,
            models_dir=models_dir,
            name=name,
            quantize=True,
            dtype="float16",
            license_name=entry.license,
            license_accepted=_now() if entry.must_accept else "",
            origin=f"{entry.title} from {source}",
        )
        if not keep_download:
            shutil.rmtree(work)
    return target


def _fetch(entry: CatalogueEntry, download: Path) -> tuple[Path, Source]:
    """From the first source that has it; prints why the others failed."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    reasons = []
    for source in entry.sources:
        console.print(f"{entry.title} from {source}", markup=False)
        try:
            return source.fetch(entry.wanted, download), source
        except DownloadError as error:
            reasons.append(f"{source}: {error}")
            console.print(f"  not available: {error}", markup=False)
    what = entry.wanted.file or f"the files of {entry.title}"
    raise DownloadError(
        f"{entry.name} could not be fetched:\n"
        + "".join(f"  {reason}\n" for reason in reasons)
        + "Check the network (HF_ENDPOINT names a mirror) and run the same command again: it"
        f" resumes from what it has. Without network: get {what} on another machine, copy it here"
        f" and run `youtu import PATH --name {entry.name}`."
    )


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
