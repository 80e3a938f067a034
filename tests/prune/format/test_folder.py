"""Files that appear whole: what is on the disk, and when."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from twofour.prune.errors import CheckpointError, OutputError
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


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything; others are already as they should be."""
    is_root = os.geteuid() == 0
    os.seteuid(65534 if is_root else os.geteuid())
    try:
        yield
    finally:
        os.seteuid(0 if is_root else os.geteuid())


@pytest.mark.parametrize("closed", ["", "model", "model/config.json", "model/model-00001-of-00002.safetensors"])
def test_what_may_not_be_read_is_named_with_who_and_how(closed: str) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        parent = Path(name)
        model = parent / "model"
        model.mkdir()
        for file in ("config.json", "model-00001-of-00002.safetensors", "notes"):
            (model / file).write_text("{}")
        for path in (model / "notes", parent / closed):
            path.chmod(0)
        parent.chmod(0o600 if not closed else 0o755)
        with as_nobody(), pytest.raises(CheckpointError, match=r"may not be read by user \d+; allow it") as refused:
            folder.resolve(str(model))
        parent.chmod(0o700)
        model.chmod(0o700)
    named = parent / closed
    assert str(refused.value).startswith(f"{named} may not")
    assert str(refused.value).endswith(f"(chmod -R a+rX {model})" if closed else f"(chmod a+x {parent})")


def test_what_is_not_read_may_be_closed() -> None:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        (Path(name) / "notes").touch(mode=0)
        with as_nobody():
            assert folder.resolve(name) == Path(name)


@pytest.mark.parametrize(("umask", "modes"), [(0o022, (0o755, 0o644)), (0o077, (0o700, 0o600))])
def test_others_may_read_weights_as_they_may_read_any_file(tmp_path: Path, umask: int, modes: tuple[int, int]) -> None:
    """safetensors makes its files for nobody but their owner."""
    before = os.umask(umask)
    try:
        with folder.new_folder(tmp_path / "out") as part:
            save_file({"weight": torch.zeros(1)}, part / "model.safetensors")
    finally:
        os.umask(before)
    found = (tmp_path / "out", tmp_path / "out" / "model.safetensors")
    assert tuple(path.stat().st_mode & 0o777 for path in found) == modes
