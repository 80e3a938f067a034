"""From a multimodal folder, or one in FP8, to a pruned text-only one: what it says of itself, and its baseline."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fp8_models import in_fp8
from multimodal_models import MODELS, changed, logits, published, random
from safetensors.torch import load_file

from twofour.cli import main
from twofour.prune import PruneConfig, check, prune
from twofour.prune.format.folder import read_config, read_json
from twofour.prune.format.weights import Weights
from twofour.prune.label.convert import convert
from twofour.prune.model import anatomy
from twofour.prune.run.plan import plan
from twofour.prune.run.prepare import prepare
from twofour.prune.solving.magnitude import magnitude
from twofour.serve.evaluation.evaluate import measure
from twofour.serve.model.loading import load_model

FAST = PruneConfig(preset="fast", samples=4, length=32)
MAGNITUDE = PruneConfig(method="magnitude")


def whole_folder(name: str, folder: Path, tokenizer: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A multimodal model as it is published, with old names, and a tokenizer."""
    published(random(name, dtype), folder, old_names=True)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / file, folder / file)
    return folder


def pruned_by_hand(whole: Any) -> Any:
    """The whole model with the linears of its text blocks 2:4."""
    for path, module in whole.named_modules():
        if isinstance(module, torch.nn.Linear) and "language_model.layers" in path:
            module.weight.copy_(magnitude(module.weight))
    return whole


@pytest.mark.parametrize("name", MODELS)
def test_a_pruned_tower_is_an_ordinary_folder(tiny_model_folder: Path, tmp_path: Path, name: str) -> None:
    source = whole_folder(name, tmp_path / "whole", tiny_model_folder)
    report = prune(source, tmp_path / "out", MAGNITUDE)
    expected = logits(pruned_by_hand(random(name)))
    assert check(tmp_path / "out").ok
    assert torch.allclose(logits(load_model(str(tmp_path / "out"), kernels="reference")), expected, atol=1e-4)
    convert(tmp_path / "out", tmp_path / "zeros", "dense")
    assert torch.equal(logits(anatomy.load(tmp_path / "zeros")), expected)
    assert report.manifest["dense"] == {"lm_head": "outside the decoder blocks: never pruned"}
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert "tokenizer.json" in files and not files & {"preprocessor_config.json", "processor_config.json"}


def test_it_is_said_aloud(tiny_model_folder: Path, tmp_path: Path) -> None:
    source = whole_folder("gemma3", tmp_path / "whole", tiny_model_folder)
    report = prune(source, tmp_path / "out", FAST)
    kept = {"model.embed_tokens.weight"}
    with Weights(source) as stored:
        parts = {part: sum(stored[n].nbytes for n in stored if n.startswith(part)) for part in VISION}
    tower = {"model": "Gemma3ForConditionalGeneration", "text": "Gemma3ForCausalLM", "left_bytes": parts}
    assert report.manifest["origin"]["tower"] == tower
    said = (
        "of Gemma3ForConditionalGeneration only the text model was taken, as Gemma3ForCausalLM; left behind: "
        f"multi_modal_projector, vision_tower ({sum(parts.values()) / 1e6:,.1f} MB)"
    )
    assert report.manifest["fallbacks"][0] == said and said in str(report)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "The text model of whole with 21 linears" in card and f"| text model | {said} |" in card
    assert said in plan(source, FAST).fallbacks
    with Weights(tmp_path / "out") as weights:
        assert kept <= set(weights) and "lm_head.weight" not in weights


VISION = ("multi_modal_projector", "vision_tower")


def test_lm_head_in_int8_of_a_tower(tiny_model_folder: Path, tmp_path: Path) -> None:
    """Tied to embeddings that are stored under another name."""
    source = whole_folder("gemma3", tmp_path / "whole", tiny_model_folder, torch.bfloat16)
    report = prune(source, tmp_path / "out", PruneConfig(method="magnitude", lm_head="int8", values="int8"))
    assert check(tmp_path / "out").ok and report.manifest["lm_head"]["tied"]
    assert torch.isfinite(logits(load_model(str(tmp_path / "out"), kernels="reference"))).all()


def test_the_template_of_the_processor_becomes_that_of_the_tokenizer(tiny_model_folder: Path, tmp_path: Path) -> None:
    source = whole_folder("mistral3", tmp_path / "whole", tiny_model_folder)
    template = (tiny_model_folder / "chat_template.jinja").read_text()
    (source / "chat_template.json").write_text('{"chat_template": "{{ messages[0].content }}"}')
    prune(source, tmp_path / "out", MAGNITUDE)
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages[0].content }}" != template
    assert not (tmp_path / "out" / "chat_template.json").exists()


@pytest.mark.parametrize("name", ["gemma3", "qwen3_vl"])
def test_the_multimodal_model_is_the_baseline(tiny_model_folder: Path, tmp_path: Path, name: str) -> None:
    """Its text tower, exactly: nothing is lost by taking it, and something by pruning it."""
    source = whole_folder(name, tmp_path / "whole", tiny_model_folder)
    assert main(["convert", str(source), "-o", str(tmp_path / "text"), "--to", "dense"]) == 0
    found = measure(str(tmp_path / "text"), str(source), window=32, limit=2).quality
    assert found.kl_nats == pytest.approx(0, abs=1e-9) and found.agreement == 1
    prune(source, tmp_path / "out", MAGNITUDE)
    lost = measure(str(tmp_path / "out"), str(source), window=32, limit=2).quality
    assert lost.kl_nats is not None and lost.kl_nats > 0.01


def test_a_folder_in_fp8_is_pruned_as_what_it_means(tiny_model_folder: Path, tmp_path: Path) -> None:
    meant = in_fp8(tiny_model_folder, tmp_path / "fp8", "fp8 blocks")
    report = prune(tmp_path / "fp8", tmp_path / "out", MAGNITUDE)
    note = "dequantised from FP8 (fp8, blocks of 32x16) to bfloat16: 14 weights; activations are not quantised any more"
    assert report.manifest["fallbacks"] == [note] and report.manifest["values"] == {"dtype": "bfloat16"}
    assert check(tmp_path / "out").ok
    convert(tmp_path / "out", tmp_path / "zeros", "dense")
    written = load_file(tmp_path / "zeros" / "model.safetensors")
    assert all(torch.equal(written[name], magnitude(weight)) for name, weight in meant.items())
    assert set(written) == set(load_file(tiny_model_folder / "model.safetensors"))
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    assert "quantization_config" not in read_config(tmp_path / "zeros")
    planned, plain = (prepare(folder, FAST) for folder in (tmp_path / "fp8", tiny_model_folder))
    assert (planned.memory_bytes, planned.disk_bytes) == (plain.memory_bytes, plain.disk_bytes)


def test_a_tower_in_fp8(tiny_model_folder: Path, tmp_path: Path) -> None:
    """As Ministral 3 is published: a scale for each weight, and scales of activations."""
    source = whole_folder("ministral3", tmp_path / "whole", tiny_model_folder, torch.bfloat16)
    meant = in_fp8(source, tmp_path / "fp8", "fp8 tensor")
    changed(source, dict(meant))
    for name in ("whole", "fp8"):
        prune(tmp_path / name, tmp_path / f"{name}-2of4", FAST)
    one, other = (load_file(tmp_path / f"{name}-2of4" / "model.twofour.safetensors") for name in ("whole", "fp8"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    prune(tmp_path / "fp8", tmp_path / "zeros", replace(FAST, format="dense"))
    assert check(tmp_path / "zeros").ok and torch.isfinite(logits(anatomy.load(tmp_path / "zeros"))).all()
    notes = read_json(tmp_path / "fp8-2of4" / "twofour.json")["fallbacks"]
    assert notes[0].startswith("of Mistral3For") and notes[1].startswith("dequantised from FP8")


def test_a_baseline_in_fp8(tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    in_fp8(tiny_model_folder, tmp_path / "fp8", "compressed channel")
    assert main(["convert", str(tmp_path / "fp8"), "-o", str(tmp_path / "plain"), "--to", "dense"]) == 0
    assert "nothing was pruned\ndequantised from FP8 (compressed-tensors" in capsys.readouterr().out
    assert torch.equal(logits(load_model(str(tmp_path / "fp8"))), logits(load_model(str(tmp_path / "plain"))))


def test_convert_to_packed_prunes_nothing(
    tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    in_fp8(tiny_model_folder, tmp_path / "fp8", "fp8 blocks")
    assert main(["convert", str(tmp_path / "fp8"), "-o", str(tmp_path / "out")]) == 1
    assert 'is dense; run "twofour prune", or give --to dense' in capsys.readouterr().err
    changed(tmp_path / "fp8", {"model.norm.weight": None})
    assert main(["convert", str(tmp_path / "fp8"), "-o", str(tmp_path / "out"), "--to", "dense"]) == 1
    assert "lacks model.norm.weight" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
