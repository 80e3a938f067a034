"""The memory that a machine has for an engine: in all, and free now.

The first decides how large the cache is, so that the same flags on the same machine give the same cache at every start,
whatever files were read before. The second decides only whether there is enough for it. Both are within the control
groups of this process, of version 2 or 1. Memory in which they keep files counts as free: the system gives it back.
"""

from dataclasses import dataclass

import torch

from twofour.prune.machine import available, control_groups

GPU_OWN = 1 << 30  # bytes of a GPU for the driver, the code of kernels and their work space


@dataclass(frozen=True)
class Memory:
    """Bytes of one device."""

    beside_weights: int  # all but the weights
    free: int  # now, the weights loaded


def memory_of(device: torch.device, weight_bytes: int) -> Memory:
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what loading no longer needs
        free, total = torch.cuda.mem_get_info(device)
        return Memory(total - GPU_OWN - weight_bytes, free)
    return Memory(cpu_bytes() - weight_bytes, available.free_bytes())


def cpu_bytes() -> int:
    """All memory of the machine, or less, if the control groups of this process have a limit."""
    return min([available.installed_bytes(), *(each.limit for each in control_groups.memory())])
