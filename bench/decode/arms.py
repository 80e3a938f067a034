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
CHOICES = {"weights": ("bf16", "f16", "q8_0", "q4_0"), "flash-attention": ("auto", "on", "off")}  # of llama.cpp
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
    _require_known(found["runtime"], options)
    return Arm(found["name"], found["runtime"], options, resolve(found["model"]))


def _require_known(runtime: str, options: Mapping[str, str]) -> None:
    known = known_options(runtime)
    for name, value in options.items():
        if name not in known:
            raise InputError(f"{runtime} has no option {name}; it has {', '.join(known)}")
        if value not in CHOICES.get(name, (value,)):
            raise InputError(f"{name}={value} is unknown; choose one of {', '.join(CHOICES[name])}")


def known_options(runtime: str) -> tuple[str, ...]:
    """Of our runners: what the engine is started with, as far as it says how weights are held."""
    if runtime in OURS:
        return tuple(_engine_options())
    return tuple(CHOICES) if runtime == LLAMA_CPP else ("dtype",)


def _engine_options() -> Iterator[str]:
    """The fields of EngineConfig that are names."""
    own = {"model", "revision", "device"}
    for field in fields(EngineConfig):
        if field.name not in own and field.type in (str, str | None):
            yield field.name.replace("_", "-")
