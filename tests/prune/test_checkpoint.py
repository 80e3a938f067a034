"""Folders in and out: shards, forms, digests, and nothing half-written."""

import json
from pathlib import Path

import pytest
import torch

from twofour.prune import checkpoint, folder
from twofour.prune.checkpoint import Weights
from twofour.prune.errors import CheckpointError, OutputError


def test_shards_and_index_round_trip(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.full((10,), float(i)) for i in range(5)}
    checkpoint.write_weights(tmp_path, tensors.items(), "packed", shard_bytes=80)
    names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert names == [f"model.twofour-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]
    with Weights(tmp_path) as weights:
        assert weights.form == "packed"
        assert {name: weights[name].tolist() for name in weights} == {k: v.tolist() for k, v in tensors.items()}


def test_missing_shard_is_named(tmp_path: Path) -> None:
    checkpoint.write_weights(tmp_path, [("a", torch.ones(10)), ("b", torch.ones(10))], "dense", shard_bytes=40)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks the shard model-00002-of-00002\.safetensors"):
        Weights(tmp_path)


def test_index_cannot_leave_the_folder(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "../secret.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="outside the folder"):
        Weights(tmp_path)


def test_two_forms_are_refused(tiny_pruned_folder: Path, tiny_model_folder: Path) -> None:
    (tiny_pruned_folder / "model.safetensors").write_bytes((tiny_model_folder / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="both packed and dense"):
        checkpoint.form_of(tiny_pruned_folder)


def test_everything_else_is_carried_over(tiny_pruned_folder: Path, tiny_model_folder: Path) -> None:
    with Weights(tiny_model_folder) as dense, Weights(tiny_pruned_folder) as packed:
        for name in dense:
            if not name.endswith("proj.weight"):
                assert torch.equal(dense[name], packed[name])
    assert (tiny_pruned_folder / "tokenizer.json").read_bytes() == (tiny_model_folder / "tokenizer.json").read_bytes()
    quantization = folder.read_config(tiny_pruned_folder)["quantization_config"]
    assert (quantization["quant_method"], quantization["pattern"]) == ("twofour", "2:4")
    assert set(quantization["ignore"]) == {"lm_head", "model.embed_tokens"}


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), folder.new_folder(tmp_path / "out") as part:
        (part / "file").write_text("half")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is full; free some space"), folder.new_folder(tmp_path / "out"):
        raise OSError(28, "No space left on device")
    with pytest.raises(OutputError, match="free, the result needs"):
        folder.require_space(tmp_path / "out", 1 << 60)
    assert list(tmp_path.iterdir()) == []


def test_existing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="exists already"), folder.new_folder(tmp_path / "out"):
        raise AssertionError("never reached")
