"""The environment in which vLLM's server starts."""

import os
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points

from twofour.prune.errors import InputError
from twofour.prune.machine import control_groups
from twofour.prune.machine.processors import usable_cores
from twofour.serve.openai.protocol import MAX_N, MAX_PROMPTS
from twofour.serve.vllm_edge import settings
from twofour.serve.vllm_edge.choice import is_for_cpus
from twofour.serve.vllm_edge.settings import Settings

PLUGINS = ("twofour", "twofour_edge")  # the general one, for 2:4 weights, and the endpoint's
OPT_IN = "vllm.endpoint_plugins"  # of these vLLM loads none that is not named
# Unless the user has said otherwise.
DEFAULTS: Mapping[str, str] = {
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_MAX_N_SEQUENCES": str(MAX_N),
    "VLLM_MAX_COMPLETION_PROMPTS": str(MAX_PROMPTS),
    "VLLM_CHAT_TEMPLATE_RENDER_TIMEOUT": "2",
    "VLLM_NO_USAGE_STATS": "1",
}
# Whatever the user has said: vLLM's server in Rust knows no middleware, so it would have no edge, and ask for no key.
HTTP = {"VLLM_USE_RUST_FRONTEND": "0"}


def environment(told: Settings, threads: int | None, current: Mapping[str, str] = os.environ) -> dict[str, str]:
    if current.get("VLLM_API_KEY"):
        raise InputError("VLLM_API_KEY is set, a key that vLLM asks for besides; unset it and give --api-key-file")
    allowed = ",".join(allow_list(current.get("VLLM_PLUGINS"), loaded_by_default()))
    own = {settings.VARIABLE: told.as_variable(), "VLLM_PLUGINS": allowed}
    return {**DEFAULTS, **within_quota(), **current, **bound_to(threads), **HTTP, **own}


def allow_list(given: str | None, default: Iterable[str]) -> list[str]:
    """One list is for plugins of all kinds: naming ours alone would shut out the user's."""
    named = default if given is None else filter(None, map(str.strip, given.split(",")))
    return list(dict.fromkeys((*named, *PLUGINS)))


def loaded_by_default() -> list[str]:
    """What vLLM loads where nobody has made a list."""
    found = entry_points()
    groups = [group for group in found.groups if group.startswith("vllm.") and group != OPT_IN]
    return sorted({entry.name for group in groups for entry in found.select(group=group)})


def within_quota() -> dict[str, str]:
    """vLLM on CPUs knows affinity alone: a thread for each core, also where the quota pays for few of them.

    Those few are bound to no core, for containers with quotas share all of them.
    """
    quota = control_groups.cpus()
    if quota is None or quota >= len(os.sched_getaffinity(0)) or not is_for_cpus():
        return {}
    return {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(usable_cores())}


def bound_to(threads: int | None) -> dict[str, str]:
    """vLLM on CPUs binds its threads to cores, one each, and leaves one core to itself unless told otherwise."""
    if threads is None:
        return {}
    if not is_for_cpus():
        raise InputError("--threads has no counterpart in vLLM on GPUs; leave it out")
    cores = sorted(os.sched_getaffinity(0))
    if threads > len(cores):
        raise InputError(f"vLLM gives each thread a core of its own; give --threads {len(cores)} at most")
    return {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores[:threads])), "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}
