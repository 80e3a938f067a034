"""Pruning with one block at a time on the GPU, the model in the memory of the host."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from pruned_families import tiny, tokens

from twofour.prune import PruneConfig, check, prune
from twofour.prune.config import Preset
from twofour.prune.format.schemes import Scheme
from twofour.prune.model import anatomy
from twofour.prune.model.anatomy import Block
from twofour.prune.model.batches import Batch, follow_dense, record
from twofour.prune.recovery.blocks import block_loss
from twofour.prune.recovery.distil import distil, divergence
from twofour.prune.recovery.kept import KeptWeights
from twofour.prune.recovery.training import Outcome, learn
from twofour.prune.run import calibrate
from twofour.prune.run.plan import plan
from twofour.prune.solving.magnitude import magnitude
from twofour.prune.solving.statistics import Norms
from twofour.serve.kernels import clock

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


def test_a_mixture_is_judged_on_the_device(tiny_model_folder: Path, tmp_path: Path, text: str) -> None:
    config = PruneConfig(preset="balanced", calibration=text, samples=16, length=32, device="cuda", budget=0.45)
    policy = prune(tiny_model_folder, tmp_path / "out", config).manifest["policy"]
    assert check(tmp_path / "out").ok and policy["share"] <= 0.45 and policy["kl"] > 0


@pytest.mark.parametrize("scheme", get_args(Scheme))
def test_products_are_timed_on_the_device(scheme: Scheme) -> None:
    assert 0 < clock.clock("cuda")((256, 512), scheme, 512, torch.bfloat16) < 1


def distilled(dtype: torch.dtype) -> tuple[float, Outcome]:
    """The loss of a pruned random model after training, measured in float32, and what training says."""
    dense, ids = tiny("llama", initializer_range=0.2, vocab_size=8192), tokens(24)
    parts = anatomy.dissect(copy.deepcopy(dense).to(dtype))
    batches = record(parts, ids, batch_tokens=32)
    list(calibrate.walk(parts, batches, lambda w, _: magnitude(w), Norms, recover=train_nothing, device="cuda"))
    parts.model.to("cuda")
    outcome = distil(parts, ids, batches, passes=4, seed=0)
    with torch.no_grad():
        found = divergence(parts.model.cpu().float()(ids).logits, dense(ids).logits)  # type: ignore[operator]
    return float(found), outcome


def train_nothing(block: Block, index: int, batches: list[Batch]) -> Outcome:
    return Outcome(1.0, 1.0, 0)


def test_float16_is_trained_as_well_as_float32() -> None:
    (half, outcome), (full, expected) = distilled(torch.float16), distilled(torch.float32)
    assert outcome.after < outcome.before and half == pytest.approx(full, rel=0.02)
    assert outcome.before - outcome.after == pytest.approx(expected.before - expected.after, rel=0.1)


def test_a_loss_too_small_for_float16_moves_weights_as_in_float32() -> None:
    torch.manual_seed(0)
    weight, x = magnitude(torch.randn(8, 16)).half(), torch.randn(32, 16).half()
    moments = {}
    for dtype in (torch.float16, torch.float32):
        linear = torch.nn.Linear(16, 8, bias=False, device="cuda", dtype=dtype).requires_grad_(False)
        linear.weight.copy_(weight)
        kept, inputs = KeptWeights([linear], torch.float16, 0.01), x.to("cuda", dtype)
        learn(kept, lambda part, on=linear, i=inputs: on(i).float().square().mean() * 1e-8, 0, 1.0)  # type: ignore[misc]
        moments[dtype] = kept.state()["exp_avg.0"]
    torch.testing.assert_close(*moments.values(), rtol=0.01, atol=1e-12)


def test_the_loss_of_a_block_is_computed_on_the_device(tiny_model_folder: Path) -> None:
    parts = anatomy.dissect(anatomy.load(tiny_model_folder))
    batches = record(parts, torch.arange(4, 132).view(4, 32))
    parts.blocks[0].module.to("cuda")
    follow_dense(parts.blocks[0], 0, batches)
    assert batches[0].dense is not None and batches[0].dense.device.type == "cpu"
    assert block_loss(parts.blocks[0], 0, batches)(0).device.type == "cuda"
