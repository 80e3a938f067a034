"""Which processors a process may use."""

import os

from twofour.prune.machine import control_groups


def usable_cpus() -> list[int]:
    """The CPUs that this process may run on, but no more than its control group gives it time for."""
    has_affinity = hasattr(os, "sched_getaffinity")
    allowed = sorted(os.sched_getaffinity(0)) if has_affinity else list(range(os.cpu_count() or 1))
    quota = control_groups.cpus()
    return allowed if quota is None else allowed[: max(1, int(quota))]
