"""The licence of the base model is carried over from where it stands, and nothing is made up."""

import json
from pathlib import Path

import pytest

from twofour.prune import PruneConfig, prune
from twofour.prune.errors import CheckpointError
from twofour.prune.format.origin import origin

README = "---\nlicense: llama3\nlicense_link: https://example.org/l\nbase_model: meta/base\n---\n# A model\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_nothing_stated(source: Path) -> None:
    expected = {
        "name": source.name,
        "base_model": None,
        "commit": None,
        "licence_from": None,
        "licence": {},
        "licence_files": [],
    }
    assert origin(str(source), source) == expected


def test_readme_counts_before_config_and_file(source: Path) -> None:
    (source / "README.md").write_text(README)
    (source / "config.json").write_text(json.dumps({"license": "mit"}))
    for name in ("LICENSE.txt", "NOTICE"):
        (source / name).write_text("terms")
    found = origin(str(source), source)
    assert found["licence"] == {"license": "llama3", "license_link": "https://example.org/l"}
    assert (found["licence_from"], found["base_model"]) == ("README.md", "meta/base")
    assert found["licence_files"] == ["LICENSE.txt", "NOTICE"]


def test_a_folder_called_readme_says_nothing(source: Path) -> None:
    (source / "README.md").mkdir()
    assert origin(str(source), source)["base_model"] is None


def test_a_hub_id_is_the_base_model_itself(source: Path) -> None:
    (source / "README.md").write_text(README)
    found = origin("meta/chat", source)
    assert (found["name"], found["base_model"]) == ("meta/chat", "meta/chat")


def test_config_and_then_the_file(source: Path) -> None:
    (source / "README.md").write_text("# No front matter\n")
    (source / "LICENSE").write_text("terms")
    assert origin(str(source), source)["licence"] == {
        "license": "other",
        "license_name": "as in the file",
        "license_link": "LICENSE",
    }
    (source / "config.json").write_text(json.dumps({"license": "mit"}))
    assert origin(str(source), source)["licence"] == {"license": "mit"}


@pytest.mark.parametrize("broken", ["---\nlicense: [a\n---\n", "---\n- a\n---\n"])
def test_broken_front_matter_is_refused_before_pruning(tiny_model_folder: Path, tmp_path: Path, broken: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for path in tiny_model_folder.iterdir():
        (source / path.name).symlink_to(path)
    (source / "README.md").write_text(broken)
    with pytest.raises(CheckpointError, match=r"the front matter of .*README\.md cannot be read"):
        prune(source, tmp_path / "out", PruneConfig(method="magnitude"))
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


def test_licence_files_are_copied_along(tiny_model_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for path in tiny_model_folder.iterdir():
        (source / path.name).symlink_to(path)
    (source / "LICENSE").write_text("terms")
    (source / "NOTICE.md").write_text("thanks")
    prune(source, tmp_path / "out", PruneConfig(method="magnitude"))
    assert (tmp_path / "out" / "LICENSE").read_text() == "terms"
    assert (tmp_path / "out" / "NOTICE.md").read_text() == "thanks"
    assert "license: other" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(("folder", "known"), [("snapshots", True), ("models", False)])
def test_the_commit_is_that_of_a_snapshot(tmp_path: Path, folder: str, known: bool) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / folder / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    assert origin("meta/chat", snapshot)["commit"] == (commit if known else None)
