"""lm_head found in its folder: tied or not, under the names that models have, or refused before any work."""

from pathlib import Path

import pytest
import torch
from pruned_families import FAMILIES, tiny
from safetensors.torch import load_file, save_file
from torch import nn

from twofour.prune.errors import ModelError
from twofour.prune.format import dense_int8
from twofour.prune.format.head import Head
from twofour.prune.model.head import added_bytes, find, int8_bytes, is_tied, shape_of


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_found_in_every_family(family: str, tied: bool, tmp_path: Path) -> None:
    model = tiny(family, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    head = find(model, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert torch.equal(stored[head.source], model.lm_head.weight)
    assert head.shape == (101, 32) == shape_of(model) and head.tied == tied == is_tied(model)
    assert head.name == ("embed_out" if family == "gpt_neox" and not tied else "lm_head")
    assert dense_int8.int8_bytes(*head.shape) == int8_bytes(model) == 101 * (32 + 4)
    assert added_bytes(model) == int8_bytes(model) - (0 if tied else 4 * 101 * 32)


def test_a_tied_head_that_is_stored_all_the_same_is_its_own(tmp_path: Path) -> None:
    model = tiny("llama", tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    save_file(stored | {"lm_head.weight": stored["model.embed_tokens.weight"].clone()}, tmp_path / "model.safetensors")
    assert find(model, tmp_path) == Head("lm_head", "lm_head.weight", (101, 32))


def test_a_model_without_a_linear_for_its_head_is_refused(tmp_path: Path) -> None:
    model = tiny("llama")
    model.save_pretrained(tmp_path)
    for head in (nn.Sequential(model.lm_head), None):
        model.lm_head = head
        with pytest.raises(ModelError, match=r"LlamaForCausalLM has no linear lm_head .*; leave out --lm-head"):
            find(model, tmp_path)
        assert shape_of(model) is None


def test_columns_that_8_does_not_divide_are_refused(tmp_path: Path) -> None:
    model = tiny("llama", hidden_size=36, head_dim=8)
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="lm_head has 36 columns, which 8 does not divide; leave out --lm-head"):
        find(model, tmp_path)


def test_a_head_that_is_stored_under_another_name_is_refused(tmp_path: Path) -> None:
    for tied in (True, False):
        model = tiny("llama", tie_word_embeddings=tied)
        save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(ModelError, match="stores the weight of lm_head under no name that is known; load it"):
            find(model, tmp_path)
