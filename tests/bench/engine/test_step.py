"""Both arms do the same work, none of it in a linear; and the verb, on a tiny model."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from twofour import cli
from twofour.bench.engine import step as overhead
from twofour.bench.engine import turn
from twofour.bench.engine.step import Overhead, document, table
from twofour.prune.errors import InputError, ModelError
from twofour.serve.engine import child
from twofour.serve.engine.assembly.assemble import assemble
from twofour.serve.engine.messages import Report
from twofour.serve.engine.types import EngineConfig
from twofour.serve.model.loading import load_model

PROMPT, STEPS = [(7 * i + 1) % 320 for i in range(600)], 4  # longer than what a step may compute of a prompt


def test_both_arms_decode_the_same_tokens_and_only_decoding_counts(
    tiny_float32_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare, served = (load_model(str(tiny_float32_folder), "cpu", kernels="reference") for _ in range(2))
    loop, _ = assemble(EngineConfig(str(tiny_float32_folder), device="cpu"), served)
    fed: list[int] = []
    bare.register_forward_pre_hook(lambda _, args, more: fed.append(int(more["input_ids"][0, -1])), with_kwargs=True)
    reports: list[Report] = []
    monkeypatch.setattr(child, "send", lambda pipe, report: (reports.append(report), pipe.send_bytes(b"{}")))
    ticks = iter(range(1000))
    for module in (overhead, turn):
        monkeypatch.setattr(module, "thread_time", lambda: next(ticks))
    assert overhead._bare_turn(bare, PROMPT, STEPS)() == [1] * STEPS
    assert overhead._engine_turn(loop, PROMPT, STEPS)() == [1] * STEPS
    generated = [token for report in reports for piece in report.pieces for token in piece.tokens]
    assert len(generated) == STEPS + 1 and fed == [PROMPT[-1], *generated[:-1]]
    timed = [report.step for report in reports[-STEPS:]]
    assert [(step.decodes, step.prefill_tokens) for step in timed if step] == [(1, 0)] * STEPS


def test_no_linear_is_left(tiny_pruned_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(str(tiny_pruned_folder), "cpu", kernels="reference")
    assert overhead._replace_linears(model) == 15

    def multiplied(*_: object) -> Tensor:
        raise AssertionError("a linear has multiplied")

    monkeypatch.setattr(nn.functional, "linear", multiplied)
    with torch.inference_mode():
        for tokens in (1, 3):
            logits = model(torch.ones(1, tokens, dtype=torch.int64)).logits
            assert logits.shape == (1, tokens, 320) and logits.isfinite().all()


def test_a_model_without_linears_is_refused() -> None:
    with pytest.raises(ModelError, match="Sequential has no linears"):
        overhead._replace_linears(nn.Sequential(nn.ReLU()))


@pytest.mark.parametrize(("engine_s", "point", "reached"), [((0.11, 0.22), 1.1, True), ((0.12, 0.24), 1.2, False)])
def test_the_ratio_is_the_engines_time_over_the_bare_one(
    engine_s: tuple[float, ...], point: float, reached: bool
) -> None:
    result = document(Overhead(15, "float32", (0.1, 0.2), engine_s, ()), "m", 64, 8)
    assert result["schema_version"] == 2
    assert result["ratio"]["point"] == pytest.approx(point) and result["reached"] is reached
    assert result["bare"]["median_s"] == pytest.approx(0.15)
    assert ("reached" if reached else "MISSED") in table(result) and f"{point:.3f}x" in table(result)


def test_the_verb_prints_one_document_or_a_table(tiny_pruned_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    words = ["bench", "overhead", str(tiny_pruned_folder), "--context", "20", "--steps", "3", "--rounds", "2"]
    assert cli.main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["linears_replaced"], result["dtype"], result["rounds"]) == (15, "bfloat16", 2)
    assert min(result["bare"]["seconds"] + result["engine"]["seconds"]) > 0
    assert result["ratio"]["low"] <= result["ratio"]["point"] <= result["ratio"]["high"]
    assert [(entry["sequences"], entry["top_p"]) for entry in result["around_the_model"]] == list(turn.WAYS)
    assert torch.get_num_threads() == threads
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "engine / bare" in out and "32 sequences, top_p 0.95" in out


@pytest.mark.parametrize(
    ("words", "why"), [(["--rounds", "0"], "--rounds is 0"), (["--context", "1022"], "max_model_len 1055 is over")]
)
def test_what_cannot_be_measured_is_refused(tiny_pruned_folder: Path, words: list[str], why: str) -> None:
    args = cli._parser("bench").parse_args(["bench", "overhead", str(tiny_pruned_folder), *words])
    with pytest.raises(InputError, match=why):
        cli.import_module("twofour.bench.commands.bench").run(args)
