"""Who may import whom (docs/DESIGN.md §3), read from the source of every module."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "daemon" / "youtu_llm"
BOTTOM = {"protocol", "config", "settings", "errors", "paths", "postprocess"}
BOTTOM |= {"explain", "yamlsource", "atomicfile", "child_python", "manifest", "modelfiles"}
BOTTOM |= {"sampling", "spans", "punctuation_table", "sentences", "peer"}
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
WITHOUT_TORCH += ["engine/models/architectures.py"]


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


# room of service/ -> rooms whose modules it may import besides its own
ROOMS = {
    "hall": {"hall"},
    "supervision": {"hall"},
    "requests": {"hall", "supervision.client"},
    "http": {"hall", "requests", "profiles"},
    "profiles": {"hall", "requests", "supervision"},
    "app": {"hall", "http", "profiles", "requests", "supervision"},
}


def room_of(module: str) -> str:
    """Of a module below youtu_llm.service."""
    top = module.split(".")[0]
    return top if top in ROOMS else "hall"


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "service").rglob("*.py")), ids=lambda path: path.stem
)
def test_a_module_keeps_to_its_room(path: Path) -> None:
    name = ".".join(path.relative_to(PACKAGE / "service").with_suffix("").parts)
    room = room_of(name)
    for module in project_imports(path):
        if not module.startswith("youtu_llm.service."):
            continue
        other = module.removeprefix("youtu_llm.service.")
        may = ROOMS[room] | {room}
        assert room_of(other) in may or other in may, f"{name} imports {other}"


def test_nothing_of_the_package_imports_the_lab() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert not {name for name in imports_of(path) if name.split(".")[0] == "lab"}, path


def test_no_import_leads_back_to_where_it_came_from() -> None:
    """No circle among modules, with imports inside functions and for types counted too."""
    graph = {module_of(path): project_imports(path) for path in PACKAGE.rglob("*.py")}
    circles = [
        " -> ".join(component)
        for component in strongly_connected(graph)
        if len(component) > 1 or component[0] in graph[component[0]]
    ]
    assert not circles


def module_of(path: Path) -> str:
    parts = ["youtu_llm", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def project_imports(path: Path) -> set[str]:
    """The modules of the package that a module imports."""
    known = {module_of(path) for path in PACKAGE.rglob("*.py")}
    found = set()
    for name in imports_of(path):
        if name in known:
            found.add(name)
        elif name.rpartition(".")[0] in known:
            found.add(name.rpartition(".")[0])
    return found


def strongly_connected(graph: dict[str, set[str]]) -> list[list[str]]:
    """Tarjan (1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            found.append(component)

    for node in graph:
        if node not in index:
            visit(node)
    return found


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_bookkeeping_knows_no_torch(name: str) -> None:
    for imported in imports_of(PACKAGE / name):
        package, _, rest = imported.partition(".")
        assert package not in HEAVY
        if package == "youtu_llm":
            module = "/".join(rest.split(".")[:2]) + ".py"
            assert floor_of(PACKAGE / module) == "bottom" or module in WITHOUT_TORCH, imported


def test_every_name_of_the_bottom_floor_is_a_module() -> None:
    assert not {name for name in BOTTOM if not (PACKAGE / f"{name}.py").is_file()}


def test_every_folder_has_a_floor() -> None:
    folders = {p.name for p in PACKAGE.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    assert folders - {"tools"} == set(FLOORS) - {"bottom"}
