"""lm_head in int8 in a folder: what is stored, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from twofour.prune.errors import CheckpointError, NonFiniteError
from twofour.prune.format import dense_int8, head
from twofour.prune.format.dense_int8 import to_dense_int8
from twofour.prune.format.head import Head
from twofour.prune.format.weights import Weights


def weights(folder: Path, tensors: dict[str, Tensor]) -> Weights:
    save_file(tensors, folder / "model.safetensors")
    return Weights(folder)


@pytest.mark.parametrize(("name", "source"), [("lm_head", "embed.weight"), ("embed_out", "embed_out.weight")])
def test_what_is_stored_is_read_again(tmp_path: Path, name: str, source: str) -> None:
    weight, ours = torch.randn(8, 72).bfloat16(), Head(name, source, (8, 72))
    with weights(tmp_path, {source: weight}) as dense:
        stored = dict(ours.rounded(dense))
    assert stored.keys() == {f"{name}.int8_values", f"{name}.int8_scales"} and ours.tied == (name == "lm_head")
    assert sum(tensor.nbytes for tensor in stored.values()) == dense_int8.int8_bytes(*ours.shape)
    with weights(tmp_path, stored) as packed:
        assert packed.bases() == []  # no reader takes them for a 2:4 weight
        found, read = head.read(packed)
    expected = to_dense_int8(weight)
    assert found == name and torch.equal(read.values, expected.values) and torch.equal(read.scales, expected.scales)


def stored() -> dict[str, Tensor]:
    packed = to_dense_int8(torch.randn(8, 72))
    return {"lm_head.int8_values": packed.values, "lm_head.int8_scales": packed.scales}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("lm_head.int8_scales"), r"lm_head\.int8_scales is missing; take an intact copy"),
        (lambda t: t.pop("lm_head.int8_values"), r"lm_head\.int8_values is missing; take an intact copy"),
        (lambda t: t.update({"lm_head.weight": torch.ones(8, 72)}), r"stored twice, in int8 and as lm_head\.weight;"),
        (lambda t: t.update({"embed_out.weight": torch.ones(8, 72)}), "stored twice, in int8 and as embed_out"),
        (lambda t: t["lm_head.int8_scales"].fill_(torch.nan), "lm_head has the scale nan at row 0, number 0"),
        (lambda t: t["lm_head.int8_values"].fill_(-128), "lm_head has the value -128 at row 0, column 0"),
    ],
)
def test_damage_is_named(tmp_path: Path, change: Callable[[dict[str, Tensor]], Any], words: str) -> None:
    tensors = stored()
    change(tensors)
    with weights(tmp_path, tensors) as damaged, pytest.raises(CheckpointError, match=words):
        head.read(damaged)


def test_nothing_is_stored_under_another_name(tmp_path: Path) -> None:
    assert head.stored_name(["lm_head.weight", "lm_head.values", "x.int8_values"]) is None
    assert head.stored_name(["lm_head.int8_scales"]) == "lm_head"
    with (
        weights(tmp_path, {"a": torch.ones(1)}) as empty,
        pytest.raises(CheckpointError, match=r"lm_head\.int8_values"),
    ):
        head.read(empty)


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path) -> None:
    tied, weight = Head("lm_head", "embed.weight", (8, 72)), torch.full((8, 72), torch.inf)
    with (
        weights(tmp_path, {"embed.weight": weight}) as dense,
        pytest.raises(NonFiniteError, match=r"^embed\.weight holds"),
    ):
        dict(tied.rounded(dense))
