"""Which runner a model gets; what its linears multiply by follows from that."""

from pathlib import Path
from typing import Any

import fused_models
import pytest
import torch
from fused_models import POSITIONS

from twofour.prune.errors import ModelError
from twofour.prune.machine import contention
from twofour.serve.engine.assembly import assemble
from twofour.serve.engine.runners import choice
from twofour.serve.engine.runners.fused import FusedRunner
from twofour.serve.engine.runners.generic import GenericRunner
from twofour.serve.engine.types import EngineConfig
from twofour.serve.kernels import race
from twofour.serve.kernels.cpu import extension
from twofour.serve.kernels.dense import DenseLinear
from twofour.serve.kernels.race import ALWAYS, TRAFFIC, Result
from twofour.serve.model.loading import load_model, weight_report

pytestmark = pytest.mark.skipif(bool(extension.missing()), reason=f"no CPU kernel: {extension.missing()}")
BLOCKS, SIZE = 50, 16


@pytest.fixture(autouse=True)
def races(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often is raced: dense wins, and can be kept."""
    calls = list[int]()

    def dense_wins(forms: Any, columns: int, *rest: Any) -> dict[str, Result]:
        calls.append(columns)
        seconds = {name: dict.fromkeys(TRAFFIC, 1.0 if name == "dense" else 2.0) for name in forms}
        return {name: Result(each, each) for name, each in seconds.items()}

    monkeypatch.setenv("TWOFOUR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(race, "race", dense_wins)
    monkeypatch.setattr(contention, "kept_waiting_s", lambda: 0.0)
    monkeypatch.setattr(choice, "has_tiles", lambda: False)
    return calls


def load(folder: Path, **options: Any) -> Any:
    threads = torch.get_num_threads()
    return assemble.load(EngineConfig(str(folder), device="cpu", threads=threads, block_size=SIZE, **options))


def test_nothing_is_raced_for_what_is_fused(tiny_pruned_folder: Path, races: list[int]) -> None:
    model = load(tiny_pruned_folder)
    assert set(weight_report(model).kernels) == {"cpu"} and not races
    runner, _ = choice.choose(model, "auto", SIZE).build(8, SIZE, 64)
    assert isinstance(runner, FusedRunner) and not races


def test_of_a_dense_model_all_numbers_of_tokens_take_our_kernel(tmp_path: Path, races: list[int]) -> None:
    fused_models.models("llama", "dense")[0].save_pretrained(tmp_path / "dense")
    linears = [module for module in load(tmp_path / "dense").modules() if isinstance(module, DenseLinear)]
    assert linears and {linear.crossover_tokens for linear in linears} == {ALWAYS} and not races


def test_what_is_not_fused_is_raced(
    tiny_pruned_folder: Path, races: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "has_tiles", lambda: True)
    assert "dense" in weight_report(load(tiny_pruned_folder)).kernels and races


def test_a_pinned_kernel_stays(tiny_pruned_folder: Path, races: list[int]) -> None:
    model = load(tiny_pruned_folder, kernels="reference")
    assert set(weight_report(model).kernels) == {"reference"} and not races


def test_a_model_that_falls_back_is_raced_then(
    tiny_pruned_folder: Path, races: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(self: FusedRunner) -> None:
        raise ModelError("its logits differ")

    monkeypatch.setattr(FusedRunner, "verify", wrong)
    model = load(tiny_pruned_folder)
    runner, why = choice.choose(model, "auto", SIZE).build(8, SIZE, 64)
    assert isinstance(runner, GenericRunner) and why == "not fused: its logits differ"
    assert "dense" in weight_report(model).kernels and races


def test_a_model_fits_before_its_linears_have_kernels_or_not(tiny_pruned_folder: Path) -> None:
    asked = list[str]()

    def decide(model: Any) -> str:
        asked.extend(choice.kernels_for(model, "auto", size) for size in (SIZE, 8))
        return "reference"

    load_model(str(tiny_pruned_folder), "cpu", decide=decide)
    assert asked == ["cpu", "auto"]
    load_model(str(tiny_pruned_folder), "cpu", "float32", decide=decide)
    assert asked[2] == "auto"


@pytest.mark.parametrize(
    ("family", "form", "options", "why"),
    [
        ("llama", "2:4", {"kernels": "reference"}, "the kernel reference was asked for"),
        ("llama", "2:4", {"block_size": 8}, "blocks of a multiple of 16"),
        ("llama, heads of 16, ragged columns", "dense", {}, "in a form that it does not read"),
    ],
)
def test_what_does_not_fit(family: str, form: str, options: dict[str, Any], why: str) -> None:
    model, _, _ = fused_models.models(family, form)
    plan = choice.choose(model, **{"kernels": "auto", "block_size": SIZE} | options)
    one, reason = plan.build(BLOCKS, SIZE, POSITIONS)
    assert isinstance(one, GenericRunner) and why in reason


def test_where_torch_has_tiles_it_reads_prompts_unless_our_kernels_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, _, _ = fused_models.models("llama", "2:4")
    monkeypatch.setattr(choice, "has_tiles", lambda: True)
    found = {kernels: choice.choose(model, kernels, SIZE).build(BLOCKS, SIZE, POSITIONS) for kernels in ("auto", "cpu")}
    assert isinstance(found["auto"][0], GenericRunner) and "AMX" in found["auto"][1]
    assert isinstance(found["cpu"][0], FusedRunner)


def test_scores_with_a_cap_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, _ = fused_models.models("gemma3, two windows")
    monkeypatch.setattr(model.config, "final_logit_softcapping", 30.0)
    plan = choice.choose(model, "auto", SIZE)
    assert len(plan.builds) == 1 and "final_logit_softcapping" in plan.why


def test_float32_does_not_fit() -> None:
    _, _, in_f32 = fused_models.models("llama")
    one, reason = choice.choose(in_f32, "auto", SIZE).build(BLOCKS, SIZE, POSITIONS)
    assert isinstance(one, GenericRunner) and "it takes bfloat16" in reason
    in_f32.set_attn_implementation("sdpa")
