"""How many threads the engine starts with, and how many tokens a step has."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from twofour.serve.engine.assembly import assemble
from twofour.serve.engine.assembly import threads as threads_of
from twofour.serve.engine.messages import Report
from twofour.serve.engine.runners import choice
from twofour.serve.engine.runners.fused import FusedRunner
from twofour.serve.engine.types import EngineConfig, Prompt, Sampling
from twofour.serve.kernels.cpu import extension


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


@pytest.mark.skipif(bool(extension.missing()), reason=f"no CPU kernel: {extension.missing()}")
@pytest.mark.parametrize(("asked", "tokens"), [(None, FusedRunner.piece), (100, 100)])
def test_a_step_is_a_piece_unless_a_size_was_asked_for(
    large_heads_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, asked: int | None, tokens: int
) -> None:
    monkeypatch.setattr(choice, "has_tiles", lambda: False)
    folder = large_heads_folders["dense"]
    config = EngineConfig(str(folder), device="cpu", threads=1, max_num_batched_tokens=asked, kv_tokens=512)
    loop, info = assemble.start(config)
    arrivals = [[Prompt(name, tuple(range(4, 104)), Sampling(1, temperature=0)) for name in "ab"]]
    reports = list[Report]()
    loop.run(lambda wait_s: arrivals.pop() if arrivals else None if wait_s else [], reports.append)
    assert info.runner == "fused"
    assert max(report.step.prefill_tokens for report in reports if report.step) == tokens
