"""What the modules of raycluster import.

A room imports only rooms before it, so that a reader can stop at any of them. A function imports only what is slow to import, and the
first lines of its module say so.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import raycluster

ROOMS = (
    *("errors", "section", "config", "randomness"),
    *("storage", "tables", "compute", "images", "encoder", "clustering", "semantics", "methods", "training"),
    *("finetuning", "model", "results", "serving", "pipeline", "demo", "cli", "__init__"),
)
"""In the order of the data's way. The last two are the face: they know all rooms."""
PACKAGE = Path(raycluster.__file__).parent
MODULES = {
    ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): file
    for file in PACKAGE.rglob("*.py")
}
"""The files of the package by the names of their modules."""


def imported(file: Path) -> Iterator[str]:
    """Rooms whose modules this file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "raycluster":
            names = [node.module or ""] if node.module != "raycluster" else [f"raycluster.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("raycluster.")]
        else:
            continue
        yield from (name.split(".")[1] for name in names)


def test_a_room_knows_only_rooms_before_it() -> None:
    backwards = []
    for file in PACKAGE.rglob("*.py"):
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        later = ROOMS[ROOMS.index(room) + 1 :]
        backwards += [f"{file.relative_to(PACKAGE)} imports {name}" for name in imported(file) if name in later]
    assert backwards == []


def test_every_room_is_in_the_list() -> None:
    found = {
        path.name.removesuffix(".py")
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert found == set(ROOMS)


def imports(node: ast.AST) -> list[str]:
    """Names of the modules that an import statement loads."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        below = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        return [name if name in MODULES else str(node.module) for name in below.values()]
    return []


@cache
def source(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


@cache
def loaded(module: str) -> frozenset[str]:
    """Libraries that are loaded, through other modules of raycluster too, when this module is imported.

    The parts of Ray and scipy count one by one, because these packages do not load them.
    """
    if module not in MODULES:
        return frozenset([".".join(module.split(".")[: 2 if module.startswith(("ray.", "scipy.")) else 1])])
    found: set[str] = set()
    waiting, seen = [module], {module}
    while waiting:
        for statement in source(waiting.pop()).body:
            for name in imports(statement):
                if name not in MODULES:
                    found |= loaded(name)
                elif name not in seen:
                    seen.add(name)
                    waiting.append(name)
    return frozenset(found)


def local_imports(tree: ast.Module) -> Iterator[str]:
    """Names of the modules that functions import."""
    for function in ast.walk(tree):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for statement in ast.walk(function):
                yield from imports(statement)


def test_functions_import_only_what_their_module_has_not_loaded() -> None:
    useless, unsaid = [], []
    for module in MODULES:
        local = set(local_imports(source(module)))
        useless += [f"{module}: {name}" for name in local if loaded(name) <= loaded(module)]
        if local and "import" not in (ast.get_docstring(source(module)) or ""):
            unsaid.append(module)
    assert useless == []
    assert unsaid == []
