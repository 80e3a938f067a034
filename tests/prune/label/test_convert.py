"""From one form to another and back, byte for byte."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from twofour.prune.errors import CheckpointError
from twofour.prune.format import checkpoint, head
from twofour.prune.format.checkpoint import MANIFEST
from twofour.prune.format.folder import read_config, read_json, write_json
from twofour.prune.format.packed import Packed
from twofour.prune.label.check import check
from twofour.prune.label.convert import convert
from twofour.serve.model.loading import load_model


def require_same_tensors(one: Path, other: Path) -> None:
    with checkpoint.Weights(one) as before, checkpoint.Weights(other) as after:
        assert set(before) == set(after)
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_round_trip(tiny_pruned_folder: Path, tmp_path: Path) -> None:
    convert(tiny_pruned_folder, tmp_path / "zeros", "dense")
    convert(tmp_path / "zeros", tmp_path / "again", "packed")
    assert check(tmp_path / "zeros").ok and check(tmp_path / "again").ok
    require_same_tensors(tiny_pruned_folder, tmp_path / "again")


def packed_of(weights: checkpoint.Weights, name: str) -> Packed:
    columns = 64 if weights[f"{name}.scales"].shape[1] > 1 else 0
    return Packed(*(weights[f"{name}.{part}"] for part in ("values", "positions", "scales")), columns)


def test_int8_values_become_dense_in_the_dtype_of_the_model_and_not_int8_again(
    tiny_int8_folder: Path, tmp_path: Path
) -> None:
    convert(tiny_int8_folder, tmp_path / "zeros", "dense")
    convert(tmp_path / "zeros", tmp_path / "again", "packed")
    assert check(tmp_path / "zeros").ok and check(tmp_path / "again").ok
    assert read_config(tmp_path / "again")["quantization_config"]["values_dtype"] == "bfloat16"
    with (
        checkpoint.Weights(tiny_int8_folder) as before,
        checkpoint.Weights(tmp_path / "zeros") as dense,
        checkpoint.Weights(tmp_path / "again") as after,
    ):
        for name in before.bases():
            weight = dense[f"{name}.weight"]
            assert torch.equal(weight, packed_of(before, name).unpack().bfloat16())
            assert f"{name}.scales" not in after
            assert torch.equal(Packed(after[f"{name}.values"], after[f"{name}.positions"]).unpack(), weight)


def test_packed_int8_to_packed_is_the_same(tiny_int8_folder: Path, tmp_path: Path) -> None:
    convert(tiny_int8_folder, tmp_path / "again", "packed")
    assert check(tmp_path / "again").ok
    assert read_config(tmp_path / "again") == read_config(tiny_int8_folder)
    require_same_tensors(tiny_int8_folder, tmp_path / "again")


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")(torch.arange(40)[None]).logits
    return result


def test_a_head_in_int8_becomes_dense_and_tied_no_more(tiny_head_folder: Path, tmp_path: Path) -> None:
    convert(tiny_head_folder, tmp_path / "zeros", "dense")
    convert(tmp_path / "zeros", tmp_path / "again", "packed")
    with checkpoint.Weights(tiny_head_folder) as before, checkpoint.Weights(tmp_path / "zeros") as dense:
        expected = head.read(before)[1].unpack().bfloat16()
        assert torch.equal(dense["lm_head.weight"], expected)
        assert torch.equal(dense["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
        assert not [name for name in dense if name.startswith("lm_head.int8")]
    once = {"dtype": "int8", "scale_columns": 64}
    for out in ("zeros", "again"):
        assert check(tmp_path / out).ok and read_config(tmp_path / out)["tie_word_embeddings"] is False
        said = read_json(tmp_path / out / MANIFEST)
        assert said["lm_head"] == {"dtype": "bfloat16", "rounded_once_to": once}
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "zeros", dtype="auto")
    assert torch.equal(plain.lm_head.weight, expected)
    ours = load_model(str(tmp_path / "again"), device="cpu", kernels="reference")
    with torch.no_grad():
        assert torch.equal(ours(torch.arange(40)[None]).logits, logits(tmp_path / "zeros"))


def test_a_head_in_int8_packed_again_is_the_same(tiny_head_folder: Path, tmp_path: Path) -> None:
    convert(tiny_head_folder, tmp_path / "again", "packed")
    assert check(tmp_path / "again").ok
    assert read_config(tmp_path / "again") == read_config(tiny_head_folder)
    require_same_tensors(tiny_head_folder, tmp_path / "again")


def reconfigured(folder: Path, config: dict[str, Any]) -> None:
    """Change config.json, with digests that fit."""
    write_json(folder / "config.json", config)
    checkpoint.write_manifest(folder, read_json(folder / MANIFEST))


def test_the_label_says_that_values_were_int8(tiny_int8_folder: Path, tmp_path: Path) -> None:
    columns = read_config(tiny_int8_folder)["quantization_config"]["scale_columns"]
    int8 = {"dtype": "int8", "scale_columns": columns}
    write_json(tiny_int8_folder / MANIFEST, read_json(tiny_int8_folder / MANIFEST) | {"values": int8})
    convert(tiny_int8_folder, tmp_path / "same", "packed")
    convert(tiny_int8_folder, tmp_path / "zeros", "dense")
    convert(tmp_path / "zeros", tmp_path / "again", "packed")
    assert read_json(tmp_path / "same" / MANIFEST)["values"] == int8
    for out in ("zeros", "again"):
        now = {"dtype": "bfloat16", "rounded_once_to": int8}
        assert read_json(tmp_path / out / MANIFEST)["values"] == now and check(tmp_path / out).ok


def test_damage_gets_no_new_digests(tiny_pruned_folder: Path, tmp_path: Path) -> None:
    path = tiny_pruned_folder / "model.twofour.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"is not what twofour wrote: model\.twofour\.safetensors differs"):
        convert(tiny_pruned_folder, tmp_path / "out", "dense")
    assert not (tmp_path / "out").exists()


def test_int8_values_do_not_tell_the_dtype_of_the_model(tiny_int8_folder: Path, tmp_path: Path) -> None:
    config = {key: value for key, value in read_config(tiny_int8_folder).items() if key != "dtype"}
    for changed in (config, config | {"dtype": "int32"}):
        reconfigured(tiny_int8_folder, changed)
        with pytest.raises(CheckpointError, match=r"config\.json names no dtype of the model"):
            convert(tiny_int8_folder, tmp_path / "zeros", "dense")
        assert any("config.json names no dtype" in fault for fault in check(tiny_int8_folder).faults)
    reconfigured(tiny_int8_folder, config | {"torch_dtype": "bfloat16"})  # as it was called before
    convert(tiny_int8_folder, tmp_path / "zeros", "dense")


def test_a_packed_folder_of_an_unknown_kind_is_refused(tiny_pruned_folder: Path, tmp_path: Path) -> None:
    config = read_config(tiny_pruned_folder)
    for quantization in ({}, config["quantization_config"] | {"format_version": 2}):
        reconfigured(tiny_pruned_folder, config | {"quantization_config": quantization})
        with pytest.raises(CheckpointError, match=r"config\.json says"):
            convert(tiny_pruned_folder, tmp_path / "out", "dense")


def test_dense_form_is_plain_transformers_with_the_same_logits(tiny_pruned_folder: Path, tmp_path: Path) -> None:
    convert(tiny_pruned_folder, tmp_path / "zeros", "dense")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "zeros", dtype="auto")
    ours = load_model(str(tiny_pruned_folder), device="cpu", kernels="reference")
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(plain(ids).logits, ours(ids).logits)


def test_a_dense_model_has_nothing_to_pack(tiny_model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match='run "twofour prune"'):
        convert(tiny_model_folder, tmp_path / "out", "packed")
    assert not (tmp_path / "out").exists()
