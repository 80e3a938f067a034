"""Mixtures for a budget or a divergence: met exactly, predicted, on the label, and the same after a cut-off."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from twofour.prune import PruneConfig, check, prune
from twofour.prune.errors import InputError
from twofour.prune.format.checkpoint import Weights, digests
from twofour.prune.format.schemes import TWO_OF_FOUR, Scheme
from twofour.prune.policy.market import LADDER
from twofour.prune.progress import Step
from twofour.prune.recovery import distil
from twofour.prune.run.frontier import frontier
from twofour.prune.run.plan import plan
from twofour.prune.run.report import Report

SMALL: dict[str, Any] = {"preset": "fast", "samples": 16, "length": 32}
JUDGED = 4  # of the samples beside them


@pytest.fixture(scope="module")
def bold_folder(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with larger weights, so that it matters what becomes of them."""
    folder = tmp_path_factory.mktemp("bold") / "model"
    shutil.copytree(tiny_model_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    larger = {name: 12 * tensor if tensor.dim() == 2 else tensor for name, tensor in tensors.items()}
    save_file(larger, folder / "model.safetensors", {"format": "pt"})
    return folder


def run(source: Path, out: Path, **asked: Any) -> Report:
    report = prune(source, out, PruneConfig(**{**SMALL, **asked}))
    assert check(out).ok, check(out).faults
    return report


def stored_share(source: Path, out: Path) -> float:
    """The bytes of the linears of the decoder blocks, as a share of those of the dense model."""
    with Weights(source) as dense, Weights(out) as mixed:
        linears = [name.removesuffix(".weight") for name in dense if name.endswith("proj.weight")]
        before = sum(dense[f"{name}.weight"].nbytes for name in linears)
        return sum(mixed[name].nbytes for name in mixed if name.rpartition(".")[0] in linears) / before


@pytest.mark.parametrize(("budget", "preset"), [(0.3421, "fast"), (0.4, "balanced"), (0.5, "fast")])
def test_a_budget_is_met_in_the_bytes_on_disk(bold_folder: Path, tmp_path: Path, budget: float, preset: str) -> None:
    manifest = run(bold_folder, tmp_path / "out", budget=budget, preset=preset).manifest
    policy, schemes = manifest["policy"], manifest["schemes"]
    share = stored_share(bold_folder, tmp_path / "out")
    assert share <= budget and policy["share"] == pytest.approx(share, rel=1e-9)
    for layer in (f"model.layers.{index}" for index in range(2)):
        for group in (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")):
            assert len({schemes[f"{layer}.{name}"] for name in group}) == 1
    assert manifest["linears"].keys() == {name for name, scheme in schemes.items() if scheme in TWO_OF_FOUR}
    assert policy["sensitivity"].keys() == schemes.keys() and len(policy["measured"]) == len(LADDER)
    assert manifest["calibration"]["samples"] == 16 and policy["samples"] == JUDGED
    dense = [name for name, scheme in schemes.items() if scheme not in TWO_OF_FOUR]
    assert all(manifest["dense"][name] == f"dense by budget {budget:g}" for name in dense)


def test_more_budget_is_nearer_to_dense_and_what_is_predicted_is_found(bold_folder: Path, tmp_path: Path) -> None:
    found = [run(bold_folder, tmp_path / str(b), budget=b).manifest["policy"] for b in (0.3421, 0.4, 0.52)]
    assert [each["kl"] for each in found] == sorted((each["kl"] for each in found), reverse=True)
    assert found[0]["kl"] == pytest.approx(found[0]["predicted_kl"], rel=1e-3)  # the cheapest was measured itself
    assert all(each["kl"] > 0 for each in found)


def test_training_brings_a_mixture_nearer(bold_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distil, "MODEL_RATE", 0.01)  # so short a text is enough then
    report = run(bold_folder, tmp_path / "out", budget=0.4, preset="best", samples=64)
    policy = report.manifest["policy"]
    assert policy["kl"] < policy["predicted_kl"] and "budget 0.4: met with 0.4000 of the bytes" in str(report)
    assert "| mixture | budget 0.4: met" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("values", "form", "known"),
    [
        ("model", "packed", {"2:4", "dense"}),
        ("int8", "packed", {"2:4-int8", "dense-int8"}),
        (None, "dense", {"2:4", "dense"}),
    ],
)
def test_values_restrict_the_schemes(
    bold_folder: Path, tmp_path: Path, values: str | None, form: str, known: set[Scheme]
) -> None:
    budget = 0.5 if values == "int8" else 0.8
    manifest = run(bold_folder, tmp_path / "out", budget=budget, values=values, format=form).manifest
    assert set(manifest["schemes"].values()) == known


def test_the_cheapest_within_a_divergence(bold_folder: Path, tmp_path: Path) -> None:
    policies = [run(bold_folder, tmp_path / f"{kl}", max_kl=kl).manifest["policy"] for kl in (0.3, 1.0)]
    assert all(policy["predicted_kl"] <= policy["asked"]["max_kl"] * (1 + 1e-9) for policy in policies)
    assert policies[0]["share"] > policies[1]["share"]


def test_seconds_of_a_clock(bold_folder: Path, tmp_path: Path) -> None:
    def clock(shape: tuple[int, int], scheme: Scheme, tokens: int, dtype: torch.dtype) -> float:
        assert tokens == 512 and dtype == torch.bfloat16
        return 1e-9 * shape[0] * shape[1] * (0.6 if scheme in TWO_OF_FOUR else 1.0)

    config = PruneConfig(budget=0.8, budget_for="prefill", **SMALL)
    policy = prune(bold_folder, tmp_path / "timed", config, clock=clock).manifest["policy"]
    assert policy["share"] <= 0.8 and policy["cost"] == "timed here"
    card = run(bold_folder, tmp_path / "card", budget=0.45, budget_for="decode", card="L40S").manifest["policy"]
    assert card["cost"] == "L40S, estimated"


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"budget": 0.3}, "the cheapest mixture of .* costs 0.34"),
        ({"budget": 0.6}, "nothing would be 2:4"),
        ({"budget": 1.0}, "the dense model costs 1"),
        ({"budget": 0.5, "budget_for": "decode"}, "name a card"),
        ({"budget": 0.5, "budget_for": "decode", "card": "H900"}, "no card is named"),
    ],
)
def test_what_cannot_be_met_is_refused_before_any_work(
    bold_folder: Path, tmp_path: Path, asked: dict[str, Any], match: str
) -> None:
    for refuses in (
        lambda: run(bold_folder, tmp_path / "out", **asked),
        lambda: plan(bold_folder, PruneConfig(**asked)),
    ):
        with pytest.raises(InputError, match=match):
            refuses()
    assert not list(tmp_path.iterdir())


def cut_off_after(stage: str, done: int) -> Any:
    def report(step: Step) -> None:
        if step.stage == stage and step.done == done:
            raise KeyboardInterrupt

    return report


@pytest.mark.parametrize(
    ("stage", "done"), [("measuring sensitivity", 1), ("measuring mixtures", 3), ("distilling", 1)]
)
def test_a_choice_that_was_cut_off_ends_in_the_same_bytes(
    bold_folder: Path, tmp_path: Path, stage: str, done: int
) -> None:
    config = PruneConfig(**{**SMALL, "preset": "best"}, budget=0.4)
    prune(bold_folder, tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        prune(bold_folder, tmp_path / "out", config, cut_off_after(stage, done))
    prune(bold_folder, tmp_path / "out", config)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_a_frontier_is_the_mixtures_of_its_budgets_and_goes_on(bold_folder: Path, tmp_path: Path) -> None:
    config = PruneConfig(**{**SMALL, "preset": "balanced"}, frontier=(0.36, 0.45))
    reached = 0

    def second_training(step: Step) -> None:
        nonlocal reached
        reached += step.stage == "distilling" and step.done == 1
        if reached == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        frontier(bold_folder, tmp_path / "out", config, second_training)
    first = tmp_path / "out" / "0.36"
    written = (first / "twofour.json").stat().st_mtime_ns
    found = frontier(bold_folder, tmp_path / "out", config)
    assert (first / "twofour.json").stat().st_mtime_ns == written
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    for budget, report in found.reports.items():
        alone = run(bold_folder, tmp_path / f"alone {budget}", budget=budget, preset="balanced")
        assert digests(report.folder) == digests(alone.folder) and check(report.folder).ok
    assert json.loads(json.dumps(found.as_dict())).keys() == {str(tmp_path / "out" / name) for name in ("0.36", "0.45")}
    assert [line.split()[0] for line in str(found).splitlines()] == ["budget", "0.36", "0.45"]
    with pytest.raises(InputError, match="exists already"):
        frontier(bold_folder, tmp_path / "out", config)


def test_the_plan_says_what_a_choice_takes(bold_folder: Path) -> None:
    plain, chosen, several = (
        plan(bold_folder, PruneConfig(**SMALL, **asked))
        for asked in ({}, {"budget": 0.4}, {"frontier": (0.36, 0.4, 0.45)})
    )
    assert plain.choosing_s == 0 and "choosing" not in str(plain)
    assert chosen.choosing_s > 0 and "choosing" in str(chosen)
    assert several.disk_bytes > chosen.disk_bytes and chosen.peak_memory_bytes >= plain.peak_memory_bytes
