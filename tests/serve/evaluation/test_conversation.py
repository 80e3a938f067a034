"""Questions read and asked, and the dense model's answers as the judge of a pruned one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from twofour import cli
from twofour.prune import PruneConfig, prune
from twofour.prune.errors import InputError, TextError
from twofour.prune.format.folder import read_json
from twofour.serve.evaluation import conversation
from twofour.serve.evaluation.conversation import Questions
from twofour.serve.model.loading import load_model

WORDS = ["--window", "32", "--windows", "1"]


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    path = tmp_path / "asked.txt"
    path.write_text("Why?\n\n  How much?  \nWhere?\n")
    return path


def test_questions_of_a_file(tmp_path: Path, asked: Path) -> None:
    assert [talk[0]["content"] for talk in Questions(asked).read()] == ["Why?", "How much?", "Where?"]
    said = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user", "assistant")]
    lines = tmp_path / "asked.jsonl"
    lines.write_text(json.dumps({"messages": said}) + "\n" + json.dumps({"messages": said[1:2]}) + "\n")
    assert Questions(lines).read() == [said[:4], said[1:2]]
    for line in ('{"messages": []}', '{"text": "Why?"}', "Why?", '{"messages": [{"role": "system"}]}', "[]"):
        lines.write_text(line)
        with pytest.raises(TextError, match=r'asked\.jsonl line 1 is no JSON object with "messages" of a user'):
            Questions(lines).read()
    asked.write_text("\n")
    with pytest.raises(TextError, match=r"asked\.txt holds no question"):
        Questions(asked).read()
    assert Questions().name == "48 plain questions" and len(Questions().read()) == 48


def test_answers_are_the_dense_models_greedy_ones(
    tiny_pruned_folder: Path, tiny_model_folder: Path, asked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "ANSWER_TOKENS", 9)
    ours, dense = (load_model(str(folder)) for folder in (tiny_pruned_folder, tiny_model_folder))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)

    def logits(model: Any) -> Any:
        return lambda ids: model(ids, use_cache=False).logits

    found = conversation.judged(Questions(asked), dense, logits(ours), logits(dense), tokenizer)
    kls, same = list[torch.Tensor](), list[torch.Tensor]()
    for question in ("Why?", "How much?", "Where?"):
        text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        mask = torch.ones_like(ids)
        whole = dense.generate(ids, attention_mask=mask, max_new_tokens=9, do_sample=False, eos_token_id=[0, 1, 2])
        with torch.no_grad():
            log_p, log_q = (
                model(whole).logits[0, ids.shape[1] - 1 : -1].float().log_softmax(-1) for model in (dense, ours)
            )
        kls.append((log_p.exp() * (log_p - log_q)).sum(-1))
        same.append(log_p.argmax(-1) == log_q.argmax(-1))
    assert found is not None and (found.answers, found.tokens) == (3, len(torch.cat(kls)))
    assert found.kl_nats == pytest.approx(float(torch.cat(kls).mean()), rel=1e-3)
    assert found.agreement == pytest.approx(float(torch.cat(same).float().mean()))


def test_it_is_printed_and_on_the_label(
    tiny_model_folder: Path, asked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, dense = tmp_path / "out", str(tiny_model_folder)
    prune(tiny_model_folder, out, PruneConfig(method="magnitude"))
    command = ["eval", str(out), "--baseline", dense, *WORDS]
    assert cli.main([*command, "--questions", str(asked), "--label"]) == 0
    assert "on those to\n                   asked.txt, greedy, 384 tokens" in capsys.readouterr().out
    assert cli.main([*command, "--label", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["answers"]
    assert figures["questions"] == "48 plain questions" and figures["kl_nats"] > 0
    label = read_json(out / "twofour.json")["answers"]
    assert set(label) == {"asked.txt", "48 plain questions"}
    assert label["48 plain questions"]["kl_nats"] == figures["kl_nats"] and label["asked.txt"]["versions"]
    for file in ("README.md", "report.html"):
        text = (out / file).read_text()
        assert "asked.txt" in text and f"{figures['agreement']:.1%}" in text and "gives greedily" in text


def test_models_without_a_template_are_not_asked(
    tiny_pruned_folder: Path, tiny_model_folder: Path, asked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    tokenizer.chat_template = None
    assert conversation.judged(Questions(), None, None, None, tokenizer) is None  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the baseline has no chat template that can be followed"):
        conversation.judged(Questions(asked), None, None, None, tokenizer)  # type: ignore[arg-type]
    assert cli.main(["eval", str(tiny_pruned_folder), "--questions", str(asked)]) == 1
    assert "give --baseline with --questions" in capsys.readouterr().err
    assert cli.main(["eval", str(tiny_model_folder), *WORDS, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["answers"] is None
