"""One server as it was measured, which is all that a plan knows of it: an option that can be bought.

A profile is a document of kind twofour.bench.profile. `twofour bench profile` writes it.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from twofour.bench import envelope
from twofour.bench.capacity.hull import Hull
from twofour.bench.capacity.step_model import StepModel
from twofour.prune.errors import InputError

KIND = "twofour.bench.profile"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class EngineLimits:
    """How an engine batches."""

    max_num_seqs: int
    max_num_batched_tokens: int
    kv_blocks: int
    block_size: int
    context_length: int
    piece: int = 0  # as of serve's scheduler: tokens that are computed together; 0: all of a step
    prefix_cache: bool = True
    shares_output: bool = True  # blocks with sampled tokens are found again, too
    policy: str = "twofour"  # or "vllm": whose scheduler it is


@dataclass(frozen=True)
class Around:
    """What passes beside the steps, in seconds."""

    first_s: float  # from the sending of a request to the engine, and from its first token to the client
    between_s: float  # from the end of a step to the beginning of the next, while there is work


@dataclass(frozen=True)
class Replica:
    """What the simulator needs to know of a server."""

    limits: EngineLimits
    steps: StepModel
    around: Around
    # Measured over predicted seconds of a step, as quantiles: equally likely.
    residuals: Annotated[Sequence[float], Field(min_length=1)] = (1.0,)


@dataclass(frozen=True)
class Hashes:
    """What tells two profiles apart, as SHA-256 in hex. Equal hashes: the same thing was measured."""

    model: str
    engine: str
    hardware: str
    settings: str


@dataclass(frozen=True)
class Profile:
    """None: not known. `source`: the engine's step log, the client's view alone, or no measurement (an estimate)."""

    name: str
    model: str
    replica: Replica
    hull: Hull  # the steps that were measured: beyond them, a plan extrapolates
    source: Literal["steps", "client", "estimate"] = "steps"
    draws: Sequence[StepModel] = ()  # of the bootstrap: equally likely; empty: no uncertainty is known
    error: float | None = None  # by how much the fit misses a step on average, as a share of what it predicts
    valid: bool = True
    failed: Sequence[str] = ()  # why it is not valid
    quality_loss: float | None = None  # of the model against the dense one, as its label states it; 0.05 is 5 %
    sparse: bool | None = None  # whether the linears are 2:4
    weight_bits: int | None = None  # of a value of the linears
    weight_bytes: int | None = None
    hashes: Hashes | None = None
    started: str | None = None  # when, ISO 8601 with its zone
    minutes: float | None = None  # that the measurement took
    cut_off: bool = False
    notes: Sequence[str] = field(default_factory=tuple)


def document(profile: Profile, about: dict[str, Any]) -> dict[str, Any]:
    """about: what it was made by and on, of bench.hardware."""
    return {"kind": KIND, "schema_version": SCHEMA_VERSION} | asdict(profile) | about


def of_document(said: Any, name: str) -> Profile:
    """name: what errors call it. Raises InputError."""
    known = envelope.checked(said, name)
    if known["kind"] != KIND:
        raise InputError(f"{name} is a {known['kind']}, no profile; give what twofour bench profile wrote")
    if known["schema_version"] != SCHEMA_VERSION:
        raise InputError(f"{name} has version {known['schema_version']}, not {SCHEMA_VERSION}; measure it again")
    try:
        return TypeAdapter(Profile).validate_python(known)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise InputError(f"{name} is no profile ({where}: {first['msg']}); measure it again") from None


def read(path: Path) -> Profile:
    """Raises InputError."""
    try:
        return of_document(json.loads(path.read_text()), str(path))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}); give what twofour bench profile wrote") from None
