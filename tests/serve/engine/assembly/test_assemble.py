"""How many threads the engine starts with."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from twofour.serve.engine.assembly import assemble
from twofour.serve.engine.assembly import threads as threads_of
from twofour.serve.engine.types import EngineConfig


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("asked", "usable", "threads"), [(None, 1, 1), (None, 3, 2), (2, 1, 2)])
def test_a_quota_of_processors_bounds_the_threads_that_nobody_asked_for(
    tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, asked: int | None, usable: int, threads: int
) -> None:
    monkeypatch.setattr(threads_of, "usable_cores", lambda: usable)
    monkeypatch.setattr(threads_of, "TRIAL_S", 0)  # no round is measured
    assemble.start(EngineConfig(str(tiny_model_folder), device="cpu", threads=asked, kv_tokens=256))
    assert torch.get_num_threads() == threads
