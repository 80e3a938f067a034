"""What a pruning run is asked to do, and the manifest that says what it did."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from twofour.prune import provenance
from twofour.prune.errors import InputError, TextError

Method = Literal["sparsegpt", "refine", "wanda", "magnitude"]
Preset = Literal["fast", "balanced", "best"]
Train = Literal["auto", "model", "blocks"]
Format = Literal["packed", "dense"]
Values = Literal["model", "int8"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]

SELF, CHAT, HUB = "self", "chat", "hub:"
DEFAULT_PRESET: Preset = "balanced"


class Stages(NamedTuple):
    """What is done with every block, and with the whole: passes over the text in which kept weights are trained.

    samples: of the text, where no other number is asked for.
    """

    solver: Method
    block_passes: int = 0
    model_passes: int = 0
    samples: int = 64

    @property
    def trains(self) -> bool:
        """Whether kept weights are trained at all."""
        return self.block_passes + self.model_passes > 0

    def by_blocks(self) -> "Stages":
        """The same with the blocks trained one by one instead of the whole: in less memory, to a greater loss."""
        return self._replace(block_passes=self.block_passes + self.model_passes, model_passes=0)


PRESETS: Mapping[Preset, Stages] = {
    "fast": Stages("sparsegpt"),
    "balanced": Stages("refine", block_passes=1, model_passes=1),
    "best": Stages("refine", block_passes=1, model_passes=4, samples=256),
}


@dataclass(frozen=True)
class PruneConfig:
    """How to prune. Raises InputError, naming the field, on a value that makes no sense.

    preset: by time and memory; without a method, None is "balanced".
    method: the solver by name instead of a preset, without recovery.
    train: kept weights with all others of the model, or block by block; "auto" is the model where memory allows it.
    blocks_as_begun: blocks are trained no longer than they are before the whole; set where a run that was to train the
        whole goes on without that.
    calibration: a source or several, which share the samples evenly, see `sources`; magnitude ignores it.
    samples x length: the tokens to calibrate on; without a number of samples, that of the preset.
    values: kept weights are stored in the dtype of the model, or as int8 with a scale for each row (packed only).
    damping: added to the diagonal of a Hessian, as a fraction of its mean.
    dtype: what calibration forwards run in; "auto" is the dtype of the model. Statistics and solvers are float32.
    device: where one block at a time is worked on, and the whole model where it is sampled from or distilled; else the
        model is in the memory of the host.
    memory_limit_bytes: of the host; None is all that is free. What would exceed it: hidden states go to disk, which
        changes nothing; then "auto" trains block by block; then the run is refused.
    """

    preset: Preset | None = None
    method: Method | None = None
    train: Train = "auto"
    calibration: str | tuple[str, ...] = SELF
    samples: int | None = None
    length: int = 512
    seed: int = 0
    format: Format = "packed"
    values: Values = "model"
    damping: float = 0.01
    block_columns: int = 128
    dtype: Precision = "auto"
    device: str = "cpu"
    memory_limit_bytes: int | None = None
    revision: str | None = None
    blocks_as_begun: bool = False

    def __post_init__(self) -> None:
        if self.preset and self.method:
            raise InputError(f"preset {self.preset} and method {self.method} exclude each other; give one of them")
        literals = {
            "preset": Preset,
            "method": Method,
            "train": Train,
            "format": Format,
            "values": Values,
            "dtype": Precision,
        }
        for name, choices in literals.items():
            known = (*get_args(choices), getattr(type(self), name))  # a default may be None
            _require(getattr(self, name) in known, self, name, f"one of {', '.join(get_args(choices))}")
        dense = 'model with the format dense, or take packed and then "twofour convert --to dense"'
        _require(self.values == "model" or self.format == "packed", self, "values", dense)
        _require(self.samples is None or self.samples >= 1, self, "samples", "at least 1")
        _require(self.length >= 2, self, "length", "at least 2")
        _require(0 <= self.seed < 2**63, self, "seed", "between 0 and 2^63 - 1")
        limit = self.memory_limit_bytes
        _require(limit is None or limit > 0, self, "memory_limit_bytes", "a positive number, or None")
        _require(0 < self.damping < float("inf"), self, "damping", "a positive number")
        columns_fit = self.block_columns > 0 and self.block_columns % 4 == 0
        _require(columns_fit, self, "block_columns", "a positive multiple of 4")
        kinds = f"{SELF}, {CHAT}, a text file or {HUB}OWNER/NAME, each once"
        once = len(set(self.sources)) == len(self.sources) > 0
        _require(once and all(self.sources), self, "calibration", kinds)
        every = f"at least {len(self.sources)}: one of each source"
        _require(self.text_samples >= len(self.sources), self, "samples", every)
        _require(
            self.text_samples >= 2 or not self.stages.trains,
            self,
            "samples",
            "at least 2: one to train on, one to validate on",
        )

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources of the calibration text."""
        return (self.calibration,) if isinstance(self.calibration, str) else self.calibration

    @property
    def text_samples(self) -> int:
        """How many samples the calibration text has."""
        return self.stages.samples if self.samples is None else self.samples

    @property
    def text_tokens(self) -> int:
        """How many tokens the calibration text has."""
        return self.text_samples * self.length

    @property
    def shares(self) -> dict[str, int]:
        """The samples of each source: equally many, and what is left over for the first."""
        each, rest = divmod(self.text_samples, len(self.sources))
        return {source: each + (rest if source == self.sources[0] else 0) for source in self.sources}

    @property
    def chosen(self) -> Preset | None:
        """The preset; None where a method was asked for instead."""
        return None if self.method else self.preset or DEFAULT_PRESET

    @property
    def stages(self) -> Stages:
        """What the preset does; a method asked for by name trains nothing."""
        if self.method:
            return Stages(self.method)
        stages = PRESETS[self.preset or DEFAULT_PRESET]
        if self.train != "blocks":
            return stages
        return stages._replace(model_passes=0) if self.blocks_as_begun else stages.by_blocks()


def _require(fits: bool, config: PruneConfig, name: str, wanted: str) -> None:
    if not fits:
        raise InputError(f"{name} is {getattr(config, name)!r}; give {wanted}")


@dataclass(frozen=True)
class PrunedLinear:
    """What is known of one pruned linear. `loss` is relative, see `loss_kind` of the manifest.

    It is that of the values as they are stored, rounding to int8 too, but before kept weights were trained.
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


def manifest(
    model: str,
    config: PruneConfig,
    origin: Mapping[str, Any],
    linears: Mapping[str, PrunedLinear],
    dense: Mapping[str, str],  # the linears left dense, and why
    stored_dtype: str,  # of the linears in the base model
    forward_dtype: str,
    threads: int,
    seconds: float,
    recovery: Mapping[str, Any] | None = None,
    fallbacks: Sequence[str] = (),
    digests: Mapping[str, str] | None = None,  # of the files among the sources, see `file_digests`
    bos: str | None = None,  # which windows of files and data sets begin with, see `windows`
) -> dict[str, Any]:
    """Make the manifest of a run."""
    return {
        "format_version": 1,
        "pattern": "2:4",
        "base_model": model if config.revision is None else f"{model}@{config.revision}",
        "origin": dict(origin),
        "preset": config.chosen,
        "method": config.stages.solver,
        "values": _values(config, stored_dtype),
        "calibration": _calibration(config, digests or {}, bos),
        "solver": _solver(config),
        "loss_kind": LOSS_KINDS[config.stages.solver] + ("" if recovery is None else ", before recovery"),
        "linears": {name: asdict(linear) for name, linear in linears.items()},
        "recovery": recovery,
        "dense": dict(dense),
        "fallbacks": list(fallbacks),  # what else cannot be done as asked is refused
        "forward_dtype": forward_dtype,
        "machine": provenance.machine(config.device, threads),
        "versions": provenance.versions(),
        "minutes": round(seconds / 60, 3),
        "peak_memory_bytes": provenance.peak_memory_bytes(),
    }


def _values(config: PruneConfig, stored_dtype: str) -> dict[str, Any]:
    """How the kept weights were rounded. scale_columns 0: one scale for each row."""
    return {"dtype": stored_dtype} if config.values == "model" else {"dtype": "int8", "scale_columns": 0}


def file_digests(config: PruneConfig) -> dict[str, str]:
    """SHA-256 of each file that is calibrated on, by its source. Raises TextError, naming it, where one is not read."""
    if config.stages.solver == "magnitude":
        return {}
    return {
        source: _sha256(source)
        for source in config.sources
        if source not in (SELF, CHAT) and not source.startswith(HUB)
    }


def _sha256(source: str) -> str:
    try:
        with open(source, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise TextError(f"{source} cannot be read ({error.strerror}); give a text file") from error


def _calibration(config: PruneConfig, digests: Mapping[str, str], bos: str | None) -> dict[str, Any] | None:
    if config.stages.solver == "magnitude":
        return None
    return {
        "sources": [
            {"source": _named(source), "samples": samples}
            | ({"sha256": digests[source]} if source in digests else {})
            | ({"begins_with": bos} if bos and source not in (SELF, CHAT) else {})
            for source, samples in config.shares.items()
        ],
        "samples": config.text_samples,
        "length": config.length,
        "tokens": config.text_tokens,
        "seed": config.seed,
    }


def _named(source: str) -> str:
    """The name of a source for others to read: the folders of this machine are nobody's business."""
    name = source.removeprefix(HUB)
    is_public = source in (SELF, CHAT) or (name != source and not name.startswith(("/", ".")))
    return source if is_public else Path(name).name


def _solver(config: PruneConfig) -> dict[str, Any]:
    if config.stages.solver not in ("sparsegpt", "refine"):
        return {}
    return {"damping": config.damping, "block_columns": config.block_columns}
