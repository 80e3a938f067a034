"""Files that appear whole: what is on the disk, and when."""

import os
from pathlib import Path

import pytest

from twofour.prune.errors import OutputError
from twofour.prune.format import folder


def test_a_file_has_its_name_when_its_bytes_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        order.append(f"{'folder' if path.is_dir() else path.read_text()} on the disk")
        fsync(descriptor)

    def named(path: Path, target: Path) -> Path:
        order.append(f"named {target.name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", named)
    folder.write_whole(tmp_path / "results.json", "figures")
    assert order == ["figures on the disk", "named results.json", "folder on the disk"]
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_a_disk_that_fails_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failed(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    (tmp_path / "results.json").write_text("before")
    monkeypatch.setattr(os, "fsync", failed)
    with pytest.raises(OutputError, match=r"results\.json cannot be written"):
        folder.write_whole(tmp_path / "results.json", "after")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]
