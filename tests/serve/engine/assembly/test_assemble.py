"""How many threads the engine starts with."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from twofour.serve.engine.assembly import assemble
from twofour.serve.engine.types import EngineConfig


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("asked", "usable", "threads"), [(None, [0], 1), (None, [0, 1, 2], 2), (2, [0], 2)])
def test_a_quota_of_processors_bounds_the_threads_that_nobody_asked_for(
    tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, asked: int | None, usable: list[int], threads: int
) -> None:
    monkeypatch.setattr(assemble, "usable_cpus", lambda: usable)
    assemble.start(EngineConfig(str(tiny_model_folder), device="cpu", threads=asked, kv_tokens=256))
    assert torch.get_num_threads() == threads
