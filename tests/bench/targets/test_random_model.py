"""Models of random weights: the shape that was asked for, whole, in both forms, and words that are tokens."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from twofour import prune
from twofour.bench.load import workload
from twofour.bench.targets import random_model, shapes
from twofour.bench.targets.shapes import SHAPES, DecoderShape
from twofour.prune.errors import OutputError
from twofour.prune.format.checkpoint import Weights
from twofour.prune.progress import silent

SMALL = DecoderShape(64, 96, 2, 4, 2, 1024, 10_000.0, tied=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("random")


@pytest.fixture(scope="module")
def made(folder: Path) -> tuple[Path, Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SHAPES, "small", SMALL)
        return random_model.pair("small", folder, silent)


def test_weights_are_normal_in_the_shape_and_the_head_is_tied(made: tuple[Path, Path]) -> None:
    with Weights(made[0]) as stored:
        assert "lm_head.weight" not in stored
        embedding = stored["model.embed_tokens.weight"]
        assert embedding.shape == (1024, 64) and embedding.dtype == torch.bfloat16
        assert embedding.float().std().item() == pytest.approx(0.02, rel=0.02)
        assert torch.equal(stored["model.norm.weight"], torch.ones(64, dtype=torch.bfloat16))
        linears: dict[tuple[int, ...], int] = {}
        for name in stored:
            if name.endswith("proj.weight"):
                shape = tuple(stored[name].shape)
                linears[shape] = linears.get(shape, 0) + 1
        assert linears == SMALL.linears()
        assert sum(stored[name].nbytes for name in stored) == random_model.dense_bytes(SMALL)


def test_the_2of4_form_is_its_own_pruned(made: tuple[Path, Path]) -> None:
    assert prune.check(made[1]).ok
    q = "model.layers.0.self_attn.q_proj"
    with Weights(made[0]) as dense, Weights(made[1]) as sparse:
        assert sum(sparse[name].nbytes for name in sparse) == random_model.sparse_bytes(SMALL)
        kept = prune.Packed(sparse[f"{q}.values"], sparse[f"{q}.positions"]).unpack()
        assert torch.equal(kept, torch.where(kept != 0, dense[f"{q}.weight"], 0))


def test_every_word_of_the_load_is_one_token(made: tuple[Path, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made[1])
    request = workload.schedule(1, workload.Lengths(64), workload.Lengths(8), seed=0)[0]
    prompt = workload.marked(request, "nonce")
    ids = tokenizer(prompt)["input_ids"]
    assert len(ids) == 64 and tokenizer.decode(ids) == prompt
    assert len(tokenizer) == 1024 and all(tokenizer.decode([number]) for number in (1, 800, 1023))


def test_what_is_there_is_reused(made: tuple[Path, Path], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "small", SMALL)
    monkeypatch.setattr(random_model, "make", lambda *_: pytest.fail("made again"))
    monkeypatch.setattr(prune, "prune", lambda *_: pytest.fail("pruned again"))
    assert random_model.pair("small", folder, silent) == made


def test_a_seed_gives_the_same_weights(made: tuple[Path, Path], tmp_path: Path) -> None:
    random_model.make(SMALL, tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (made[0] / "model.safetensors").read_bytes()


def test_a_full_disk_is_refused_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(SHAPES, "vast", replace(SMALL, intermediate=2**40))
    with pytest.raises(OutputError, match="free some space"):
        random_model.pair("vast", tmp_path / "models", silent)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "millions"), [("smollm2-135m", 134.5), ("llama-3.2-1b", 1235.8), ("llama-3.1-8b", 8030.3)]
)
def test_published_sizes(name: str, millions: float) -> None:
    assert random_model.dense_bytes(shapes.named(name)) / 2e6 == pytest.approx(millions, abs=0.05)
