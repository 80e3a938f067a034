"""The house stands: imports point down, never at a bare folder, and every sub-package is in the wheel."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = ("prune", "serve", "bench")
ABOVE = {"prune": ("serve", "bench"), "serve": ("bench",), "bench": ()}
FILES = [path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))]


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    floor = path.relative_to(ROOT).parts[0]
    for name in imports(ast.parse(path.read_text())):
        assert not name.startswith("."), f"{name}: import by the full name"
        assert name.partition(".")[0] not in FLOORS, f"{name} is the bare folder: import twofour.{name}"
        assert not any(name.startswith(f"twofour.{above}") for above in ABOVE[floor]), f"{name} is a floor above"


def test_every_package_is_listed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = [path.parent.relative_to(ROOT) for floor in FLOORS for path in (ROOT / floor).rglob("__init__.py")]
    assert sorted(listed) == sorted(["twofour", *(".".join(("twofour", *path.parts)) for path in found)])
