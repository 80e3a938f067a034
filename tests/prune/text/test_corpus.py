"""Windows of a file, and text sampled from a model: its distribution, its cache and attention, its seed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from twofour.prune.errors import InputError, ModelError, NonFiniteError, TextError
from twofour.prune.model import decoding
from twofour.prune.model.attention import quick_attention
from twofour.prune.progress import Step
from twofour.prune.text import corpus, plain
from twofour.prune.text.plain import PlainWriter


@pytest.fixture(scope="module")
def tokenizer(tiny_model_folder: Path) -> Any:
    """One token a byte; <|endoftext|> is 0, BOS 1, EOS 2."""
    return AutoTokenizer.from_pretrained(tiny_model_folder)


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    """A text in which every window tells where it stood: 240 different pairs."""
    path = tmp_path / "text.txt"
    path.write_text("".join(chr(65 + i // 20) + chr(97 + i % 20) for i in range(240)))
    return path


def llama(**changes: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 300}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    return LlamaForCausalLM(LlamaConfig(**(shape | heads | changes))).eval()


def test_windows_do_not_overlap_and_cover_the_text(numbered: Path, tokenizer: Any) -> None:
    whole = corpus.tokens(tokenizer, numbered)
    drawn = corpus.from_file(tokenizer, numbered, 30, 16, seed=0)
    assert drawn.shape == (30, 16) and drawn.dtype == torch.int64  # 480 tokens: all of them
    assert sorted(drawn.flatten().tolist()) == sorted(whole.tolist())


def test_windows_are_pieces_of_the_text_from_a_random_offset(numbered: Path, tokenizer: Any) -> None:
    whole = corpus.tokens(tokenizer, numbered).tolist()
    offsets = set()
    for seed in range(20):
        drawn = corpus.from_file(tokenizer, numbered, 5, 16, seed)
        starts = [next(i for i in range(465) if whole[i : i + 16] == window) for window in drawn.tolist()]
        assert len({start % 16 for start in starts}) == 1 and len(set(starts)) == 5
        offsets.add(starts[0] % 16)
    assert len(offsets) > 5


def test_the_seed_decides_the_windows(numbered: Path, tokenizer: Any) -> None:
    first, again, other = (corpus.from_file(tokenizer, numbered, 5, 16, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_too_few_tokens(numbered: Path, tokenizer: Any) -> None:
    with pytest.raises(TextError, match="holds 480 tokens, 31 samples of 16 need 496; give more text"):
        corpus.from_file(tokenizer, numbered, 31, 16, 0)


def test_what_is_no_text(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("binary", "missing", "."):
        with pytest.raises(TextError, match="cannot be read as UTF-8 text"):
            corpus.tokens(tokenizer, tmp_path / name)


def test_documents_of_a_jsonl_file(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "one\\nline"}\n\n{"text": "two\u2028lines", "id": 7}\r\n', encoding="utf-8")
    assert tokenizer.decode(corpus.tokens(tokenizer, path)) == "one\nline\n\ntwo\u2028lines"
    for line in ('{"body": "no"}', '{"text": 7}', '["text"]', '"text"', "text", '{"messages": []}'):
        path.write_text(f'{{"text": "one"}}\n{line}\n')
        with pytest.raises(
            TextError, match=r'text\.jsonl line 2 is no JSON object with a string "text"; give one a line'
        ):
            corpus.tokens(tokenizer, path)


def test_conversations_of_a_jsonl_file(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "talks.jsonl"
    talks = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}!"}] for n in range(9)]
    path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    whole = [tokenizer.apply_chat_template(talk, tokenize=False) for talk in talks]
    assert tokenizer.decode(corpus.tokens(tokenizer, path)) == "".join(whole)
    drawn, again, other = (corpus.from_file(tokenizer, path, 4, 50, seed) for seed in (0, 0, 1))
    assert torch.equal(drawn, again) and not torch.equal(drawn, other)
    size = len(tokenizer(whole[0])["input_ids"])  # 25: a window holds two
    for row in drawn:
        assert {tokenizer.decode(row[:size]), tokenizer.decode(row[size:])} < set(whole)
    with pytest.raises(TextError, match=r"talks\.jsonl fill 4 windows of 50 tokens, 5 are asked for"):
        corpus.from_file(tokenizer, path, 5, 50, 0)
    path.write_text(path.read_text() + '{"text": "no"}\n')
    with pytest.raises(TextError, match=r"talks\.jsonl line 10 holds no conversation"):
        corpus.tokens(tokenizer, path)


def test_a_batch_of_samples_keeps_to_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    one = 2 * 2 * 2 * 8 * 20 * 4  # keys and values, 2 layers, 2 heads of 8, 20 tokens, float32
    assert plain.cache_bytes(model, 20) == one and plain.batch_samples(model, 20) == plain.BATCH_TOKENS // 20
    for limit, samples in ((10 * one, 10), (10 * one - 1, 9), (one - 1, 1)):
        monkeypatch.setattr(plain, "CACHE_BYTES", limit)
        assert plain.batch_samples(model, 20) == samples


def test_the_start_token_is_what_separates_documents(tokenizer: Any) -> None:
    assert corpus.start_token(tokenizer) == 0  # <|endoftext|>, though BOS is 1

    class Without:
        bos_token_id, eos_token_id = None, 7

        def get_vocab(self) -> dict[str, int]:
            return {}

        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": [9]}

    assert corpus.start_token(Without()) == 7
    Without.bos_token_id = 5  # type: ignore[assignment]
    assert corpus.start_token(Without()) == 5
    Without.bos_token_id = Without.eos_token_id = None  # type: ignore[assignment]
    with pytest.raises(TextError, match="neither"):
        corpus.start_token(Without())


def test_sampled_text_has_its_shape_and_its_seed(tokenizer: Any) -> None:
    model, steps = llama(), list[Step]()
    first = corpus.self_sampled(PlainWriter(model), tokenizer, 3, 12, 0, steps.append)
    assert first.shape == (3, 12) and first.dtype == torch.int64 and (first[:, 0] == 0).all()
    assert torch.equal(first, corpus.self_sampled(PlainWriter(model), tokenizer, 3, 12, 0))
    assert not torch.equal(first, corpus.self_sampled(PlainWriter(model), tokenizer, 3, 12, 1))
    assert len({tuple(row) for row in first.tolist()}) == 3
    assert steps[-1].done == steps[-1].total
    assert model.config._attn_implementation == "sdpa"  # as before


def test_batches_of_samples_are_all_filled(monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
    monkeypatch.setattr(plain, "BATCH_TOKENS", 20)
    ids = corpus.self_sampled(PlainWriter(llama()), tokenizer, 5, 10, 0)
    assert len({tuple(row) for row in ids.tolist()}) == 5


def test_a_sample_is_as_many_documents_as_it_takes(monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
    monkeypatch.setattr(corpus, "DOCUMENT_TOKENS", 8)
    shapes = {(3, 8): (3, 8), (3, 7): (3, 7), (3, 9): (6, 5), (2, 24): (6, 8), (2, 20): (6, 7)}
    assert {asked: corpus.documents(*asked) for asked in shapes} == shapes
    ids = corpus.documents_sampled(PlainWriter(llama()), tokenizer, 2, 20, 0)
    assert ids.shape == (2, 20) and (ids[:, ::7] == 0).all()
    assert len({tuple(row[at : at + 6]) for row in ids.tolist() for at in (0, 7, 14)}) == 6


def test_the_end_token_does_not_end_a_sample(tokenizer: Any) -> None:
    model = llama()
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[2] = 1e4 * torch.sign(model.model.norm.weight)
    model.generation_config.eos_token_id = 2
    assert corpus.self_sampled(PlainWriter(model), tokenizer, 2, 30, 0).shape == (2, 30)


def test_samples_follow_the_probabilities_of_the_model() -> None:
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.15, 0.05])
    logits, uniform = probabilities.log().expand(20000, 5), torch.rand(20000, 1, generator=torch.Generator())
    for temperature, expected in ((1.0, probabilities), (0.5, probabilities**2 / (probabilities**2).sum())):
        drawn = decoding.draw(logits, uniform, torch.full((20000, 1), temperature)).flatten()
        shares = torch.bincount(drawn, minlength=5) / 20000
        torch.testing.assert_close(shares, expected, atol=0.015, rtol=0)
        assert shares[1] == 0
    assert (decoding.draw(logits, uniform, torch.zeros(20000, 1)) == 0).all()


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2**-24])
def test_the_ends_of_the_unit_interval_draw_possible_tokens(uniform: float) -> None:
    logits = torch.tensor([[-float("inf"), 0.0, 0.0, -float("inf")]])
    drawn = decoding.draw(logits, torch.tensor([[uniform]]), torch.ones(1, 1))
    assert int(drawn) == (1 if uniform == 0 else 2)


def logits_one_by_one(model: nn.Module, ids: Tensor) -> Tensor:
    cache = decoding.roomy_cache(model, ids.shape[1])
    given = decoding.with_cache(model, cache)
    with torch.no_grad(), quick_attention(model):
        steps = [model(ids[:, i : i + 1], **given, use_cache=True).logits for i in range(ids.shape[1])]
    return torch.cat(steps, dim=1)


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_decoding_gives_the_logits_of_one_forward(key_heads: int) -> None:
    model = llama(num_key_value_heads=key_heads)
    ids = torch.randint(300, (3, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(ids).logits
    torch.testing.assert_close(logits_one_by_one(model, ids), whole, rtol=1e-4, atol=1e-5)


def test_decoding_past_a_sliding_window() -> None:
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=8,
        vocab_size=300,
        sliding_window=6,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        max_position_embeddings=64,
    )
    model = Gemma3ForCausalLM(config).eval()
    ids = torch.randint(300, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(ids).logits
    torch.testing.assert_close(logits_one_by_one(model, ids), whole, rtol=1e-4, atol=1e-5)


def test_a_window_longer_than_the_context(tokenizer: Any) -> None:
    with pytest.raises(InputError, match="length 65 exceeds the model's context of 64"):
        corpus.self_sampled(PlainWriter(llama()), tokenizer, 1, 65, 0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_model_that_gives_no_finite_logits_is_refused(tokenizer: Any, bad: float) -> None:
    model = llama()
    with torch.no_grad():
        model.model.norm.weight[0] = bad
    with pytest.raises(NonFiniteError, match="logits are NaN or infinite at position 0"):
        corpus.self_sampled(PlainWriter(model), tokenizer, 2, 8, 0)


@pytest.mark.demo
def test_the_demo_model_writes_words(demo_model_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(demo_model_folder, dtype="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(demo_model_folder)
    ids = corpus.self_sampled(PlainWriter(model), tokenizer, 4, 24, 0)
    with torch.no_grad():
        nll = nn.functional.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
    assert float(nll) < 6.5  # random ids would give more than 10.8


def test_a_tokenizer_that_does_not_work_is_refused_by_its_folder(tiny_model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_folder, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    for file, change in (("tokenizer_config.json", settings | {"model_max_length": "x"}), ("tokenizer.json", [])):
        (folder / file).write_text(json.dumps(change))
        with pytest.raises(ModelError, match=r"the tokenizer of .*model cannot be loaded \(.*take an intact copy"):
            corpus.load_tokenizer(folder)
