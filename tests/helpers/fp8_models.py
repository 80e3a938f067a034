"""Copies of a dense folder in FP8, by the formulas of the two formats: scale = max |w| / 448 of all that share it."""

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from twofour.prune.format.folder import read_config, write_json

LARGEST = 448.0  # of float8_e4m3fn
GROUP = {"targets": ["Linear"], "output_activations": None}


def compressed(strategy: str, **more: Any) -> dict[str, Any]:
    """quantization_config as compressed-tensors writes it."""
    inputs = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": strategy != "tensor"}
    weights = {"num_bits": 8, "type": "float", "strategy": strategy, "symmetric": True, "dynamic": False, **more}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": GROUP | {"weights": weights, "input_activations": inputs}},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
    }


def plain(block: list[int] | None) -> dict[str, Any]:
    """quantization_config as transformers' FineGrainedFP8 writes it, dynamic with blocks and static without."""
    scheme = "dynamic" if block else "static"
    return {"quant_method": "fp8", "activation_scheme": scheme, "weight_block_size": block, "fmt": "e4m3"}


# quantization_config, name of the scales, rows and columns that share one (0: all), their dtype, scale of activations
FORMATS: dict[str, tuple[dict[str, Any], str, tuple[int, int], torch.dtype, str | None]] = {
    "fp8 blocks": (plain([32, 16]), "weight_scale_inv", (32, 16), torch.float32, None),
    "fp8 blocks that do not fit": (plain([40, 24]), "weight_scale_inv", (40, 24), torch.float32, None),
    "fp8 tensor": (plain(None), "weight_scale_inv", (0, 0), torch.float32, "activation_scale"),
    "compressed tensor": (compressed("tensor"), "weight_scale", (0, 0), torch.float32, "input_scale"),
    "compressed channel": (compressed("channel"), "weight_scale", (1, 0), torch.bfloat16, None),
    "compressed blocks": (
        compressed("block", block_structure=[32, 16]),
        *("weight_scale", (32, 16), torch.float32, None),
    ),
}


def quantised(weight: Tensor, share: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Values [out, in], scales, and in float32 what they mean, one block after the other."""
    (rows, columns), (high, wide) = weight.shape, share
    high, wide = high or rows, wide or columns
    scales = torch.zeros(-(-rows // high), -(-columns // wide), dtype=dtype)
    values = torch.zeros(rows, columns, dtype=torch.float8_e4m3fn)
    meant = torch.zeros(rows, columns)
    for row in range(scales.shape[0]):
        for column in range(scales.shape[1]):
            place = (slice(row * high, (row + 1) * high), slice(column * wide, (column + 1) * wide))
            scales[row, column] = weight[place].float().abs().max() / LARGEST
            scale = float(scales[row, column])
            values[place] = (weight[place].float() / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
            meant[place] = values[place].float() * scale
    return values, scales, meant


def in_fp8(source: Path, out: Path, kind: str) -> dict[str, Tensor]:
    """Copy a folder with its linears `*_proj` in FP8. Returns what these mean, in bfloat16."""
    quantization, part, share, dtype, activation = FORMATS[kind]
    shutil.copytree(source, out)
    tensors, meant = load_file(out / "model.safetensors"), dict[str, Tensor]()
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        base = name.removesuffix("weight")
        values, scales, exact = quantised(tensors[name], share, dtype)
        if share == (0, 0):  # of all weights: a scalar, or one in a list
            scales = scales[0, 0] if quantization["quant_method"] == "fp8" else scales[0]
        tensors[name], tensors[base + part] = values, scales.clone()
        meant[name] = exact.bfloat16()
        if activation:
            tensors[base + activation] = torch.tensor(0.5)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    write_json(out / "config.json", read_config(out) | {"quantization_config": quantization})
    return meant
