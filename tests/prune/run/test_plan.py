"""Plans: sums by hand, and a plan of a tiny model for every preset, which leaves the disk alone."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from twofour.cli import main
from twofour.prune import PruneConfig
from twofour.prune.errors import InputError
from twofour.prune.model import anatomy
from twofour.prune.run import footprint
from twofour.prune.run import plan as plans
from twofour.prune.run.footprint import Peak
from twofour.prune.run.plan import Paces, Plan, estimate, measure, plan

PACES = Paces(write=50.0, collect=0.01, forward=0.002, solve=3.0, train=0.02, distil=0.1)


def planned(**asked: object) -> Plan:
    return Plan(*estimate(PACES, 10, PruneConfig(**asked)), 7, 9, [])  # type: ignore[arg-type]


def test_the_parts_of_a_fast_run() -> None:
    plan = planned(preset="fast", samples=65, length=101)
    assert plan.sampling_s == 50.0
    assert plan.pruning_s == pytest.approx(10 * (3.0 + 65 * 101 * (0.01 + 0.002)))
    assert plan.recovery_s == 0


def test_presets_that_train_follow_the_dense_model_and_pay_for_their_passes() -> None:
    fast, balanced, best = (planned(preset=preset, samples=8, length=100) for preset in ("fast", "balanced", "best"))
    assert balanced.pruning_s - fast.pruning_s == pytest.approx(10 * 800 * 0.002)
    by_blocks = 10 * 800 * (0.02 * 15 / 16 + 0.002 / 16)
    assert balanced.recovery_s == pytest.approx(by_blocks + 800 * 0.1)
    assert best.recovery_s == pytest.approx(by_blocks + 4 * 800 * 0.1)
    blocks = planned(preset="balanced", train="blocks", samples=8, length=100)
    assert blocks.recovery_s == pytest.approx(2 * by_blocks)


def test_a_stream_pays_for_its_tokens_or_takes_its_minutes() -> None:
    fast, tokens, minutes = (
        planned(preset="fast", samples=8, length=100, **asked) for asked in ({}, {"tokens": 5000}, {"minutes": 2.0})
    )
    fresh = 0.1 + 10 * 0.002 + 50.0 / 800  # trained on, seen by the dense model, written
    assert tokens.recovery_s == pytest.approx(5000 * fresh) and minutes.recovery_s == pytest.approx(120)
    assert fast.pruning_s == tokens.pruning_s == minutes.pruning_s


def test_a_plan_prints_the_terms_of_its_memory() -> None:
    host, gpu = Peak("pruning a block", {"masks": 0, "model": 1 << 30, "solver": 3 << 29}), Peak("x", {"y": 5 << 30})
    text = str(Plan(60.0, 90.0, 30.0, host.size, 10**9, ["said"], memory=host, device=gpu)).splitlines()
    assert text[1].startswith("about 2.5 GiB of memory")
    assert text[2] == "memory in pruning a block: solver 1.50 GiB, model 1.00 GiB"
    assert text[3:] == ["about 5.0 GiB of the GPU, in x: y 5.00 GiB", "said"]


def test_magnitude_reads_nothing() -> None:
    paces = replace(PACES, write=0.0)
    assert estimate(paces, 10, PruneConfig(method="magnitude")) == (0.0, 30.0, 0.0)


def test_every_written_text_is_counted(tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "WRITTEN", 2)  # are timed
    monkeypatch.setattr(plans, "_seconds", lambda work: (work(), 1.0)[1])  # whatever is timed takes a second
    parts = anatomy.dissect(anatomy.load(tiny_model_folder))
    asked = {"a.txt": 0, ("self", "a.txt"): 5 / 2, ("self", "chat"): 5 / 2 + 1}  # chat has a question
    for calibration, written in asked.items():
        config = PruneConfig(preset="fast", samples=9, length=5, calibration=calibration)  # type: ignore[arg-type]
        assert measure(parts, tiny_model_folder, config).write == pytest.approx(written)


def test_a_plan_reads_in_minutes_and_gib() -> None:
    text = str(Plan(60.0, 90.0, 30.0, 3 << 29, 250_000_000, []))
    assert (
        text == "about 3.0 minutes (sampling 1.0, pruning 1.5, recovery 0.5)\nabout 1.5 GiB of memory, 0.25 GB on disk"
    )


@pytest.mark.parametrize("preset", ["fast", "balanced", "best"])
def test_what_a_preset_does_is_timed(tiny_model_folder: Path, preset: str) -> None:
    config = PruneConfig(preset=preset, samples=4, length=32)  # type: ignore[arg-type]
    paces = measure(anatomy.dissect(anatomy.load(tiny_model_folder)), tiny_model_folder, config)
    asked = (paces.write, paces.collect, paces.forward, paces.solve)
    assert all(seconds > 0 for seconds in asked)
    assert (paces.train > 0, paces.distil > paces.train) == ((preset != "fast"),) * 2


def test_the_command_plans_and_makes_nothing(
    tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["prune", str(tiny_model_folder), "-o", str(tmp_path / "out"), "--plan", "--samples", "2", "--length", "16"]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["disk_bytes"] > 10_000
    assert main([*words, "--method", "magnitude"]) == 0
    assert capsys.readouterr().out.startswith("about 0.0 minutes (sampling 0.0")
    assert main([*words, "--memory-limit", "1MiB"]) == 1
    assert "the limit is 0.00 GiB; give a higher limit" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_plan_refuses_what_a_run_would_refuse(tiny_model_folder: Path) -> None:
    with pytest.raises(InputError, match="exceeds the model's context"):
        plan(tiny_model_folder, PruneConfig(length=4096))
    with pytest.raises(InputError, match=r"missing\.txt is no file"):
        plan(tiny_model_folder, PruneConfig(calibration="missing.txt"))
    with pytest.raises(InputError, match="device is 'gpu'; give cpu, cuda or cuda:N"):
        plan(tiny_model_folder, PruneConfig(device="gpu"))
    with pytest.raises(InputError, match="device is 'cpu:0'; give cpu, cuda or cuda:N"):
        plan(tiny_model_folder, PruneConfig(device="cpu:0"))
    with pytest.raises(InputError, match="device is 'cuda:99', and this torch sees no such GPU; give cpu, or"):
        plan(tiny_model_folder, PruneConfig(device="cuda:99"))
    with pytest.raises(InputError, match=r"needs .* of memory even"):
        plan(tiny_model_folder, PruneConfig(method="magnitude", memory_limit_bytes=1 << 20))


def test_the_text_is_recorded_before_a_block_is_on_the_device(
    tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def where(parts: Any, *args: Any) -> Any:
        raise RuntimeError({parameter.device.type for parameter in parts.model.parameters()})

    monkeypatch.setattr(plans.batches, "record", where)
    parts = anatomy.dissect(anatomy.load(tiny_model_folder))
    with pytest.raises(RuntimeError, match=r"{'cpu'}"):
        measure(parts, tiny_model_folder, PruneConfig(device="meta", samples=4, length=32, calibration="a.txt"))


def test_a_plan_says_what_will_be_done_otherwise(tiny_model_folder: Path) -> None:
    parts = anatomy.dissect(anatomy.load(tiny_model_folder))
    asked = PruneConfig(preset="balanced", samples=4, length=32)
    least = replace(asked, lean=True, recompute=True)
    limit = footprint.memory_bytes(parts, least, on_disk=True) - 1
    planned = plan(tiny_model_folder, replace(asked, memory_limit_bytes=limit))
    assert planned.fallbacks[0].startswith("kept weights trained block by block")
    assert planned.fallbacks[0] in str(planned)
