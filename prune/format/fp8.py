"""Weights in FP8, read back: value times scale, a product in float32, rounded to bfloat16, to nearest even.

Two ways of storing them are known. `M.weight` [out, in] is float8_e4m3fn in both, and biases, norms and all that is not
quantised are as in any checkpoint.

quant_method           scales                 which weights share one
`fp8`                  `M.weight_scale_inv`   blocks, of 128x128 as a rule, the last ones smaller; or all of M
`compressed-tensors`   `M.weight_scale`       all of M, a row, or blocks

(`weight_scale_inv` is what a value is multiplied with, in spite of its name.) Scales of activations,
`M.activation_scale` and `M.input_scale`, belong to arithmetic in FP8 and have no place in the model read back.

Refused by name: all other quantisations, among them compressed-tensors of other types, and FP8 caches.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from twofour.prune.errors import CheckpointError, ModelError

DTYPE = "F8_E4M3"  # as safetensors names it
READ_AS = "BF16"
ROWS = 1024  # that are float32 at a time
SCALES: Mapping[str, str] = {"fp8": "weight_scale_inv", "compressed-tensors": "weight_scale"}  # by quant_method
ACTIVATIONS = ("activation_scale", "input_scale")
STRATEGIES = ("tensor", "channel", "block")  # of compressed-tensors

Block = tuple[int, int]  # rows and columns that share a scale


def quantization_of(config: Mapping[str, Any]) -> Any:
    """What a config.json says of quantisation, also where it says it of the text model; None if nothing."""
    text = config.get("text_config")
    inner = text.get("quantization_config") if isinstance(text, Mapping) else None
    return config.get("quantization_config") or inner or None


def method_of(config: Mapping[str, Any]) -> str | None:
    """Return the quant_method of an FP8 checkpoint; None where config.json names no quantisation.

    Raises ModelError, naming it, for any other.
    """
    quantization = quantization_of(config)
    if quantization is None:
        return None
    method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
    known = {"fp8": _is_plain_fp8, "compressed-tensors": _is_compressed_fp8}
    if isinstance(method, str) and method in known and known[method](quantization):
        return method
    said = quantization.get("format") if method == "compressed-tensors" else None
    named = ", ".join(filter(None, (str(method or "an unknown method"), said and str(said))))
    raise ModelError(f"the model is already quantised ({named}); give the unquantised original, or one in FP8")


def _is_plain_fp8(quantization: Mapping[str, Any]) -> bool:
    block = quantization.get("weight_block_size")
    return block is None or _block(block) is not None


def _is_compressed_fp8(quantization: Mapping[str, Any]) -> bool:
    groups = quantization.get("config_groups")
    if not isinstance(groups, Mapping) or not groups or quantization.get("kv_cache_scheme"):
        return False
    sparsity = quantization.get("sparsity_config") or {}
    is_sparse = not isinstance(sparsity, Mapping) or sparsity.get("format", "dense") != "dense"
    return not is_sparse and all(_is_fp8_group(group) for group in groups.values())


def _is_fp8_group(group: Any) -> bool:
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping) or weights.get("strategy") not in STRATEGIES:
        return False
    has_block = weights["strategy"] != "block" or _block(weights.get("block_structure")) is not None
    is_fp8 = weights.get("num_bits") == 8 and weights.get("type") == "float" and weights.get("symmetric", True) is True
    return is_fp8 and has_block and not group.get("output_activations")


def _block(stated: Any) -> Block | None:
    if (
        not isinstance(stated, Sequence)
        or len(stated) != 2
        or not all(type(size) is int and size > 0 for size in stated)
    ):
        return None
    return (stated[0], stated[1])


def blocks_of(config: Mapping[str, Any]) -> set[Block]:
    """The sizes of blocks that a config.json names; none where a scale is for whole weights or rows."""
    quantization = quantization_of(config)
    weights = [group["weights"] for group in quantization.get("config_groups", {}).values()]
    stated = [quantization.get("weight_block_size"), *(each.get("block_structure") for each in weights)]
    return {block for block in map(_block, stated) if block is not None}


def require_pairs(dtypes: Mapping[str, str], scales: Collection[str], part: str) -> None:
    """Raise CheckpointError unless exactly the weights in FP8 have a scale. dtypes: by name. part: of scales."""
    for name, dtype in dtypes.items():
        if dtype.startswith("F8_") and (dtype != DTYPE or not name.endswith(".weight")):
            raise CheckpointError(f"{name} is {dtype}, and only a weight in {DTYPE} is read back; give the original")
        if dtype == DTYPE and f"{name.removesuffix('weight')}{part}" not in scales:
            raise CheckpointError(f"{name} is in FP8 and has no {part}; take an intact copy of the model")
    for name in scales:
        weight = f"{name.removesuffix(part)}weight"
        if dtypes.get(weight) != DTYPE:
            raise CheckpointError(f"{name} is the scale of no weight in FP8; take an intact copy of the model")


def block_of(shape: tuple[int, ...], scales: tuple[int, ...], known: Collection[Block], name: str) -> Block:
    """Tell which weights share a scale, by the shapes of both. Raises CheckpointError where they do not fit."""
    if len(shape) == 2:
        rows, columns = shape
        if scales in ((), (1,), (1, 1)):
            return rows, columns
        if scales == (rows, 1) and not known:
            return 1, columns
        for block in known:
            if scales == (-(-rows // block[0]), -(-columns // block[1])):
                return block
    raise CheckpointError(f"{name} is {list(shape)}, its scales are {list(scales)}; take an intact copy of the model")


def dequantised(values: Tensor, scales: Tensor, block: Block, name: str) -> Tensor:  # [out, in] -> bfloat16 [out, in]
    """Read a weight back. Raises CheckpointError for scales that are no finite floats."""
    if scales.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise CheckpointError(f"the scales of {name} are {scales.dtype}; give a model whose scales are floats")
    if not bool(torch.isfinite(scales).all()):
        raise CheckpointError(f"a scale of {name} is not finite; take an intact copy of the model")
    (rows, columns), (high, wide) = values.shape, block
    grid = scales.float().reshape(-(-rows // high), -(-columns // wide))
    across = torch.arange(columns) // wide
    result = torch.empty(rows, columns, dtype=torch.bfloat16)
    for start in range(0, rows, ROWS):
        some = slice(start, min(start + ROWS, rows))
        down = torch.arange(some.start, some.stop) // high
        result[some] = values[some].float() * grid[down][:, across]
    return result


def note(method: str, blocks: Sequence[Block], known: Collection[Block]) -> str:
    """Say, for the label, that weights were read back. blocks: of each. known: those that config.json names."""
    shared = ", ".join(f"blocks of {high}x{wide}" for high, wide in sorted(set(known).intersection(blocks)))
    kind = f"{method}, {shared or 'a scale for each weight or row'}"
    return f"dequantised from FP8 ({kind}) to bfloat16: {len(blocks)} weights; activations are not quantised any more"
