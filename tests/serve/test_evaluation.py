"""eval measures what is served: against a direct computation, and on text that calibration never saw."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from twofour.serve import cli, evaluation
from twofour.serve.loading import load_model

TEXT = "What is measured is what is served. " * 40


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text"
    path.write_text(TEXT)
    return path


def test_perplexity_and_kl_by_hand(tiny_pruned_folder: Path, tiny_model_folder: Path, text: Path) -> None:
    figures = evaluation.measure(str(tiny_pruned_folder), str(tiny_model_folder), text, window=64, limit=3).quality
    ids = torch.tensor(AutoTokenizer.from_pretrained(tiny_model_folder)(TEXT)["input_ids"])[: 3 * 64].view(3, 64)
    with torch.no_grad():
        ours, dense = (
            torch.stack([load_model(str(folder))(window[None]).logits[0, :-1].float() for window in ids])
            for folder in (tiny_pruned_folder, tiny_model_folder)
        )
    logprobs, baseline = ours.log_softmax(-1), dense.log_softmax(-1)
    nll = -logprobs.gather(-1, ids[:, 1:, None]).mean().item()
    assert figures.perplexity == pytest.approx(math.exp(nll), rel=1e-4)
    assert figures.kl_nats == pytest.approx((baseline.exp() * (baseline - logprobs)).sum(-1).mean().item(), rel=1e-3)
    assert figures.agreement == pytest.approx((ours.argmax(-1) == dense.argmax(-1)).float().mean().item())


def test_a_model_is_at_no_distance_from_itself(tiny_model_folder: Path, text: Path) -> None:
    figures = evaluation.measure(str(tiny_model_folder), str(tiny_model_folder), text, window=64).quality
    assert (figures.kl_nats, figures.agreement) == (pytest.approx(0.0, abs=1e-6), 1.0)
    assert figures.perplexity == figures.baseline_perplexity


def test_text_is_fresh(tiny_pruned_folder: Path) -> None:
    path = tiny_pruned_folder / "twofour.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"calibration": {"seed": 7}}))
    done = evaluation.measure(str(tiny_pruned_folder), window=32, limit=2)
    assert f"seed {7 + evaluation.SEED_STEP}" in done.text and done.quality.windows == 2


def test_the_verb(tiny_model_folder: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", str(tiny_model_folder), "--text", str(text), "--window", "64", "--out", str(tmp_path / "q.json")]
    assert cli.main([*words, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "q.json").read_text())
    assert printed["perplexity"] > 1 and printed["kl_nats"] is None and printed["text"] == "text"
