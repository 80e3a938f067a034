"""The house stands: imports point down, between floors and between rooms, and every room is in the wheel.

Which rooms there are, and their order, is what docs/house.md says.
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = ("prune", "serve", "bench", "root")  # from the bottom up
HOUSE = (ROOT / "docs" / "house.md").read_text()


def rooms_of(floor: str) -> list[str]:
    """The first column of its table: rooms and the modules beside them, from the bottom up."""
    table = HOUSE.split(f"## {floor}:")[1].split("\n\n")[0]
    return [name for cell in re.findall(r"^\|(.*?)\|", table, re.MULTILINE) for name in re.findall(r"`(\w+)/?`", cell)]


ROOMS = {floor: rooms_of(floor) for floor in ("prune", "serve", "bench")}
FILES = [path.relative_to(ROOT) for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))]
INSIDE = [path for path in FILES if path.parts[0] in ROOMS and path.parts[1] != "__init__.py"]


def module(path: Path) -> list[str]:
    """The parts of a module's name below the package."""
    parts = [part for part in path.with_suffix("").parts if part != "root"]
    return parts[:-1] if parts[-1] == "__init__" else parts


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def floor_of(name: str) -> str | None:
    """The floor of something that is imported; None: it is not ours, or the package itself."""
    package, _, rest = name.partition(".")
    first = rest.partition(".")[0]
    if package != "twofour" or first in ("", "__version__"):
        return None
    return first if first in FLOORS else "root"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_down(path: Path) -> None:
    for name in imports(path):
        assert not name.startswith("."), f"{name}: import by the full name"
        assert name.partition(".")[0] not in FLOORS, f"{name} is the bare folder: import twofour.{name}"
        floor = floor_of(name)
        assert floor is None or FLOORS.index(floor) <= FLOORS.index(path.parts[0]), f"{name} is a floor above"


@pytest.mark.parametrize("path", INSIDE, ids=str)
def test_imports_point_down_between_rooms(path: Path) -> None:
    floor, room = module(path)[:2]
    rooms = ROOMS[floor]
    for name in imports(path):
        package, _, rest = name.partition(f"twofour.{floor}.")
        other = rest.partition(".")[0]
        if not package and other in rooms:
            assert rooms.index(other) <= rooms.index(room), f"{name} is a room above"


def test_every_room_has_its_place() -> None:
    for floor, rooms in ROOMS.items():
        assert {module(path)[1] for path in INSIDE if path.parts[0] == floor} == set(rooms)


@pytest.mark.parametrize("path", [path for path in FILES if path.name == "__init__.py"], ids=str)
def test_a_folder_names_what_is_in_it(path: Path) -> None:
    named = set(re.findall(r"\w+", ast.get_docstring(ast.parse((ROOT / path).read_text())) or ""))
    beside = [
        other for other in (ROOT / path).parent.iterdir() if other.suffix == ".py" or (other / "__init__.py").exists()
    ]
    unnamed = {other.stem for other in beside if not other.stem.startswith("__")} - named
    assert not unnamed, f"{path} does not say what these are: {unnamed}"


def test_tests_have_the_folders_of_what_they_test() -> None:
    for floor in FLOORS:
        tested = {path.parent for path in (ROOT / "tests" / floor).rglob("test_*.py")}
        assert {str(folder.relative_to(ROOT / "tests")) for folder in tested} <= {str(path.parent) for path in FILES}


def test_every_package_is_listed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(("twofour", *module(path))) for path in FILES if path.name == "__init__.py"}
    assert sorted(listed) == sorted(found)
