"""How long a context the engine serves and how many tokens its cache holds."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from twofour.prune.errors import InputError, ModelError
from twofour.serve.engine.types import EngineConfig

# The cache's share of the memory that the weights leave free; a CPU's memory is shared with everybody else.
CPU_SHARE, GPU_SHARE = 0.125, 0.8
# These rotary positions change for every sequence once one of the batch is longer than this field says.
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
    """The longest sequence for which the model is right whatever else is in the batch."""
    positions: int | None = getattr(model_config, "max_position_embeddings", None)
    if positions is None:
        raise ModelError("config.json has no max_position_embeddings; add it")
    rope = getattr(model_config, "rope_parameters", None) or {}
    if not (name := LENGTH_DEPENDENT.get(rope.get("rope_type", "default"))):
        return positions
    unscaled = rope.get(name) or getattr(model_config, name, None) or positions
    return min(positions, int(unscaled))


def decide(config: EngineConfig, limit: int, bytes_per_token: int, free_bytes: int, share: float) -> Capacity:
    """Fit the cache into a share of the free memory; where one full context needs more, into half of it."""
    if config.max_model_len is not None and config.max_model_len > limit:
        raise InputError(f"max_model_len {config.max_model_len} is over the model's own {limit}; lower it")
    wanted, size = config.max_model_len or limit, config.block_size
    block_bytes = bytes_per_token * size
    blocks = -(-(config.kv_tokens or config.max_num_seqs * wanted) // size)
    if not config.kv_tokens:
        one_context = min(-(-wanted // size), int(free_bytes / 2 // block_bytes))
        blocks = min(blocks, max(one_context, int(share * free_bytes // block_bytes)))
    context = min(wanted, blocks * size)
    if context < (config.max_model_len or 2):
        raise InputError(
            f"a context of {wanted} tokens does not fit: the cache holds {blocks * size} of them at "
            f"{bytes_per_token} bytes each, with {free_bytes} bytes of memory free; lower max_model_len"
        )
    return Capacity(context, blocks * size, tuple(_notes(context, limit, config.max_model_len)))


def _notes(context: int, limit: int, asked: int | None) -> list[str]:
    if asked is None and context < limit:
        return [f"the context is limited to {context} of the model's {limit} tokens by memory"]
    return []


def free_gpu_bytes(device: torch.device) -> int:
    """What the device has left once torch has given back what loading no longer needs."""
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def free_cpu_bytes() -> int:
    """Memory that can be had without swapping, in this control group."""
    lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # no control group, or one without a limit
        free.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return min(free, default=4 << 30)
