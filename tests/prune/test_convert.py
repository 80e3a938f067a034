"""From one form to another and back, byte for byte."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from twofour.prune import checkpoint
from twofour.prune.audit import check
from twofour.prune.convert import convert, from_bitmask
from twofour.prune.errors import CheckpointError
from twofour.serve.loading import load_model


def test_round_trip(tiny_pruned_folder: Path, tmp_path: Path) -> None:
    convert(tiny_pruned_folder, tmp_path / "zeros", "dense")
    convert(tmp_path / "zeros", tmp_path / "again", "packed")
    assert check(tmp_path / "zeros").ok and check(tmp_path / "again").ok
    with checkpoint.Weights(tiny_pruned_folder) as before, checkpoint.Weights(tmp_path / "again") as after:
        assert set(before) == set(after)
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_dense_form_is_plain_transformers_with_the_same_logits(tiny_pruned_folder: Path, tmp_path: Path) -> None:
    convert(tiny_pruned_folder, tmp_path / "zeros", "dense")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "zeros", dtype="auto")
    ours = load_model(str(tiny_pruned_folder), device="cpu", kernels="reference")
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(plain(ids).logits, ours(ids).logits)


def test_the_old_bitmask() -> None:
    weight = torch.tensor([[0, 1, 2, 0, 3, 0, 0, 4, 0, 5, 0, 6], [7, 0, 0, 8, 0, 9, 1, 0, 2, 0, 0, 3]]).float()
    bits = torch.zeros(2, 16, dtype=torch.int)
    bits[:, :12] = weight != 0
    bitmask = (bits.view(2, 2, 8) << torch.arange(8)).sum(-1).to(torch.uint8)
    compressed = weight[weight != 0].view(2, 6)
    assert torch.equal(from_bitmask(compressed, bitmask, torch.tensor([[2], [12]])), weight)
    with pytest.raises(CheckpointError, match="does not fit"):
        from_bitmask(compressed[:1], bitmask, torch.tensor([[2], [12]]))


def test_a_dense_model_has_nothing_to_pack(tiny_model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match='run "twofour prune"'):
        convert(tiny_model_folder, tmp_path / "out", "packed")
    assert not (tmp_path / "out").exists()
