"""Which processors a process may use."""

import os
from collections.abc import Sequence
from pathlib import Path

from twofour.prune.machine import control_groups

CPUS = Path("/sys/devices/system/cpu")


def usable_cpus(system: Path = CPUS) -> list[int]:
    """The CPUs that this process may run on, one of each core first; as many as its control group gives it time for."""
    has_affinity = hasattr(os, "sched_getaffinity")
    allowed = sorted(os.sched_getaffinity(0)) if has_affinity else list(range(os.cpu_count() or 1))
    first = _one_of_each_core(allowed, system)
    ordered = [*first, *(cpu for cpu in allowed if cpu not in first)]
    quota = control_groups.cpus()
    return ordered if quota is None else ordered[: max(1, int(quota))]


def usable_cores(system: Path = CPUS) -> int:
    """How many cores the usable CPUs are of: two hardware threads of one core share what multiplies."""
    return len(_one_of_each_core(usable_cpus(system), system))


def _one_of_each_core(cpus: Sequence[int], system: Path) -> list[int]:
    cores = dict[str, int]()
    for cpu in cpus:
        cores.setdefault(_core(cpu, system), cpu)
    return list(cores.values())


def _core(cpu: int, system: Path) -> str:
    """Its hardware threads, as "0,4"; where the system does not tell, each CPU counts as a core."""
    try:
        return (system / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)
