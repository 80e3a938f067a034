"""eval measures what is served: against a direct computation, and on text that calibration never saw."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from twofour import cli
from twofour.prune import PruneConfig, prune
from twofour.prune.errors import InputError
from twofour.prune.label.quality import gap_closed
from twofour.serve.evaluation import evaluate as evaluation
from twofour.serve.model.loading import load_model

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


def test_a_head_in_int8_is_in_the_figures_and_measured_alone(
    tiny_head_folder: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = tiny_head_folder.parent / "dense"
    done = evaluation.measure(str(tiny_head_folder), str(dense), text, window=64, limit=3).as_dict()
    ids = torch.tensor(AutoTokenizer.from_pretrained(dense)(TEXT)["input_ids"])[: 3 * 64].view(3, 64)
    model, unrounded = load_model(str(tiny_head_folder)), load_model(str(tiny_head_folder))
    unrounded.set_output_embeddings(load_model(str(dense)).get_output_embeddings())
    with torch.no_grad():
        ours, exact = (
            torch.stack([each(window[None]).logits[0, :-1].float() for window in ids]).log_softmax(-1)
            for each in (model, unrounded)
        )
    assert done["head_kl_nats"] == pytest.approx((exact.exp() * (exact - ours)).sum(-1).mean().item(), rel=1e-3)
    assert done["perplexity"] == pytest.approx(math.exp(-ours.gather(-1, ids[:, 1:, None]).mean().item()), rel=1e-4)
    assert 0 < done["head_kl_nats"] < done["kl_nats"] and done["head_kl_error"] is not None
    command = ["eval", str(tiny_head_folder), "--baseline", str(dense), "--text", str(text), "--window", "64"]
    assert cli.main([*command, "--windows", "3"]) == 0
    assert "of lm_head int8  KL 0.00" in capsys.readouterr().out


def test_what_was_not_rounded_has_no_loss_of_its_own(
    tiny_pruned_folder: Path, tiny_model_folder: Path, tiny_head_folder: Path, text: Path
) -> None:
    for model, baseline in (
        (tiny_pruned_folder, tiny_model_folder),
        (tiny_head_folder, None),
        (tiny_head_folder, tiny_model_folder),  # of other width, whose head does not fit
    ):
        done = evaluation.measure(str(model), baseline and str(baseline), text, window=64, limit=1).as_dict()
        assert (done["head_kl_nats"], done["head_kl_error"]) == (None, None)


def test_windows_begin_with_bos_which_is_not_scored(tiny_bos_folder: Path, text: Path) -> None:
    done = evaluation.measure(str(tiny_bos_folder), None, text, window=64, limit=3)
    own = AutoTokenizer.from_pretrained(tiny_bos_folder)(TEXT, add_special_tokens=False)["input_ids"][: 3 * 63]
    ids = torch.tensor([[1, *own[at : at + 63]] for at in (0, 63, 126)])
    with torch.no_grad():
        logs = (
            torch.cat([load_model(str(tiny_bos_folder))(window[None]).logits for window in ids]).float().log_softmax(-1)
        )
    nll = -logs[:, :-1].gather(-1, ids[:, 1:, None]).mean().item()  # of 63 predictions, the first of them behind BOS
    assert done.quality.perplexity == pytest.approx(math.exp(nll), rel=1e-4)
    assert (done.quality.predictions, done.quality.window_tokens) == (3 * 63, 64)
    assert done.as_dict()["begins_with"] == "<|im_start|>"


def test_what_windows_begin_with_is_said(
    tiny_model_folder: Path, tiny_bos_folder: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, file, said in (
        (tiny_model_folder, ["--text", str(text)], "the first of each not scored"),
        (tiny_bos_folder, ["--text", str(text)], "<|im_start|> not scored"),
        (tiny_model_folder, [], "<|endoftext|> not scored"),
    ):
        assert cli.main(["eval", str(folder), *file, "--window", "32", "--windows", "2"]) == 0
        assert f"2 windows of 32 tokens, {said}" in capsys.readouterr().out


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


def test_what_would_be_rounded_at_load_is_measured(
    tiny_model_folder: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tiny_model_folder)
    words = ["eval", folder, "--baseline", folder, "--text", str(text), "--window", "64"]
    rounding = ["--lm-head", "int8", "--dense-values", "int8"]
    assert cli.main([*words, *rounding, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["kl_nats"] > 0 and printed["lm_head"] == printed["dense_values"] == "int8"
    assert cli.main([*words, *rounding]) == 0
    assert "lm_head rounded to int8 at load" in capsys.readouterr().out
    assert cli.main([*words, "--lm-head", "int8", "--label"]) == 1
    assert "as it is stored" in capsys.readouterr().err


def test_the_gap_closed_against_another_pruned_model(
    tiny_pruned_folder: Path, tiny_int8_folder: Path, tiny_model_folder: Path, text: Path
) -> None:
    sparse, other, dense = (str(path) for path in (tiny_pruned_folder, tiny_int8_folder, tiny_model_folder))
    done = evaluation.measure(sparse, dense, text, window=64, limit=2, against=other).as_dict()
    found, base, reference = (
        evaluation.measure(path, None, text, window=64, limit=2).quality.perplexity for path in (sparse, dense, other)
    )
    assert done["against_perplexity"] == pytest.approx(reference)
    assert done["gap_closed"] == pytest.approx(gap_closed(found, base, reference))
    logs = [math.log(value) for value in (found, base, reference)]
    assert done["nll_gap_closed"] == pytest.approx(gap_closed(*logs))
    with pytest.raises(InputError, match="give --baseline with --against"):
        evaluation.measure(sparse, None, text, against=other)


def test_the_label(tiny_model_folder: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, dense = str(tmp_path / "out"), str(tiny_model_folder)
    prune(dense, out, PruneConfig(method="magnitude"))
    words = ["eval", out, "--text", str(text), "--window", "64", "--label"]
    assert cli.main(words) == 1 and "give --baseline with --label" in capsys.readouterr().err
    assert cli.main([*words, "--baseline", dense, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    labelled = json.loads((tmp_path / "out" / "twofour.json").read_text())["quality"]["text"]
    assert labelled["kl_nats"] == printed["kl_nats"] > 0
    assert (
        f"| {printed['baseline_perplexity']:.2f} | {printed['perplexity']:.2f} ± {printed['perplexity_error']:.2f} |"
        in (tmp_path / "out" / "README.md").read_text()
    )


def test_a_folder_without_a_label_is_refused_before_it_is_measured(
    tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = str(tiny_model_folder)
    assert cli.main(["eval", dense, "--baseline", dense, "--text", "/no/such/text", "--label"]) == 1
    assert "has no label of twofour prune" in capsys.readouterr().err
