"""Who takes part: a name, a runtime with its options, and a model folder."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from twofour.prune.errors import InputError
from twofour.prune.format.folder import resolve
from twofour.serve.engine.types import EngineConfig

OURS, TRANSFORMERS, LLAMA_CPP = ("fused", "generic"), "transformers", "llama.cpp"
RUNTIMES = (*OURS, TRANSFORMERS, LLAMA_CPP)
WEIGHTS = ("bf16", "f16", "q8_0", "q4_0")  # of llama.cpp
GIVEN = "NAME=RUNTIME[,OPTION=VALUE...]:MODEL"
_ARM = re.compile(r"(?P<name>[^=]+)=(?P<runtime>[^,:]+)(?P<options>(,[^,:=]+=[^,:]*)*):(?P<model>.+)")


@dataclass(frozen=True)
class Arm:
    name: str
    runtime: str  # one of RUNTIMES
    options: Mapping[str, str]
    model: Path  # a folder


def read_arms(texts: Sequence[str]) -> list[Arm]:
    """Raises InputError for one that cannot be understood, or a name that is given twice."""
    arms = [_read(text) for text in texts]
    names = [arm.name for arm in arms]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"the name {twice[0]} is given twice; give each arm its own")
    return arms


def _read(text: str) -> Arm:
    found = _ARM.fullmatch(text)
    if not found:
        raise InputError(f"{text} is no arm; give {GIVEN}")
    if found["runtime"] not in RUNTIMES:
        raise InputError(f"no runtime is named {found['runtime']!r}; choose one of {', '.join(RUNTIMES)}")
    options = dict(option.split("=", 1) for option in found["options"].split(",") if option)
    if unknown := sorted(options.keys() - set(known_options(found["runtime"]))):
        known = ", ".join(known_options(found["runtime"])) or "none"
        raise InputError(f"{found['runtime']} has no option {unknown[0]}; it has {known}")
    if options.get("weights", WEIGHTS[0]) not in WEIGHTS:
        raise InputError(f"weights={options['weights']} is unknown; choose one of {', '.join(WEIGHTS)}")
    return Arm(found["name"], found["runtime"], options, resolve(found["model"]))


def known_options(runtime: str) -> tuple[str, ...]:
    """Of our runners: what the engine is started with, as far as it says how weights are held."""
    if runtime in OURS:
        return tuple(_engine_options())
    return {LLAMA_CPP: ("weights", "flash-attention"), TRANSFORMERS: ("dtype",)}[runtime]


def _engine_options() -> Iterator[str]:
    """The fields of EngineConfig that are names."""
    own = {"model", "revision", "device"}
    for field in fields(EngineConfig):
        if field.name not in own and field.type in (str, str | None):
            yield field.name.replace("_", "-")
