"""What a turn of vLLM gave becomes times and ratios; the verb refuses what it cannot measure."""

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from twofour import cli
from twofour.bench.decode.worker import Worker
from twofour.bench.vllm import measure
from twofour.bench.vllm.document import document
from twofour.bench.vllm.measure import WARM_STEPS, Arm, Cell, Findings, Place, Plan, Turn
from twofour.bench.vllm.table import table
from twofour.prune.errors import InputError

HARDWARE = {"hardware": {"summary": "a machine"}}

# Answers as vLLM's process does: an output for each token, half a second apart, of one request more each time.
RAMP = """
import json, sys
for line in sys.stdin:
    question = json.loads(line)
    requests, tokens = len(question["prompts"]), question["tokens"]
    counts = [min(at + 1, requests) for at in range(tokens + requests - 1)]
    print(json.dumps({"outputs": [(1 + at / 2, count) for at, count in enumerate(counts)]}), flush=True)
"""


@pytest.fixture
def worker(tmp_path: Path) -> Any:
    with Worker("arm", [sys.executable, "-c", RAMP], tmp_path / "log") as arm:
        yield arm


def test_a_step_counts_where_all_requests_decode() -> None:
    outputs = [(1.0, 2), (1.5, 3), (2.0, 3), (2.25, 3), (3.0, 1)]
    assert measure.steps(outputs, 3) == [0.5, 0.25]


def test_a_turn_of_answers_counts_steps_after_the_warm_ones(worker: Worker) -> None:
    found = measure.turn(worker, Place(prompt=4, batch=3, steps=5), list(range(10)))
    outputs = (1 + WARM_STEPS + 5) + 2  # two until all have begun
    assert found.steps == [0.5] * (outputs - 3 - WARM_STEPS)
    assert found.first == 1.0 and found.whole == 1.0 + (outputs - 1) / 2


def test_a_turn_of_prompts_gives_each_alone(worker: Worker) -> None:
    found = measure.turn(worker, Place(prompt=128, batch=1), list(range(300)))
    assert found.steps == [] and found.first == 1.0 and found.whole == 2.0


def test_vllm_gets_room_for_the_longest_answer_and_what_was_asked_for(tmp_path: Path) -> None:
    plan = Plan([Arm("a", tmp_path)], {"enforce_eager": True, "max_num_seqs": 40}, [1, 8], 64, [512], 16, 2)
    found = measure.engine_arguments(plan, [Place(64, 8, 16), Place(512, 1)])
    assert found == {"enforce_eager": True, "max_num_seqs": 40, "max_model_len": 512 + WARM_STEPS + 1}


def findings(others: float | None = 0.0, slow: float = 1.0, **changed: Any) -> Findings:
    arms = [Arm("dense", Path("d")), Arm("2of4", Path("s"))]
    plan = Plan(arms, {"enforce_eager": True}, [2], 64, [64], 4, 2)
    facts: Mapping[str, Any] = {
        name: {"quantization": how, "dtype": "bfloat16", "versions": {"vllm": "0.32.0"}}
        for name, how in (("dense", None), ("2of4", "twofour"))
    }

    def turns(factor: float, place: Place) -> list[Turn]:
        steps = [0.04 * factor] * place.steps
        return [Turn(steps, 2.0 * factor, 0.5 * factor, others) for _ in range(2)]

    places = [Place(64, 2, 4), Place(64, 1)]
    cells = [Cell(place, {"dense": turns(1.0, place), "2of4": turns(0.5 * slow, place)}) for place in places]
    return Findings(plan, datetime.now(UTC), facts, cells, **changed)


def test_a_ratio_says_how_much_faster_an_arm_is() -> None:
    result = document(findings(), "dense", HARDWARE)
    answers, prompts = (cell["arms"]["2of4"] for cell in result["cells"])
    assert set(answers) == {"step", "whole"} and set(prompts) == {"first"}
    for quantity in (*answers.values(), *prompts.values()):
        assert quantity["against"]["point"] == pytest.approx(2.0)
    assert answers["step"]["tokens_per_s"] == pytest.approx(2 / 0.02)
    assert answers["whole"]["tokens_per_s"] == pytest.approx(2 * (1 + WARM_STEPS + 4) / 1.0)
    assert prompts["first"]["tokens_per_s"] == pytest.approx(64 / 0.25)
    shown = table(result)
    assert result["valid"] and shown.endswith("\nVALID") and "2.00x [2.00, 2.00]" in shown
    assert "vLLM's own linears" in shown and "twofour" in shown and "enforce_eager=True" in shown


def test_an_arm_that_is_slower_is_named() -> None:
    shown = table(document(findings(slow=3.0), "dense", HARDWARE))
    assert "SLOWER than dense: 2of4, 2 at a time" in shown and "SLOWER than dense: 2of4, prompts of 64" in shown
    assert "SLOWER" not in table(document(findings(), "dense", HARDWARE))


@pytest.mark.parametrize(("changed", "word"), [({"others": 0.2}, "BUSY"), ({"cut_off": True}, "cut off")])
def test_a_busy_machine_or_a_cut_off_run_is_not_to_be_quoted(changed: dict[str, Any], word: str) -> None:
    result = document(findings(**changed), "dense", HARDWARE)
    assert not result["valid"] and word in table(result) and "INVALID" in table(result)


def test_where_the_system_does_not_count_nothing_is_busy() -> None:
    result = document(findings(others=None), "dense", HARDWARE)
    assert result["valid"] and result["cells"][0]["others"] is None


def test_the_document_can_be_printed_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = document(findings(), "dense", HARDWARE)
    (tmp_path / "vllm.json").write_text(json.dumps(result, allow_nan=False))
    assert cli.main(["bench", "report", str(tmp_path / "vllm.json")]) == 0
    assert capsys.readouterr().out == table(result) + "\n"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["a={}", "a={}"], "the name a is given twice"),
        (["{}"], "is no arm; give NAME=MODEL"),
        (["a={}", "--batch", "0"], "--batch has 0"),
        (["a={}", "--rounds", "0"], "--rounds has 0"),
        (["a={}", "--baseline", "b"], "--baseline b is no arm; choose from a"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path: Path, words: list[str], why: str) -> None:
    given = ["bench", "vllm", *(word.format(tmp_path) for word in words)]
    with pytest.raises(InputError, match=why):
        cli.import_module("twofour.bench.commands.bench").run(cli._parser("bench").parse_args(given))
