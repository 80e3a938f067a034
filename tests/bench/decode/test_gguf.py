"""What is written as GGUF is the model: every weight is there, in its place, as exact as its format allows."""

import os
from pathlib import Path

import gguf as reading
import numpy as np
import pytest
import torch

from twofour.bench.decode import gguf
from twofour.prune.errors import InputError, ModelError
from twofour.prune.format.weights import Weights


def read(file: Path) -> dict[str, np.ndarray]:
    return {t.name: reading.dequantize(t.data, t.tensor_type) for t in reading.GGUFReader(file).tensors}


def test_every_weight_is_there(tiny_model_folder: Path, tmp_path: Path) -> None:
    file = gguf.made(tiny_model_folder, "bf16", tmp_path)
    assert file.name == "tiny-bf16.gguf" and len(gguf.digest(file)) == 64
    found = read(file)
    with Weights(tiny_model_folder) as weights:
        assert {gguf.name_of(name) for name in weights if name != "lm_head.weight"} == found.keys()
        down = weights["model.layers.1.mlp.down_proj.weight"].float().numpy()
        assert np.array_equal(found["blk.1.ffn_down.weight"], down)
        linears = sum(w.nbytes for name, w in weights.items() if w.ndim == 2 and name != "lm_head.weight")
    assert gguf.weight_bytes(file) == linears


def test_rows_of_queries_and_keys_change_places(tiny_model_folder: Path, tmp_path: Path) -> None:
    """Of a head of 16: row 1 is what is rotated with row 0, and that is transformers' row 8."""
    found = read(gguf.made(tiny_model_folder, "bf16", tmp_path))["blk.0.attn_k.weight"]
    with Weights(tiny_model_folder) as weights:
        keys = weights["model.layers.0.self_attn.k_proj.weight"].float().numpy()
    assert np.array_equal(found[[0, 1, 2, 16, 17]], keys[[0, 8, 1, 16, 24]])


@pytest.mark.parametrize(("weights", "error"), [("q8_0", 0.01), ("q4_0", 0.15)])
def test_a_format_of_few_bits_is_near(tiny_float32_folder: Path, tmp_path: Path, weights: str, error: float) -> None:
    file = gguf.made(tiny_float32_folder, weights, tmp_path)
    found = torch.from_numpy(read(file)["blk.0.ffn_up.weight"].copy())
    with Weights(tiny_float32_folder) as tensors:
        true = tensors["model.layers.0.mlp.up_proj.weight"]
        assert 0 < (found - true).norm() / true.norm() < error
        counted = [t for name, t in tensors.items() if t.ndim == 2 and name != "model.embed_tokens.weight"]
    bits = {"q8_0": 8.5, "q4_0": 4.5}[weights]
    assert gguf.weight_bytes(file) == sum(t.numel() for t in counted) * bits / 8  # a head of its own, no embedding


def test_a_file_is_kept_until_the_model_changes(tiny_float32_folder: Path, tmp_path: Path) -> None:
    file = gguf.made(tiny_float32_folder, "bf16", tmp_path)
    written = file.stat().st_mtime_ns
    assert gguf.made(tiny_float32_folder, "bf16", tmp_path).stat().st_mtime_ns == written
    os.utime(file, (1, 1))
    assert gguf.made(tiny_float32_folder, "bf16", tmp_path).stat().st_mtime > 1
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_packed_model_is_refused(tiny_pruned_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is packed, which llama\.cpp cannot read; give it the dense model"):
        gguf.made(tiny_pruned_folder, "bf16", tmp_path)


def test_weights_without_a_place_are_refused() -> None:
    with pytest.raises(ModelError, match=r"no place for model.layers.0.self_attn.q_proj.bias"):
        gguf.name_of("model.layers.0.self_attn.q_proj.bias")
