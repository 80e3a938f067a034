"""Folders in and out: shards, forms, digests, and nothing half-written."""

import errno
import json
import resource
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import save_file

from twofour.prune.errors import CheckpointError, InputError, ModelError, OutputError
from twofour.prune.format import checkpoint, folder
from twofour.prune.format.checkpoint import Weights
from twofour.prune.format.dense_int8 import to_dense_int8
from twofour.prune.format.packed import Packed, pack
from twofour.prune.format.quantization import kind_of, quantization_config, require_known
from twofour.prune.format.rounding import to_int8
from twofour.prune.format.schemes import StoredWeight


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


def indexed(folder: Path, files: dict[str, list[str]], weight_map: dict[str, Any]) -> None:
    """Write files that hold the tensors named, each full of ones, and an index."""
    for file, names in files.items():
        save_file({name: torch.ones(2) for name in names}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_a_single_file_beside_an_index_of_others_is_refused(tmp_path: Path) -> None:
    indexed(tmp_path, {"model.safetensors": ["a"], "a.safetensors": ["a"]}, {"a": "a.safetensors"})
    with pytest.raises(CheckpointError, match=r"model\.safetensors and .*index\.json, which names other files; remove"):
        Weights(tmp_path)


def test_an_index_of_the_single_file_is_no_contradiction(tmp_path: Path) -> None:
    indexed(tmp_path, {"model.safetensors": ["a", "b"]}, dict.fromkeys("ab", "model.safetensors"))
    with Weights(tmp_path) as weights:
        assert set(weights) == {"a", "b"}


def test_shards_and_their_index_agree(tmp_path: Path) -> None:
    indexed(
        tmp_path, {"x.safetensors": ["a"], "y.safetensors": ["a", "b"]}, {"a": "x.safetensors", "b": "y.safetensors"}
    )
    with pytest.raises(CheckpointError, match=r"x\.safetensors and y\.safetensors both hold a"):
        Weights(tmp_path)
    indexed(tmp_path, {"x.safetensors": ["a", "c"]}, {"a": "x.safetensors"})
    with pytest.raises(CheckpointError, match=r"x\.safetensors holds c, which .*index\.json does not name"):
        Weights(tmp_path)


@pytest.mark.parametrize("file", [5, None, ["x.safetensors"], {}, "", "..", "\0", "x" * 300, "\ud800"])
def test_an_index_names_files_of_the_folder(tmp_path: Path, file: Any) -> None:
    indexed(tmp_path, {"x.safetensors": ["a"]}, {"a": file})
    with pytest.raises(CheckpointError, match="take an intact copy"):
        Weights(tmp_path)


@pytest.mark.parametrize("key", ["transformers_weights", "configuration_files"])
def test_a_config_that_sends_transformers_to_other_files_is_refused(tmp_path: Path, key: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({key: "other"}))
    with pytest.raises(CheckpointError, match=f"names {key}, by which transformers reads other files than twofour"):
        folder.read_config(tmp_path)


def test_a_folder_has_no_revision(tmp_path: Path) -> None:
    assert folder.resolve(str(tmp_path)) == tmp_path
    with pytest.raises(InputError, match="is a folder, which has no revision abc; leave out --revision"):
        folder.resolve(str(tmp_path), "abc")


def test_weights_of_a_hub_model_are_fetched_once() -> None:
    single, shard = "model.safetensors", "model-00001-of-00002.safetensors"
    packed = ["model.twofour.safetensors", "model.twofour-00001-of-00002.safetensors"]
    indexes = ["model.safetensors.index.json", "model.safetensors.index.twofour.json"]
    copies = ["consolidated.safetensors", "original/consolidated.00.safetensors", "model.fp16.safetensors", "model.bin"]
    fetched = filter_repo_objects([single, shard, *packed, *indexes, *copies], allow_patterns=folder.SNAPSHOT)
    assert list(fetched) == [single, shard, *packed, *indexes]


def test_a_folder_with_an_adapter_is_refused(tmp_path: Path) -> None:
    for name in ("config.json", "adapter_config.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=r"holds adapter_config\.json, .* merge them into it first"):
        folder.read_config(tmp_path)


def test_json_that_is_too_deep_or_no_json_again_is_refused(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        folder.read_json(tmp_path / "deep.json")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be written as JSON"):
        folder.write_json(tmp_path / "config.json", {"a": float("inf")})


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


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "is full; free some space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "none of your quota"),
        (OSError(errno.EFBIG, "File too large"), "ulimit -f"),
        (OSError(errno.EIO, "Input/output error"), "kernel's log"),
    ],
)
def test_a_full_disk_is_said(tmp_path: Path, fault: OSError, said: str) -> None:
    with pytest.raises(OutputError, match=said), folder.new_folder(tmp_path / "out"):
        raise fault
    with pytest.raises(OutputError, match="free, the result needs"):
        folder.require_space(tmp_path / "out", 1 << 60)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="limits of files")
def test_a_full_disk_is_known_by_the_words_of_safetensors(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, limits[1]))
    try:
        with pytest.raises(OutputError, match="ulimit -f"), folder.new_folder(tmp_path / "out") as part:
            save_file({"weight": torch.zeros(1 << 12)}, part / "model.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_existing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="exists already"), folder.new_folder(tmp_path / "out"):
        raise AssertionError("never reached")


def test_int8_values_are_stored_with_their_scales(tiny_int8_folder: Path) -> None:
    quantization = folder.read_config(tiny_int8_folder)["quantization_config"]
    columns = quantization["scale_columns"]
    assert quantization["values_dtype"] == "int8" and columns in (0, 64)
    with Weights(tiny_int8_folder) as weights:
        for name, width in (("self_attn.q_proj", 64), ("mlp.down_proj", 96)):
            parts = {part: weights[f"model.layers.1.{name}.{part}"] for part in ("values", "positions", "scales")}
            assert (parts["values"].dtype, parts["values"].shape) == (torch.int8, (64, width // 2))
            assert parts["positions"].shape == (64, width // 8)
            scales = 2 if columns and width > 64 else 1
            assert (parts["scales"].dtype, parts["scales"].shape) == (torch.float32, (64, scales))


def test_a_model_that_names_no_dtype_gets_one_beside_int8_values(tiny_model_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for path in tiny_model_folder.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    config = {key: value for key, value in folder.read_config(source).items() if key not in ("dtype", "torch_dtype")}
    folder.write_json(source / "config.json", config)
    name = "model.layers.0.mlp.up_proj"
    for values, dtype in ((torch.zeros(96, 64), None), (to_int8(pack(torch.zeros(96, 64))), "bfloat16")):
        out = tmp_path / str(dtype)
        out.mkdir()
        checkpoint.write_model(out, source, {name: values if isinstance(values, Packed) else pack(values)}, "packed")
        assert folder.read_config(out).get("dtype") == dtype


def known(**changes: Any) -> dict[str, Any]:
    base = {"quant_method": "twofour", "format_version": 1, "pattern": "2:4", "values_dtype": "int8"}
    return base | changes


@pytest.mark.parametrize(
    ("stored", "fault"),
    [
        (known(), "scale_columns None"),
        (known(scale_columns=32), "scale_columns 32"),
        (known(scale_columns="0"), "scale_columns '0'"),
        (known(values_dtype="bfloat16", scale_columns=64), "scale_columns 64"),
        (known(values_dtype="int4", scale_columns=0), "values_dtype 'int4'"),
        ({}, "quant_method None"),
    ],
)
def test_unknown_kinds_are_refused(stored: dict[str, Any], fault: str) -> None:
    with pytest.raises(CheckpointError, match=f"config.json says {fault}, known: .*; upgrade twofour"):
        require_known(stored)
    for good in (known(scale_columns=0), known(scale_columns=64), known(values_dtype="bfloat16")):
        require_known(good)


@pytest.mark.parametrize(
    ("weights", "fault"),
    [
        ([pack(torch.zeros(2, 4)), pack(torch.zeros(2, 4).half())], r"kinds, float16 \(scale_columns 0\), float32"),
        ([to_int8(pack(torch.zeros(2, 64)), columns) for columns in (0, 64)], "several kinds, int8 .*, int8"),
        ([pack(torch.zeros(2, 4).double())], "float64 .* cannot be stored"),
        ([torch.zeros(2, 4), to_dense_int8(torch.zeros(2, 4))], "no linear of the decoder blocks is 2:4"),
        ([to_int8(pack(torch.zeros(2, 64)), 8)], r"int8 \(scale_columns 8\) cannot be stored"),
    ],
)
def test_values_that_cannot_be_named_are_refused(weights: list[StoredWeight], fault: str) -> None:
    with pytest.raises(ModelError, match=fault):
        quantization_config({str(number): kind_of(weight) for number, weight in enumerate(weights)}, [])
