"""What a pruning run is asked to do."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from twofour.prune.errors import InputError
from twofour.prune.format import Format

Method = Literal["sparsegpt", "refine", "wanda", "magnitude"]
Preset = Literal["fast", "balanced", "best"]
Train = Literal["auto", "model", "blocks"]
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
    def needs_text(self) -> bool:
        """Whether the solver looks at anything but the weights."""
        return self.solver != "magnitude"

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
