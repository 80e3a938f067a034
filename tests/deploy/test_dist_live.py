"""The sdist and the wheel that a release uploads, as `make dist sbom` makes them: what is in them, and that it runs."""

import hashlib
import json
import re
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from deployed import MADE, ROOT, ran

pytestmark = pytest.mark.slow
SOURCES = "serve/kernels/cpu/src"
SUFFIXES = (".py", ".typed", ".yaml", ".html", ".css", ".mjs", "commit.txt", "_cpu.abi3.so")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def commit() -> str:
    return ran("git", "-C", ROOT, "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*").strip()


@pytest.fixture(scope="module")
def dist(commit: str) -> Path:
    """Made from that commit."""
    ran("make", "-C", ROOT, "dist", "sbom", limit_s=1800)
    return ROOT / "dist"


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (found,) = dist.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def sdist(dist: Path) -> Path:
    (found,) = dist.glob("*.tar.gz")
    return found


def packed(wheel: Path) -> list[str]:
    return [name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")]


def test_there_is_one_wheel_for_every_python_and_every_linux(wheel: Path) -> None:
    assert re.search(r"-cp311-abi3-(manylinux\w+\.)*manylinux\w+\.whl$", wheel.name)


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = [name for name in packed(wheel) if ".dist-info/" not in name]
    assert all(name.startswith("twofour/") and name.endswith(SUFFIXES) for name in names), names
    assert {"twofour/py.typed", "twofour/serve/kernels/cpu/_cpu.abi3.so"} <= set(names)
    tracked = ran("git", "-C", ROOT, "ls-files", "root", "prune", "serve", "bench/**/*.py").split()
    modules = {Path("twofour", re.sub("^root/", "", name)) for name in tracked if name.endswith(".py")}
    assert modules <= {Path(name) for name in names}


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    told = {Path(name).name: archive.read(name).decode() for name in packed(wheel) if ".dist-info/" in name}
    assert "License-Expression: Apache-2.0" in told["METADATA"] and told["LICENSE"] == (ROOT / "LICENSE").read_text()
    for group in ("[console_scripts]", "[vllm.general_plugins]", "[vllm.endpoint_plugins]"):
        assert group in told["entry_points.txt"]


def inside(sdist: Path) -> dict[str, bytes]:
    with tarfile.open(sdist) as archive:
        files = [member for member in archive.getmembers() if member.isfile()]
        read = {member.name.partition("/")[2]: archive.extractfile(member) for member in files}
        return {name: stream.read() for name, stream in read.items() if stream}


def test_the_sdist_holds_what_the_wheel_is_built_from(sdist: Path) -> None:
    files = inside(sdist)
    tracked = ran(
        "git", "-C", ROOT, "ls-files", "root", "prune", "serve", "setup.py", "pyproject.toml", "LICENSE"
    ).split()
    assert {name for name in tracked if not name.endswith(".md")} <= set(files)
    assert any(name.startswith(SOURCES) and name.endswith(".cpp") for name in files)
    assert not [name for name in files if name.startswith(("tests/", "deploy/", "docs/", ".")) or name.endswith(".so")]


def hashes(wheel: Path) -> dict[str, str]:
    archive = zipfile.ZipFile(wheel)
    names = [name for name in packed(wheel) if not name.endswith(("/RECORD", "/WHEEL"))]
    return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in names}


def test_the_sdist_builds_to_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    """Where there is no git, and in another folder; repairing changes the tags alone."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    ran(MADE / "release" / "bin" / "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, source, limit_s=600)
    (built,) = tmp_path.glob("*.whl")
    assert hashes(built) == hashes(wheel)


def test_installed_it_says_its_version_and_commit(wheel: Path, commit: str) -> None:
    version = wheel.name.split("-")[1]
    assert ran(MADE / "user" / "bin" / "twofour", "--version").strip() == f"twofour {version} ({commit})"


def test_installed_it_prunes_and_checks_a_model(wheel: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    """With nothing beside what it asks for, and not in a folder of the source."""
    twofour, out = MADE / "user" / "bin" / "twofour", tmp_path / "2of4"
    ran(twofour, "prune", tiny_model_folder, "-o", out, "--method", "magnitude", limit_s=300)
    assert "2:4" in ran(twofour, "check", out)
    kernels = ("-P", "-c", "from twofour.serve.kernels.cpu import available; print(available())")
    assert ran(MADE / "user" / "bin" / "python", *kernels) == ran(sys.executable, *kernels)


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def listed(dist: Path) -> dict[str, dict[str, Any]]:
    """What the SBOM names; it is CycloneDX, and says nothing of the machine that made it."""
    (file,) = (ROOT / "sbom").glob("twofour-[0-9]*.cdx.json")
    ran(MADE / "release" / "bin" / "python", ROOT / ".ci" / "check_sbom.py", file)
    assert "file://" not in file.read_text() and str(ROOT) not in file.read_text()
    return {normalized(part["name"]): part for part in json.loads(file.read_text())["components"]}


def test_the_sbom_names_every_dependency_with_its_version_and_licence(listed: dict[str, dict[str, Any]]) -> None:
    for requirement in ["twofour", *PROJECT["project"]["dependencies"]]:
        name = re.match(r"[\w-]+", requirement)
        assert name and {"version", "licenses", "purl"} <= set(listed[name[0]]), requirement
    assert listed["twofour"]["licenses"][0]["license"]["id"] == PROJECT["project"]["license"]


def test_the_versions_of_the_sbom_are_those_that_are_tested(listed: dict[str, dict[str, Any]]) -> None:
    pins = [line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    tested = {normalized(name): version for name, version in pins}
    assert not {name: part["version"] for name, part in listed.items() if name not in {*tested, "twofour"}}
    assert all(part["version"].partition("+")[0] == tested[name] for name, part in listed.items() if name != "twofour")
