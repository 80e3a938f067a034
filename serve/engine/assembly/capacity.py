"""How long a context the engine serves and how many tokens its cache holds."""

from dataclasses import dataclass
from typing import Any

from twofour.prune.errors import InputError, ModelError
from twofour.serve.engine.assembly.memory import Memory
from twofour.serve.engine.types import EngineConfig

# The share of the cache in the memory beside the weights. The memory of a CPU is shared with other programs.
CPU_SHARE, GPU_SHARE = 0.125, 0.8
# With these rotary positions, one sequence longer than the field says changes all sequences of its batch.
LENGTH_DEPENDENT = {
    "longrope": "original_max_position_embeddings",
    "dynamic": "max_position_embeddings",
}


@dataclass(frozen=True)
class Capacity:
    """What was decided, and what a user must know about it."""

    context_length: int
    kv_tokens: int  # a whole number of blocks
    notes: tuple[str, ...] = ()


def context_limit(model_config: Any) -> int:
    """The longest sequence that the model computes correctly, whatever else is in the batch."""
    positions: int | None = getattr(model_config, "max_position_embeddings", None)
    if positions is None:
        raise ModelError("config.json has no max_position_embeddings; add it")
    rope = getattr(model_config, "rope_parameters", None) or {}
    if not (name := LENGTH_DEPENDENT.get(rope.get("rope_type", "default"))):
        return positions
    unscaled = rope.get(name) or getattr(model_config, name, None) or positions
    return min(positions, int(unscaled))


def decide(config: EngineConfig, limit: int, bytes_per_token: int, memory: Memory, share: float) -> Capacity:
    """Fit the cache into a share of the memory beside the weights; if one full context needs more, into half of it.

    What is free now does not change the size: if it is too little, InputError.
    """
    if config.max_model_len is not None and config.max_model_len > limit:
        raise InputError(f"max_model_len {config.max_model_len} is over the model's own {limit}; lower it")
    wanted, size = config.max_model_len or limit, config.block_size
    block_bytes = bytes_per_token * size
    blocks = -(-(config.kv_tokens or config.max_num_seqs * wanted) // size)
    if not config.kv_tokens:
        one_context = min(-(-wanted // size), int(memory.beside_weights / 2 // block_bytes))
        blocks = min(blocks, max(one_context, int(share * memory.beside_weights // block_bytes)))
    context = min(wanted, blocks * size)
    if context < (config.max_model_len or 2):
        raise InputError(
            f"a context of {wanted} tokens does not fit: the cache holds {blocks * size} of them at "
            f"{bytes_per_token} bytes each, with {memory.beside_weights} bytes of memory beside the weights; "
            "lower max_model_len"
        )
    if blocks * block_bytes > memory.free:
        raise InputError(
            f"a cache of {blocks * size} tokens takes {blocks * block_bytes} bytes, and {memory.free} are free; "
            "free memory, or lower max_model_len or max_num_seqs"
        )
    return Capacity(context, blocks * size, tuple(_notes(context, limit, config.max_model_len)))


def _notes(context: int, limit: int, asked: int | None) -> list[str]:
    if asked is None and context < limit:
        return [f"the context is limited to {context} of the model's {limit} tokens by memory"]
    return []
