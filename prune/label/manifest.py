"""The manifest, twofour.json: what a pruning run was asked to do, and what it did."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from twofour.prune.config import CHAT, HUB, SELF, Method, PruneConfig, file_of, without_folders, writes
from twofour.prune.errors import TextError
from twofour.prune.format.dense_int8 import RUN
from twofour.prune.format.head import Head
from twofour.prune.format.quantization import HEAD_VERSION, MIXED_VERSION, PLAIN_VERSION, value_dtype
from twofour.prune.format.schemes import Scheme, scheme_bytes
from twofour.prune.machine import provenance
from twofour.prune.recovery.training import Recovery


@dataclass(frozen=True)
class PrunedLinear:
    """What is known of one pruned linear. `loss` is relative, see `loss_kind` of the manifest.

    It is that of the values as they are stored, rounded to int8 if so, but before kept weights were trained.
    """

    shape: tuple[int, int]
    loss: float
    tokens: int


OUTPUT_LOSS = (
    "squared error of the outputs over the calibration tokens (an expert's with those that its statistic is drawn "
    "towards), relative to the dense outputs"
)
LOSS_KINDS: Mapping[Method, str] = {
    "sparsegpt": OUTPUT_LOSS,
    "refine": OUTPUT_LOSS,
    "wanda": "squared error of the outputs, inputs taken for uncorrelated, relative to the dense outputs",
    "magnitude": "squared error of the weights, relative to the dense weights",
}


@dataclass(frozen=True)
class Text:
    """What the config does not say of the calibration text.

    digests: of the files among the sources, see `file_digests`.
    bos: the token that windows of files and data sets begin with, see `text.windows`; None: they begin with their text.
    """

    digests: Mapping[str, str] = field(default_factory=dict)
    bos: str | None = None


@dataclass(frozen=True)
class Result:
    """What a run made of a model, its linears by the names they are stored under.

    linears: those that are 2:4. dense: those left dense, and why. stored_dtype: of the linears in the base model.
    schemes, shapes: of all linears of the decoder blocks. policy: why they have those, where that was chosen.
    head: lm_head, where it is int8.
    fallbacks: what was done otherwise than asked; the run refuses all other things that it cannot do as asked.
    sources: what was found out of the sources of the text when it was written or read.
    """

    linears: Mapping[str, PrunedLinear]
    dense: Mapping[str, str]
    stored_dtype: str
    forward_dtype: str
    recovery: Recovery | None = None
    fallbacks: Sequence[str] = ()
    head: Head | None = None
    schemes: Mapping[str, Scheme] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    policy: Mapping[str, Any] | None = None
    sources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def manifest(
    model: str, origin: Mapping[str, Any], config: PruneConfig, text: Text, result: Result, threads: int, seconds: float
) -> dict[str, Any]:
    """Make the manifest of a run."""
    recovery = result.recovery
    return {
        "format_version": _version(result),
        "pattern": "2:4",
        "base_model": model if config.revision is None else f"{model}@{config.revision}",
        "origin": dict(origin),
        "preset": config.chosen,
        "method": config.stages.solver,
        "values": _values(config, result),
        "lm_head": _head(result.head) if result.head else None,
        "calibration": _calibration(config, text, result.sources),
        "solver": _solver(config),
        "loss_kind": LOSS_KINDS[config.stages.solver] + ("" if recovery is None else ", before recovery"),
        "linears": {name: asdict(linear) for name, linear in result.linears.items()},
        "schemes": dict(result.schemes),
        "shares": shares(result.schemes, result.shapes, value_dtype(result.stored_dtype)),
        "policy": result.policy and dict(result.policy),
        "recovery": None if recovery is None else recovery.as_dict(),
        "dense": dict(result.dense),
        "fallbacks": list(result.fallbacks),
        "forward_dtype": result.forward_dtype,
        "machine": provenance.machine(config.device, threads),
        "versions": provenance.versions(),
        "minutes": round(seconds / 60, 3),
        "peak_memory_bytes": provenance.peak_memory_bytes(),
    }


def _version(result: Result) -> int:
    schemes = set(result.schemes.values()) - {"dense"}
    return MIXED_VERSION if len(schemes) > 1 else HEAD_VERSION if result.head else PLAIN_VERSION


def shares(
    schemes: Mapping[str, Scheme], shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, scale_columns: int = 0
) -> dict[str, dict[str, int]]:
    """Of each scheme in the decoder blocks the number of linears, of weights, and the bytes of these where packed."""
    found: dict[str, dict[str, int]] = {}
    for name, scheme in schemes.items():
        rows, columns = shapes[name]
        share = found.setdefault(scheme, {"linears": 0, "weights": 0, "bytes": 0})
        share["linears"] += 1
        share["weights"] += rows * columns
        share["bytes"] += scheme_bytes(scheme, rows, columns, dtype, scale_columns)
    return found


def _values(config: PruneConfig, result: Result) -> dict[str, Any]:
    """How the kept weights were rounded, but those that are named apart. scale_columns 0: one scale for each row."""
    chosen = set(result.schemes.values())
    is_int8 = config.values == "int8" or ("2:4-int8" in chosen and "2:4" not in chosen)
    return {"dtype": "int8", "scale_columns": 0} if is_int8 else {"dtype": result.stored_dtype}


def _head(head: Head) -> dict[str, Any]:
    """How lm_head was rounded. tied: to the embeddings, beside which it is stored now."""
    return {"dtype": "int8", "scale_columns": RUN, "shape": list(head.shape), "tied": head.tied}


def file_digests(config: PruneConfig) -> dict[str, str]:
    """SHA-256 of each file that is calibrated on, by its source. Raises TextError where one cannot be read."""
    if not config.stages.needs_text:
        return {}
    return {source: _sha256(file) for source in config.sources if (file := file_of(source)) is not None}


def _sha256(name: str) -> str:
    try:
        with open(name, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise TextError(f"{name} cannot be read ({error.strerror}); give a text file") from error


def _calibration(config: PruneConfig, text: Text, about: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    if not config.stages.needs_text:
        return None
    return {
        "sources": [
            {"source": _named(source), "samples": samples}
            | ({"sha256": text.digests[source]} if source in text.digests else {})
            | ({"begins_with": text.bos} if text.bos and not writes(source) else {})
            | dict(about.get(source, {}))
            for source, samples in config.shares.items()
        ],
        "samples": config.text_samples,
        "length": config.length,
        "tokens": config.text_tokens,
        "seed": config.seed,
    }


def _named(source: str) -> str:
    """The name of a source for others to read, without the folders of this machine."""
    name = source.removeprefix(HUB)
    is_public = source in (SELF, CHAT) or (name != source and not name.startswith(("/", ".")))
    return source if is_public else without_folders(name)


def _solver(config: PruneConfig) -> dict[str, Any]:
    if config.stages.solver not in ("sparsegpt", "refine"):
        return {}
    return {"damping": config.damping, "block_columns": config.block_columns}
