"""Who may import whom (docs/DESIGN.md §3), read from the source of every module."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "daemon" / "youtu_llm"
BOTTOM = {"protocol", "config", "settings", "errors", "errortext", "paths", "postprocess"}
BOTTOM |= {"explain", "yamlsource", "atomicfile", "manifest"}
HEAVY = {"torch", "safetensors", "numpy", "transformers", "gguf", "huggingface_hub"}

# floor -> (floors it may import besides itself, packages it may never import)
FLOORS: dict[str, tuple[set[str], set[str]]] = {
    "bottom": (set(), HEAVY | {"aiohttp", "tokenizers"}),
    "text": ({"bottom"}, HEAVY | {"aiohttp"}),
    "service": ({"bottom", "text"}, HEAVY),
    "ops": ({"bottom"}, {"aiohttp", "tokenizers", "jinja2"}),
    "engine": ({"bottom", "ops"}, {"aiohttp", "tokenizers", "jinja2"}),
}
WITHOUT_TORCH = ["engine/scheduler.py", "engine/page_pool.py", "engine/sequence.py"]


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if floor_of(path) in FLOORS)


def floor_of(path: Path) -> str:
    top = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "bottom" if top in BOTTOM else top


def imports_of(path: Path) -> set[str]:
    """Full names of everything a module imports anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_keeps_to_its_floor(path: Path) -> None:
    allowed, forbidden = FLOORS[floor_of(path)]
    for name in imports_of(path):
        package, _, rest = name.partition(".")
        assert package not in forbidden, f"imports {name}"
        if package == "youtu_llm" and rest:
            other = floor_of(PACKAGE / rest.split(".")[0])
            assert other in allowed | {floor_of(path)}, f"imports {name} of floor {other}"


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_bookkeeping_knows_no_torch(name: str) -> None:
    for imported in imports_of(PACKAGE / name):
        package, _, rest = imported.partition(".")
        assert package not in HEAVY
        if package == "youtu_llm":
            module = "/".join(rest.split(".")[:2]) + ".py"
            assert floor_of(PACKAGE / module) == "bottom" or module in WITHOUT_TORCH, imported


def test_every_folder_has_a_floor() -> None:
    folders = {p.name for p in PACKAGE.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    assert folders - {"tools"} == set(FLOORS) - {"bottom"}
