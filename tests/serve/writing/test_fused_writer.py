"""Text written by the fused runner: the model's own choice, the same bits in any company, and who writes otherwise."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import fused_models
import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

from twofour.cli import main
from twofour.prune.errors import InputError, NonFiniteError
from twofour.prune.format.folder import read_json
from twofour.prune.model import anatomy
from twofour.prune.progress import Step
from twofour.prune.text import corpus
from twofour.prune.text.plain import PlainWriter
from twofour.prune.text.writer import Passage
from twofour.serve.engine.runners.choice import has_tiles
from twofour.serve.kernels import cpu
from twofour.serve.writing import fused_writer
from twofour.serve.writing.fused_writer import FusedWriter, new_writer

PASSAGES = [Passage(tuple(range(3, 3 + length)), 40 - length, seed=length) for length in (1, 30, 4, 1, 17, 12)]

needs_kernels = pytest.mark.skipif(cpu.available().startswith("none"), reason="no CPU kernel")


@pytest.fixture(scope="module")
def folder(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in widths that the fused runner takes."""
    out: Path = tmp_path_factory.mktemp("fused") / "model"
    shutil.copytree(tiny_model_folder, out)
    (out / "model.safetensors").unlink()
    config = AutoConfig.from_pretrained(out, hidden_size=128, intermediate_size=256, head_dim=32)
    torch.manual_seed(0)
    LlamaForCausalLM(config).bfloat16().save_pretrained(out)
    return out


@pytest.fixture
def writer() -> FusedWriter:
    return FusedWriter(fused_models.models("llama")[0])


@needs_kernels
@pytest.mark.parametrize("family", ["llama", "qwen3, heads of 128", "gemma3, two windows"])
def test_greedy_text_is_what_the_model_finds_likeliest(family: str) -> None:
    model, _, exact = fused_models.models(family)
    before = model.config._attn_implementation
    passages = [replace(passage, temperature=0.0) for passage in PASSAGES]
    for passage, text in zip(passages, FusedWriter(model).write(passages), strict=True):
        assert len(text) == passage.tokens
        with torch.no_grad():
            logits = exact(torch.tensor([[*passage.prompt, *text]])).logits[0, len(passage.prompt) - 1 : -1]
        chosen = logits.gather(-1, torch.tensor(text)[:, None])[:, 0]
        assert (logits.max(-1).values - chosen < 0.2 * logits.std()).all()
    assert model.config._attn_implementation == before


@needs_kernels
def test_a_text_depends_on_its_passage_alone(writer: FusedWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    together = writer.write(PASSAGES)
    assert together == writer.write(PASSAGES) == [writer.write([passage])[0] for passage in PASSAGES]
    monkeypatch.setattr(fused_writer, "SEQUENCES", 2)  # the others wait for their turn
    assert writer.write(PASSAGES) == together
    others = writer.write([replace(passage, seed=passage.seed + 100) for passage in PASSAGES])
    assert all(text != other for text, other in zip(together, others, strict=True))


@needs_kernels
def test_a_text_ends_with_what_ends_it(writer: FusedWriter) -> None:
    (whole,) = writer.write([Passage((7,), 30, seed=1)])
    end, steps = whole[11], list[Step]()
    passages = [Passage((7,), 30, 1, ends=frozenset({end})), Passage((7,), 30, 1), Passage((7,), 0, 1)]
    cut, same, nothing = writer.write(passages, steps.append)
    assert cut == whole[: whole.index(end) + 1] and same == whole and nothing == []
    assert (steps[-1].done, steps[-1].total) == (60, 60) and writer.write([]) == []


@needs_kernels
def test_what_does_not_fit_or_is_not_finite_is_refused(folder: Path) -> None:
    model = anatomy.load(folder)
    with pytest.raises(InputError, match="length 1025 exceeds the model's context of 1024"):
        FusedWriter(model).write([Passage((1, 2), 1023, 0)])
    model.model.norm.weight.fill_(float("nan"))  # type: ignore[union-attr, operator]
    with pytest.raises(NonFiniteError, match="NaN or infinite at position 1 of its own text"):
        FusedWriter(model).write([Passage((1, 2), 8, 0)])


@needs_kernels
@pytest.mark.skipif(has_tiles(), reason="with AMX torch is as quick")
def test_who_writes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = anatomy.load(folder)
    assert isinstance(new_writer(model), FusedWriter)
    assert isinstance(new_writer(anatomy.load(folder).float()), PlainWriter)
    monkeypatch.setattr(fused_writer, "misfit", lambda model, size: None)
    monkeypatch.setattr(fused_writer.FusedRunner, "verify", _fails)
    assert isinstance(new_writer(model), PlainWriter)


def _fails(runner: Any) -> None:
    from twofour.prune.errors import ModelError

    raise ModelError("its logits differ")


@needs_kernels
@pytest.mark.skipif(has_tiles(), reason="with AMX torch is as quick")
def test_the_command_prunes_on_text_of_the_engine(folder: Path, tmp_path: Path) -> None:
    words = ["--method", "wanda", "--calibration", "self", "--samples", "2", "--length", "16"]
    assert main(["prune", str(folder), "-o", str(tmp_path / "out"), *words]) == 0
    (source,) = read_json(tmp_path / "out" / "twofour.json")["calibration"]["sources"]
    assert source["written_by"] == FusedWriter.name
    assert FusedWriter.name in (tmp_path / "out" / "README.md").read_text()


@needs_kernels
@pytest.mark.demo
def test_the_demo_model_answers(demo_model_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_model_folder)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    prompt = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    writer = new_writer(anatomy.load(demo_model_folder))
    (answer,) = writer.write([Passage(prompt, 40, 0, 0.0, frozenset({tokenizer.eos_token_id}))])
    assert "Paris" in tokenizer.decode(answer)
    assert corpus.documents_sampled(writer, tokenizer, 2, 32, 0).shape == (2, 32)
