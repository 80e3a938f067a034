"""The memory that a machine has for an engine: what it could have, and what is free of it now.

The first decides how large the cache is, so that the same flags on the same machine give the same cache at every start,
whatever files were read before. The second decides only whether that can be had. Both within the control groups of this
process, of version 2 or 1; what they keep of files is free, since it is given up where memory is asked for.
"""

from dataclasses import dataclass

import torch

from twofour.prune.machine import available, control_groups

GPU_OWN = 1 << 30  # of a GPU's memory, for the driver, the code of kernels and what they work in


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
    """All the memory of the machine, or what the control groups of this process may have of it."""
    return min([available.installed_bytes(), *(each.limit for each in control_groups.memory())])
