import json
import logging
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from twofour.serve.kernels import verdicts
from twofour.serve.kernels.verdicts import Verdict

SECONDS = {"cpu": {"few": {1: 0.5}, "many": {1: 1.0}}}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TWOFOUR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_is_kept_is_found_under_its_machine_and_shape(folder: Path) -> None:
    assert verdicts.can_keep()
    verdicts.keep("this machine", "8 x 64", Verdict("cpu", 96), SECONDS)
    verdicts.keep("this machine", "16 x 64", Verdict("dense", 0), SECONDS)
    assert verdicts.find("this machine", "8 x 64") == Verdict("cpu", 96)
    assert verdicts.find("this machine", "16 x 64") == Verdict("dense", 0)
    verdicts.keep("this machine", "24 x 64", Verdict("cpu", 0, ("triton",)), SECONDS)
    verdicts._book.cache_clear()
    assert verdicts.find("this machine", "24 x 64") == Verdict("cpu", 0, ("triton",))
    assert verdicts.find("another machine", "8 x 64") is None and verdicts.find("this machine", "9 x 64") is None
    kept = json.loads((folder / "kernels.json").read_text())
    assert kept["this machine"]["8 x 64"] == {"form": "cpu", "crossover_tokens": 96, "dropped": [], "seconds": {
        "cpu": {"few": {"1": 0.5}, "many": {"1": 1.0}}}}  # fmt: skip


def test_what_others_wrote_meanwhile_stays(folder: Path) -> None:
    verdicts.keep("m", "a", Verdict("cpu", 1), {})
    book = json.loads((folder / "kernels.json").read_text())
    book["m"]["theirs"] = {"form": "dense", "crossover_tokens": 0, "seconds": {}}
    (folder / "kernels.json").write_text(json.dumps(book))
    verdicts.keep("m", "b", Verdict("cpu", 2), {})
    assert set(json.loads((folder / "kernels.json").read_text())["m"]) == {"a", "b", "theirs"}


@pytest.mark.parametrize("text", ["{", "[]", '{"m": 3}', '{"m": {"a": {"form": "cpu"}}}', '{"m": {"a": 7}}'])
def test_a_damaged_file_is_as_none(folder: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    folder.mkdir()
    (folder / "kernels.json").write_text(text)
    with caplog.at_level(logging.WARNING):
        assert verdicts.find("m", "a") is None
    verdicts.keep("m", "a", Verdict("cpu", 5), {})
    assert json.loads((folder / "kernels.json").read_text())["m"]["a"]["crossover_tokens"] == 5
    assert text != "{" or "raced again" in caplog.text


def test_a_place_that_cannot_be_written_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOFOUR_CACHE", "/dev/null/twofour")
    assert not verdicts.can_keep()
    verdicts.keep("m", "a", Verdict("cpu", 5), {})  # no error: a choice that is not kept is only made again


def test_a_user_without_a_home_keeps_nothing(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert verdicts.file() == folder / "kernels.json"
    monkeypatch.delenv("TWOFOUR_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert not verdicts.can_keep() and verdicts.find("m", "8 x 64") is None


def test_the_machine_is_another_with_other_threads() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = verdicts.machine(torch.device("cpu"))
        torch.set_num_threads(2)
        assert verdicts.machine(torch.device("cpu")) != one
    finally:
        torch.set_num_threads(before)
    assert "1 threads" in one and torch.__version__ in one


def test_a_gpu_is_another_with_another_compiler_or_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(name="H200", multi_processor_count=132)
    versions = {"triton": "3.6.0"}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(metadata, "version", lambda name: versions[name])
    names = set()
    for versions["triton"], driver in (("3.6.0", "570.1"), ("3.7.1", "570.1"), ("3.6.0", "580.2")):
        verdicts._triton.cache_clear()
        monkeypatch.setattr(verdicts, "_driver", lambda path=driver: path)
        names.add(verdicts.machine(torch.device("cuda")))
    verdicts._triton.cache_clear()
    assert len(names) == 3 and all("H200, 132 SMs, driver " in name for name in names)


def test_the_driver_tells_its_version(tmp_path: Path) -> None:
    told = tmp_path / "version"
    told.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.124.06  Wed Feb 26\nGCC version: gcc 12.3.0\n")
    assert verdicts._driver(told) == "570.124.06"
    assert verdicts._driver(tmp_path / "none") == "unknown"
