"""lm-eval on dense and pruned: a tiny task of our own, its answers counted by hand."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from twofour import cli
from twofour.prune.errors import InputError
from twofour.serve.evaluation import harness
from twofour.serve.model.loading import load_model

TASK = """
task: colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list: [{{metric: acc}}]
"""
QUESTIONS = [
    {"question": f"Question {i}: the colour is", "choices": ["red", "green", "blue"], "label": i % 3} for i in range(9)
]


def chosen(folder: Path, question: str, choices: list[str]) -> int:
    """The choice whose tokens are the likeliest after the question."""
    model, tokenizer = load_model(str(folder)), AutoTokenizer.from_pretrained(folder)
    start, scores = tokenizer(question)["input_ids"], []
    for choice in choices:
        answer = tokenizer(f" {choice}")["input_ids"]
        with torch.inference_mode():
            logs = model(torch.tensor([start + answer])).logits[0].float().log_softmax(-1)
        scores.append(sum(float(logs[len(start) + i - 1, token]) for i, token in enumerate(answer)))
    return scores.index(max(scores))


@pytest.mark.filterwarnings("default")  # lm-eval and datasets warn as they like
def test_scores_of_both(
    tiny_pruned_folder: Path, tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval")
    (tmp_path / "colours.jsonl").write_text("".join(json.dumps(each) + "\n" for each in QUESTIONS))
    (tmp_path / "colours.yaml").write_text(TASK.format(file=tmp_path / "colours.jsonl"))
    words = ["eval", str(tiny_pruned_folder), "--baseline", str(tiny_model_folder), "--window", "32", "--windows", "1"]
    words += ["--lm-eval", "colours", "--lm-eval-path", str(tmp_path)]
    assert cli.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["lm_eval"]["colours"]["acc"]
    for side, folder in (("model", tiny_pruned_folder), ("baseline", tiny_model_folder)):
        right = [chosen(folder, q["question"], q["choices"]) == q["label"] for q in QUESTIONS]  # type: ignore[arg-type]
        assert found[side] == pytest.approx(sum(right) / 9)
        spread = math.sqrt(found[side] * (1 - found[side]) / 8)
        assert found[f"{side}_error"] == pytest.approx(spread)
    with pytest.raises(InputError, match="knows no task sounds"):
        harness.require(harness.Tasks(["colours", "sounds"], tmp_path))
    with pytest.raises(InputError, match="lm-eval cannot run colours"):
        (tmp_path / "colours.jsonl").unlink()
        harness.run(
            load_model(str(tiny_model_folder)),
            AutoTokenizer.from_pretrained(tiny_model_folder),
            harness.Tasks(["colours"], tmp_path),
        )


def test_without_lm_eval(
    tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    assert cli.main(["eval", str(tiny_model_folder), "--lm-eval", "colours"]) == 1
    assert 'pip install "twofour[lm-eval]"' in capsys.readouterr().err
    assert cli.main(["eval", str(tiny_model_folder), "--lm-eval-path", "/"]) == 1
    assert "give --lm-eval with" in capsys.readouterr().err


def test_the_table() -> None:
    side = {"model": 0.25, "model_error": 0.0312, "baseline": 0.5, "baseline_error": None}
    alone = {"model": 0.25, "model_error": None, "baseline": None, "baseline_error": None}
    lines = harness.table({"colours": {"acc": side}, "sounds": {"word_perplexity": alone}}).splitlines()
    assert lines[1].split() == ["colours", "acc", "0.5000", "0.2500", "±", "0.0312", "-0.2500"]
    assert lines[2].split() == ["sounds", "word_perplexity", "-", "0.2500"]
