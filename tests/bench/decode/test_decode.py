"""The arms decode the same tokens from the same positions; and the verb, on tiny models."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from fused_models import SHAPE, VOCABULARY
from transformers import GPTNeoXConfig, LlamaConfig, LlamaForCausalLM

from twofour import cli
from twofour.bench.decode import measure
from twofour.bench.decode.arms import Arm
from twofour.bench.decode.child import Session, _decoder
from twofour.bench.decode.document import document
from twofour.bench.decode.measure import Cell, Findings, Place, Plan, Turn
from twofour.bench.decode.table import table
from twofour.bench.kernels.ceiling import Ceiling
from twofour.prune.errors import InputError, ModelError
from twofour.serve.engine.runners import choice
from twofour.serve.kernels.cpu import extension

CONTEXT, STEPS = 40, 6
PROMPT = [(7 * i + 1) % VOCABULARY for i in range(CONTEXT)]
HARDWARE = {"hardware": {"summary": "a machine"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense Llama that the fused runner takes, too. Its likeliest tokens are ahead by more than roundings."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    torch.manual_seed(11)
    LlamaForCausalLM(LlamaConfig(**SHAPE)).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("runtime", "options"),
    [("fused", {}), ("generic", {"dtype": "float32"}), ("transformers", {"dtype": "float32"}), ("transformers", {})],
)
def test_every_turn_of_every_runtime_decodes_the_models_tokens(
    folder: Path, one_thread: None, runtime: str, options: dict[str, str], batch: int
) -> None:
    session = Session(_decoder(runtime, str(folder), options, batch, CONTEXT + STEPS))
    session.prepare(PROMPT, batch)
    first, second = (session.turn(threads=1, warm=1, steps=STEPS - 1) for _ in range(2))
    assert len(first["seconds"]) == STEPS - 1 and min(first["seconds"]) > 0
    assert first["tokens"] == second["tokens"] == greedy(folder)


@cache
def greedy(folder: Path) -> list[int]:
    model, tokens = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32), [*PROMPT]
    for _ in range(STEPS):
        tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[CONTEXT:]


@pytest.mark.parametrize("runtime", ["generic", "transformers"])
def test_a_step_reads_the_linears_and_the_head(tiny_model_folder: Path, runtime: str) -> None:
    found = _decoder(runtime, str(tiny_model_folder), {}, 1, 64).facts()
    assert found["weight_bytes"] == 2 * (320 * 64 + 2 * (64 * 64 * 2 + 64 * 32 * 2 + 64 * 96 * 3))


def test_of_a_pruned_model_a_step_reads_fewer_bytes(tiny_pruned_folder: Path) -> None:
    dense, head = 2 * 2 * (64 * 64 * 2 + 64 * 32 * 2 + 64 * 96 * 3), 2 * 320 * 64
    found = _decoder("generic", str(tiny_pruned_folder), {}, 1, 64).facts()
    assert dense / 2 < found["weight_bytes"] - head < dense * 0.7


def test_a_model_without_a_fused_runner_says_why(tiny_float32_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"this model has no fused runner: .* it takes bfloat16"):
        _decoder("fused", str(tiny_float32_folder), {}, 1, 64)


@pytest.mark.skipif(bool(extension.missing()), reason=f"no CPU kernel: {extension.missing()}")
def test_the_generic_runner_attends_as_it_is_served(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "has_tiles", lambda: False)
    assert _decoder("generic", str(folder), {}, 1, 64)._runner._caches  # type: ignore[attr-defined]
    assert _decoder("generic", str(folder), {"dtype": "float32"}, 1, 64)._runner._caches is None  # type: ignore[attr-defined]


def test_the_prompt_is_as_long_as_the_context(tiny_model_folder: Path) -> None:
    assert measure.prompt_tokens(tiny_model_folder, 3) == measure.prompt_tokens(tiny_model_folder, 5000)[:3]
    assert len(measure.prompt_tokens(tiny_model_folder, 5000)) == 5000


def test_a_family_whose_heads_share_no_keys_caches_those_of_each_head(tmp_path: Path) -> None:
    GPTNeoXConfig(hidden_size=64, num_hidden_layers=3, num_attention_heads=4).save_pretrained(tmp_path)
    assert measure.cached_bytes(tmp_path) == 2 * 2 * 3 * 64


def findings(**changed: Any) -> Findings:
    arms = [Arm(name, "fused", {}, Path("m")) for name in ("a", "b")]
    plan = Plan(arms, [1], [64], [2], steps=2, rounds=2, node=Path(), gguf=None)
    pressure = changed.pop("pressure", 0.0)
    turns = {
        "a": [Turn([0.02, 0.02], [1, 2, 3, 4, 5], 0.4), Turn([0.04, 0.04], [1, 2, 3, 4, 5], 0.6)],
        "b": [Turn([0.01, 0.01], [1, 2, 9, 4, 5], pressure), Turn([0.01, 0.01], [1, 2, 9, 4, 5], pressure)],
    }
    facts = {name: {"runner": "fused", "weight_bytes": 10**7} for name in ("a", "b")}
    ceilings = {1: Ceiling("read", 10**9, (0.5,))}
    cells = [Cell(Place(64, 2, 1), turns)]
    return Findings(plan, datetime.now(UTC), facts, ceilings, 1000, cells, **changed)


def test_a_ratio_says_how_much_faster_an_arm_is_than_a_baseline() -> None:
    result = document(findings(), ["a"], HARDWARE)
    a, b = result["cells"][0]["arms"].values()
    assert a["against"] == {} and b["against"]["a"]["point"] == pytest.approx(8**0.5)
    assert b["same_tokens"] == {"a": 2} and a["median_s"] == pytest.approx(0.03)
    assert b["cached_bytes"] == 1000 * (64 + measure.WARM_STEPS + 1) * 2
    assert b["share_of_bandwidth"] == pytest.approx((10**7 + b["cached_bytes"]) / 2e9 / 0.01)
    assert a["cpu_pressure"] == 0.5 and result["cells"][0]["cpu_pressure"] == 0.0
    assert result["valid"] and "VALID" in table(result) and "2.83x" in table(result)


@pytest.mark.parametrize(
    ("changed", "word"), [({"pressure": 0.2}, "BUSY: something waited 20%"), ({"cut_off": True}, "cut off")]
)
def test_a_busy_machine_or_a_cut_off_run_is_not_to_be_quoted(changed: dict[str, Any], word: str) -> None:
    result = document(findings(**changed), ["a"], HARDWARE)
    assert not result["valid"] and word in table(result) and "INVALID" in table(result)


def test_the_verb_measures_all_places_and_its_document_can_be_printed_again(
    tiny_model_folder: Path, tiny_pruned_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "decode.json"
    arms = [f"2:4/generic=generic:{tiny_pruned_folder}", f"dense=transformers:{tiny_model_folder}"]
    sizes = ["--context", "8", "20", "--batch", "2", "--steps", "2", "--rounds", "2", "--baseline", "dense"]
    assert cli.main(["bench", "decode", *arms, *sizes, "--out", str(out)]) in (0, 3)
    shown = capsys.readouterr().out
    result = json.loads(out.read_text())
    assert [(cell["context"], cell["batch"], cell["threads"]) for cell in result["cells"]] == [(8, 2, 1), (20, 2, 1)]
    assert result["schema_version"] == 1 and result["arms"]["dense"]["versions"]["transformers"]
    assert cli.main(["bench", "report", str(out)]) == 0
    assert capsys.readouterr().out == shown and "dense / it" in shown


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--threads", "0"], "--threads has 0"),
        (["--rounds", "0"], "--rounds is 0"),
        (["--baseline", "b"], "--baseline b is no arm; choose from a"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path: Path, words: list[str], why: str) -> None:
    args = cli._parser("bench").parse_args(["bench", "decode", f"a=fused:{tmp_path}", *words])
    with pytest.raises(InputError, match=why):
        cli.import_module("twofour.bench.commands.bench").run(args)
