"""What makes a release: its notes, its workflow, what its images are told, the SBOM of an image."""

import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployed import DEPLOY, MADE, ROOT, ran, run

CI = ROOT / ".ci"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
DOCKERFILES = sorted((DEPLOY / "docker").glob("Dockerfile.*"))
LABELS = {
    *("title", "description", "vendor", "licenses", "source", "version", "revision", "created"),
    *("base.name", "base.digest"),
}
CHANGELOG = """# Changelog
## Unreleased
### Added
- Not yet.

## 0.2.0 - 2026-12-01
### Added
- A thing.

### Fixed
- Another.

## 0.1.1 - 2026-11-30
### Added

## 0.1.0
- The first.
"""
notes = runpy.run_path(str(CI / "notes.py"))["notes"]
each_workflow = pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
each_image = pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.suffix[1:])


def test_the_notes_are_the_section_of_the_version() -> None:
    assert notes(CHANGELOG, "0.2.0") == "### Added\n- A thing.\n\n### Fixed\n- Another."


@pytest.mark.parametrize(
    ("version", "why"),
    [
        ("0.3.0", "no section"),
        ("0.2", "no section"),
        ("Unreleased", "no section"),
        ("0.1.0", "YEAR-MONTH-DAY"),
        ("0.1.1", "says nothing of"),
    ],
)
def test_a_section_that_is_missing_undated_or_empty_is_refused(version: str, why: str) -> None:
    with pytest.raises(SystemExit, match=why):
        notes(CHANGELOG, version)


def test_a_tag_that_is_not_the_version_is_refused() -> None:
    ended = run(sys.executable, CI / "notes.py", "v9.9.9")
    assert ended.returncode == 1 and "the tag is v9.9.9 and the version " in ended.stdout


@pytest.mark.tools
@each_workflow
def test_a_workflow_is_one_and_gives_nobody_more_than_it_must(file: Path) -> None:
    ran("check-jsonschema", "--builtin-schema", "vendor.github-workflows", file)
    ran("zizmor", "--offline", "--quiet", file)


def jobs(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(file.read_text())["jobs"]
    return found


@each_workflow
def test_actions_are_pinned_by_their_commit(file: Path) -> None:
    used = re.findall(r"uses: (.*)$", file.read_text(), re.MULTILINE)
    assert used
    for action in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action


def programs(file: Path) -> list[str]:
    return [step["run"] for job in jobs(file).values() for step in job["steps"] if "run" in step]


@each_workflow
def test_no_step_of_a_shell_holds_what_others_chose(file: Path) -> None:
    """A name that another person gave reaches a shell as a variable, never as a part of its program."""
    assert not [program for program in programs(file) if "${{" in program]


@pytest.mark.tools
@each_workflow
def test_shellcheck_has_nothing_to_say_of_its_steps(file: Path, tmp_path: Path) -> None:
    for number, program in enumerate(programs(file)):
        (tmp_path / f"{number}.sh").write_text(f"#!/bin/bash\nset -e\n{program}")
    assert ran("shellcheck", *tmp_path.iterdir()) == ""
    assert ran("shellcheck", CI / "run") == ""


def test_a_step_runs_targets_that_there_are() -> None:
    """Each target of `make` in a workflow, with the variables that it is given."""
    said = "\n".join(program for file in WORKFLOWS for program in programs(file))
    targets = {
        word for line in re.findall(r"^make (.*)$", said, re.MULTILINE) for word in line.split() if "=" not in word
    }
    for target in targets:
        assert ran("make", "--dry-run", "-C", ROOT, target.strip('"').replace("$NAME", "embedded"))


def test_each_job_of_a_release_may_do_what_it_needs_alone() -> None:
    document = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())
    assert document["permissions"] == {}
    writes = {
        name: {right for right, kind in job["permissions"].items() if kind == "write"}
        for name, job in document["jobs"].items()
    }
    assert writes == {
        **{"check": set(), "dist": set(), "try": set(), "release": {"contents"}},
        "images": {"attestations", "id-token", "packages"},
        "index": {"attestations", "id-token"},
    }


def test_nothing_is_published_before_all_is_tried() -> None:
    needs = {name: job.get("needs", []) for name, job in jobs(ROOT / ".github" / "workflows" / "release.yml").items()}
    assert needs == {
        "check": [],
        **{"dist": "check", "try": "dist", "images": ["check", "try"], "index": ["try", "images"], "release": "index"},
    }


def test_the_release_makes_every_image() -> None:
    made = jobs(ROOT / ".github" / "workflows" / "release.yml")["images"]["strategy"]["matrix"]["name"]
    assert sorted(made) == [file.suffix[1:] for file in DOCKERFILES]


@each_image
def test_an_image_says_what_it_is(file: Path) -> None:
    text = file.read_text()
    said = dict(re.findall(r'org\.opencontainers\.image\.([\w.]+)="(.*?)"', text))
    assert set(said) == LABELS
    assert all(f"\nARG {name[2:-1]}" in text for name in said.values() if name.startswith("${"))


@each_image
def test_make_tells_an_image_what_its_labels_say(file: Path) -> None:
    digest = f"sha256:{'0' * 64}"
    told = ran("make", "--dry-run", "-C", ROOT, f"image-{file.suffix[1:]}", f"BASE_DIGEST={digest}", "SOURCE=https://s")
    asked = set(re.findall(r"^ARG (\w+)", file.read_text(), re.MULTILINE)) - {"TORCH_INDEX"}
    assert set(re.findall(r"--build-arg (\w+)=", told)) == asked
    assert f"BASE_DIGEST={digest} " in told and f"@{digest}" in told and "SOURCE=https://s " in told


def document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ran(sys.executable, CI / "image_sbom.py", "twofour-embedded:1"))
    return found


@pytest.mark.tools
def test_the_sbom_of_an_image_is_cyclonedx(tmp_path: Path) -> None:
    """This machine, as if it were an image."""
    judge, file = MADE / "release" / "bin" / "python", tmp_path / "sbom.json"
    file.write_text(json.dumps(document()))
    ran(judge, CI / "check_sbom.py", file)
    file.write_text(json.dumps({**document(), "components": [{"name": "of no type"}]}))
    assert "no CycloneDX" in run(judge, CI / "check_sbom.py", file).stdout


@pytest.mark.tools
def test_the_sbom_of_an_image_has_what_debian_and_python_installed() -> None:
    found = {component["purl"]: component for component in document()["components"]}
    libc = ran("dpkg-query", "--show", "--showformat", "${Version}", "libc6")
    (debian,) = (one for purl, one in found.items() if purl.startswith("pkg:deb/debian/libc6@"))
    assert debian["version"] == libc and any("licenses" in one for purl, one in found.items() if "deb/" in purl)
    (fastapi,) = (one for purl, one in found.items() if purl.startswith("pkg:pypi/fastapi@"))
    assert fastapi["licenses"] == [{"expression": "MIT"}]
    assert len({purl.partition("@")[0] for purl in found if "pypi" in purl}) == sum("pypi" in purl for purl in found)
