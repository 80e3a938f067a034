"""Candidates that cannot be built, raced or trusted: dropped by name, as long as they do not work."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from twofour.prune.errors import InputError, ServerError
from twofour.prune.format.packed import Packed, pack
from twofour.prune.machine import contention
from twofour.prune.solving.magnitude import magnitude
from twofour.serve.kernels import race, select, trial, verdicts
from twofour.serve.kernels.race import Failed, Result
from twofour.serve.kernels.select import Candidate, Choice
from twofour.serve.kernels.verdicts import Verdict

PACKED = pack(magnitude(torch.randn(48, 128).bfloat16()))


@pytest.fixture(autouse=True)
def nothing_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_tried", {})


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TWOFOUR_CACHE", str(tmp_path))
    return tmp_path / "kernels.json"


@dataclass(frozen=True)
class Picky:
    """As the GPU kernels are: activations of another dtype than the weight's are an error."""

    weight: Tensor
    crossover_tokens: int
    name: ClassVar[str] = "picky"

    @classmethod
    def from_packed(cls, packed: Packed, crossover_tokens: int) -> "Picky":
        return cls(packed.unpack(), crossover_tokens)

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes // 2

    def packed(self) -> Packed:
        return pack(self.weight)

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if x.dtype != self.weight.dtype:
            raise InputError(f"this weight takes {self.weight.dtype}, got {x.dtype}")
        return torch.nn.functional.linear(x, self.weight, bias)


def failing(reason: str) -> Callable[[Packed, int], Picky]:
    def build(packed: Packed, crossover_tokens: int) -> Picky:
        raise RuntimeError(reason)

    return build


@dataclass(frozen=True)
class Uncompiled(Picky):
    """Builds, and fails when it is first called, as a kernel without a compiler does."""

    name: ClassVar[str] = "uncompiled"

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        raise RuntimeError("Failed to find C compiler.\nset CC")


@pytest.fixture
def candidates(monkeypatch: pytest.MonkeyPatch) -> dict[str, Candidate]:
    """Those of a GPU, as stand-ins that run here."""
    stand_ins = {"picky": Candidate("cpu", Picky.from_packed, lambda packed: None)}
    monkeypatch.setattr(select, "CANDIDATES", stand_ins)
    monkeypatch.setattr(race, "ROUNDS", (1, 1))
    monkeypatch.setattr(contention, "kept_waiting_s", lambda: 0.0)
    monkeypatch.setattr(race, "RING_BYTES", 1)
    return stand_ins


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_real_race_takes_activations_of_the_weights_dtype(
    cache: Path, candidates: dict[str, Candidate], dtype: torch.dtype
) -> None:
    choice = select.choose(pack(magnitude(torch.randn(48, 128).to(dtype))))
    assert choice.kernel.name in ("picky", "dense") and not choice.dropped
    (kept,) = json.loads(cache.read_text())[verdicts.machine(torch.device("cpu"))].values()
    assert set(kept["seconds"]) == {"picky", "dense"} and kept["dropped"] == []


def raced(cache: Path) -> dict[str, Any]:
    (kept,) = json.loads(cache.read_text())[verdicts.machine(torch.device("cpu"))].values()
    return dict(kept)


@pytest.mark.parametrize("writable", [True, False])
@pytest.mark.parametrize("broken", [failing("no library"), Uncompiled.from_packed])
def test_a_candidate_that_fails_is_dropped_by_name_and_the_others_stay(
    cache: Path,
    candidates: dict[str, Candidate],
    monkeypatch: pytest.MonkeyPatch,
    broken: Callable[[Packed, int], Picky],
    writable: bool,
) -> None:
    if not writable:
        monkeypatch.setenv("TWOFOUR_CACHE", "/dev/null/twofour")
    reason = "Failed to find C compiler." if broken == Uncompiled.from_packed else "no library"
    working = candidates.pop("picky")
    candidates |= {"broken": Candidate("cpu", broken, lambda packed: None), "picky": working}
    choices = [select.choose(PACKED) for _ in range(3)]
    assert {choice.kernel.name for choice in choices} <= {"picky", "dense"}
    assert {choice.dropped for choice in choices} == {(f"broken: RuntimeError: {reason}",)}
    assert not writable or set(raced(cache)["seconds"]) == {"picky", "dense"}


def test_where_all_are_dropped_dense_remains(cache: Path, candidates: dict[str, Candidate]) -> None:
    candidates["picky"] = Candidate("cpu", Uncompiled.from_packed, lambda packed: None)
    choice = select.choose(PACKED)
    assert choice.kernel.name == "reference"
    assert choice.dropped == (choice.note,) == ("picky: RuntimeError: Failed to find C compiler.",)
    x = torch.randn(3, 128).bfloat16()
    assert torch.equal(choice.kernel(x, None), x @ PACKED.unpack().t())


def test_a_candidate_that_fails_in_the_race_is_dropped(
    cache: Path, candidates: dict[str, Candidate], monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates["late"] = Candidate("cpu", Picky.from_packed, lambda packed: None)
    real = race.race

    def racing(forms: Mapping[str, race.Way], *rest: Any) -> dict[str, Result]:
        if "late" in forms:
            raise Failed("late", RuntimeError("capture failed"))
        return real(forms, *rest)

    monkeypatch.setattr(race, "race", racing)
    assert select.choose(PACKED).dropped == ("late: RuntimeError: capture failed",)
    assert set(raced(cache)["seconds"]) == {"picky", "dense"} and raced(cache)["dropped"] == ["late"]


def test_dense_that_fails_is_an_error(candidates: dict[str, Candidate], cache: Path) -> None:
    candidates.clear()
    broken = RuntimeError("no memory")

    def racing(forms: Mapping[str, race.Way], *rest: Any) -> dict[str, Result]:
        raise Failed("dense", broken)

    candidates["picky"] = Candidate("cpu", Picky.from_packed, lambda packed: None)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="no memory"):
        patch.setattr(race, "race", racing)
        select.choose(PACKED)


def start_again(monkeypatch: pytest.MonkeyPatch) -> Choice:
    """Choose as the next process would."""
    monkeypatch.setattr(trial, "_tried", {})
    verdicts._book.cache_clear()
    return select.choose(PACKED)


def test_an_outcome_without_a_candidate_holds_until_it_is_back(
    cache: Path, candidates: dict[str, Candidate], monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates["ill"] = Candidate("cpu", Uncompiled.from_packed, lambda packed: None)
    assert select.choose(PACKED).dropped
    real = race.race
    monkeypatch.setattr(race, "race", lambda *_: pytest.fail("raced again, though nothing has changed"))
    assert start_again(monkeypatch).dropped == ("ill: RuntimeError: Failed to find C compiler.",)
    candidates["ill"] = Candidate("cpu", Picky.from_packed, lambda packed: None)
    monkeypatch.setattr(race, "race", real)
    assert not start_again(monkeypatch).dropped
    assert set(raced(cache)["seconds"]) == {"picky", "ill", "dense"} and raced(cache)["dropped"] == []


def test_a_winner_that_does_not_work_any_more_gives_way(
    cache: Path, candidates: dict[str, Candidate], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its compiler is gone since it won."""
    verdicts.keep(verdicts.machine(torch.device("cpu")), "48 x 128 2:4 bfloat16", Verdict("picky", 64), {})
    assert select.choose(PACKED).kernel.name == "picky"
    candidates["picky"] = Candidate("cpu", Uncompiled.from_packed, lambda packed: None)
    choice = start_again(monkeypatch)
    assert choice.kernel.name == "reference" and choice.dropped


def test_a_refusal_that_raises_is_a_refusal(candidates: dict[str, Candidate]) -> None:
    def refusal(packed: Packed) -> str | None:
        raise ImportError("libtriton.so: undefined symbol")

    candidates["picky"] = Candidate("cpu", Picky.from_packed, refusal)
    choice = select.choose(PACKED)
    assert (choice.kernel.name, choice.note) == ("reference", "ImportError: libtriton.so: undefined symbol")


def test_a_candidate_asked_for_by_name_fails_aloud(candidates: dict[str, Candidate], cache: Path) -> None:
    candidates["picky"] = Candidate("cpu", failing("no library"), lambda packed: None)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="no library"):
        patch.setattr(select, "NAMES", ("auto", "picky"))
        select.choose(PACKED, "picky")


def test_a_device_that_does_not_answer_is_no_matter_of_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    problem = trial.Problem("48 x 128", 128, torch.device("cuda:1"), torch.bfloat16)
    with pytest.raises(ServerError, match=r"cuda:1 does not answer after the kernel triton failed \(RuntimeError: x\)"):
        trial.drop(problem, "triton", RuntimeError("x"))


def test_seconds_of_a_regressed_library_are_labelled(
    cache: Path, candidates: dict[str, Candidate], monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates["cusparselt"] = candidates.pop("picky")
    monkeypatch.setattr(torch.backends.cusparselt, "version", lambda: 800)
    select.choose(PACKED)
    assert "0.8.0" in raced(cache)["seconds"]["cusparselt"]["warning"]
    assert "warning" not in raced(cache)["seconds"]["dense"]
