import json
from pathlib import Path

import pytest
import torch

from twofour.prune.errors import InputError
from twofour.prune.format.packed import pack
from twofour.prune.machine import contention
from twofour.prune.solving.magnitude import magnitude
from twofour.serve.kernels import cpu, race, select, trial, verdicts
from twofour.serve.kernels.race import ALWAYS, TRAFFIC, Result
from twofour.serve.kernels.verdicts import Verdict

needs_cpu = pytest.mark.skipif(cpu.available().startswith("none"), reason=cpu.available())
PACKED = pack(magnitude(torch.randn(48, 128).bfloat16()))


def timed(seconds: float) -> Result:
    return Result(dict.fromkeys(TRAFFIC, seconds), dict.fromkeys(TRAFFIC, 2 * seconds))


@pytest.fixture(autouse=True)
def nothing_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_tried", {})
    monkeypatch.setattr(select, "_undecided", set())


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contention, "kept_waiting_s", lambda: 0.0)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TWOFOUR_CACHE", str(tmp_path))
    return tmp_path / "kernels.json"


@pytest.fixture
def races(monkeypatch: pytest.MonkeyPatch) -> dict[str, Result]:
    """What races will find; the real race is counted, not run."""
    outcome = {"cpu": timed(1.0), "dense": timed(2.0)}
    monkeypatch.setattr(race, "race", lambda forms, *rest: {name: outcome[name] for name in forms})
    return outcome


@needs_cpu
def test_a_real_race_is_run_once_and_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = select.choose(PACKED)
    found = json.loads(cache.read_text())
    (kept,) = found[verdicts.machine(torch.device("cpu"))].values()
    assert kept["form"] == first.kernel.name and set(kept["seconds"]) == {"cpu", "dense"}
    assert [int(tokens) for tokens in kept["seconds"]["cpu"]["few"]] == list(TRAFFIC)
    monkeypatch.setattr(race, "race", lambda *_: pytest.fail("raced again"))
    assert select.choose(PACKED).kernel.name == first.kernel.name


@needs_cpu
def test_a_weight_that_loses_becomes_dense_and_says_so(cache: Path, races: dict[str, Result]) -> None:
    races["dense"] = timed(0.5)
    choice = select.choose(PACKED)
    assert (choice.kernel.name, choice.note) == ("dense", select.SLOWER)
    assert torch.equal(choice.kernel.packed().unpack(), PACKED.unpack())
    x = torch.randn(3, 128).bfloat16()
    torch.testing.assert_close(choice.kernel(x, None), x @ PACKED.unpack().t(), rtol=2e-2, atol=2e-2)


@needs_cpu
def test_dense_must_win_clearly(cache: Path, races: dict[str, Result]) -> None:
    races["dense"] = timed(0.98)
    assert select.choose(PACKED).kernel.name == "cpu"


def test_the_winner_carries_its_own_crossover() -> None:
    few = {tokens: tokens / 10 for tokens in TRAFFIC}
    outcome = {"cpu": Result(few, dict.fromkeys(TRAFFIC, 5.0)), "dense": timed(100.0)}
    assert select.winner(outcome) == Verdict("cpu", 32)  # 5 s are less than 6.4 s from 64 tokens on


@needs_cpu
def test_without_a_cache_nothing_is_raced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOFOUR_CACHE", "/dev/null/twofour")
    monkeypatch.setattr(race, "race", lambda *_: pytest.fail("raced"))
    assert select.choose(PACKED).kernel.name == "cpu"
    weight = torch.randn(48, 128).bfloat16()
    assert select.dense_crossover(weight, "auto", is_head=False) == select.CROSSOVERS["cpu"]["dense"]


@needs_cpu
def test_a_race_beside_other_work_keeps_nothing(
    cache: Path, races: dict[str, Result], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    races["dense"] = timed(0.5)
    waits = iter((10.0, 90.0))
    monkeypatch.setattr(contention, "kept_waiting_s", lambda: next(waits))
    assert select.choose(PACKED).kernel.name == "cpu"
    assert "beside other work" in caplog.text and not cache.exists()
    monkeypatch.setattr(contention, "kept_waiting_s", lambda: 90.0)
    assert select.choose(PACKED).kernel.name == "cpu", "not raced again, be it for a hundred linears"
    monkeypatch.setattr(select, "_undecided", set())
    assert select.choose(PACKED).kernel.name == "dense" and cache.exists(), "raced at the next start, now alone"


@needs_cpu
def test_a_form_that_no_kernel_takes_any_more_is_decided_anew(cache: Path, races: dict[str, Result]) -> None:
    machine = verdicts.machine(torch.device("cpu"))
    verdicts.keep(machine, "48 x 128 2:4 bfloat16", Verdict("gone", 8), {})
    assert select.choose(PACKED).kernel.name == "cpu"


@needs_cpu
def test_dense_linears_get_their_own_crossover(cache: Path, races: dict[str, Result]) -> None:
    weight = torch.randn(48, 128).bfloat16()
    races["dense"] = Result(dict.fromkeys(TRAFFIC, 1.0), {tokens: 8 / tokens for tokens in TRAFFIC})
    assert select.dense_crossover(weight, "auto", is_head=True) == 8
    assert select.dense_crossover(weight, "reference", is_head=True) == 0
    assert select.dense_crossover(weight.float(), "auto", is_head=True) == 0
    assert select.dense_crossover(weight[:, :100], "auto", is_head=True) == 0


@needs_cpu
def test_a_pinned_kernel_is_not_raced(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "race", lambda *_: pytest.fail("raced"))
    assert select.choose(PACKED, "cpu").kernel.name == "cpu"
    assert select.choose(PACKED, "reference").kernel.name == "reference"
    assert select.dense_crossover(torch.randn(48, 128).bfloat16(), "cpu", is_head=False) > 0


def test_names() -> None:
    with pytest.raises(InputError, match="no kernel is named 'fast'; choose one of auto, reference, cpu"):
        select.choose(PACKED, "fast")
    with pytest.raises(InputError, match="it runs on cuda, the weight is on cpu"):
        select.choose(PACKED, "cusparselt")
    half = pack(magnitude(torch.randn(48, 128).half()))
    assert select.choose(half).kernel.name == "reference" and ALWAYS > 0
