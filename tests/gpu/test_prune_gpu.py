"""Pruning with one block at a time on the GPU, the model in the memory of the host."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from twofour.prune import PruneConfig, check, prune
from twofour.prune.plan import plan
from twofour.prune.recipe import Preset

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture
def text(tmp_path: Path) -> str:
    (tmp_path / "text").write_text("".join(f"{number} is followed by {number + 1}. " for number in range(100)))
    return str(tmp_path / "text")


@pytest.mark.parametrize("preset", ["fast", "balanced", "best"])
def test_the_losses_are_those_of_a_cpu(tiny_model_folder: Path, tmp_path: Path, text: str, preset: Preset) -> None:
    on_cpu = PruneConfig(preset=preset, calibration=text, samples=8, length=64, dtype="float32")
    expected = prune(tiny_model_folder, tmp_path / "cpu", on_cpu).manifest["linears"]
    found = prune(tiny_model_folder, tmp_path / "cuda", replace(on_cpu, device="cuda")).manifest["linears"]
    assert check(tmp_path / "cuda").ok
    assert {name: linear["tokens"] for name, linear in found.items()} == dict.fromkeys(expected, 512)
    for name, linear in found.items():
        assert linear["loss"] == pytest.approx(expected[name]["loss"], rel=0.1)


def test_one_block_at_a_time_is_on_the_device(large_model_folder: Path, tmp_path: Path, text: str) -> None:
    torch.cuda.reset_peak_memory_stats()
    config = PruneConfig(method="wanda", calibration=text, samples=2, length=64, device="cuda")
    prune(large_model_folder, tmp_path / "out", config)
    model_bytes = (large_model_folder / "model.safetensors").stat().st_size
    assert 0 < torch.cuda.max_memory_allocated() < model_bytes / 2  # of 12 blocks; solving takes float32 copies


def test_a_plan_moves_what_the_run_moves(tiny_model_folder: Path, tmp_path: Path) -> None:
    config = PruneConfig(preset="best", samples=4, length=32, device="cuda", values="int8")  # the model writes the text
    planned = plan(tiny_model_folder, config)
    assert min(planned.sampling_s, planned.pruning_s, planned.recovery_s) > 0 and planned.fallbacks == []
    prune(tiny_model_folder, tmp_path / "out", config)
    assert check(tmp_path / "out").ok
