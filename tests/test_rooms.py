"""The order of the rooms: a package of raycluster imports only packages before it, so that a reader can stop at any of them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import raycluster

ROOMS = (
    *("errors", "config", "randomness", "interrupts"),
    *("storage", "tables", "compute", "images", "encoder", "clustering", "semantics", "methods", "training"),
    *("finetuning", "model", "results", "serving", "pipeline", "demo", "cli", "__init__"),
)
"""In the order of the data's way. The last two are the face: they know all rooms."""
PACKAGE = Path(raycluster.__file__).parent


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
