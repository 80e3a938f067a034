"""What a pruning run is asked to do."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from twofour.prune.errors import InputError
from twofour.prune.format import Format

Method = Literal["sparsegpt", "refine", "wanda", "magnitude"]
Preset = Literal["fast", "balanced", "best"]
Train = Literal["auto", "model", "blocks"]
Values = Literal["model", "int8"]
BudgetFor = Literal["bytes", "decode", "prefill"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]

SELF, CHAT, BEGUN, HUB = "self", "chat", "self:", "hub:"  # BEGUN, HUB: before a name
CHAT_WEIGHT = 1.0  # of the samples that any other source has, so many are conversations that the model writes
DEFAULT_PRESET: Preset = "balanced"
JUDGED_TOKENS = 6144  # on which mixtures are judged, about: the divergence is known to a few per cent then


class Stages(NamedTuple):
    """The solver of every block, and how many times training goes through the text: each block, then the whole model.

    samples: of the text, unless another number is asked for.
    tokens, minutes: of a stream of fresh text that the whole model is trained on instead.
    """

    solver: Method
    block_passes: int = 0
    model_passes: int = 0
    samples: int = 64
    tokens: int = 0
    minutes: float = 0.0

    @property
    def needs_text(self) -> bool:
        """Whether the solver looks at anything but the weights."""
        return self.solver != "magnitude"

    @property
    def trains(self) -> bool:
        """Whether kept weights are trained at all."""
        return self.follows_dense or self.streams

    @property
    def follows_dense(self) -> bool:
        """Whether training needs the states of the dense model on the calibration text."""
        return self.block_passes + self.model_passes > 0

    @property
    def streams(self) -> bool:
        """Whether the whole model is trained on fresh text."""
        return self.tokens > 0 or self.minutes > 0

    @property
    def trains_whole(self) -> bool:
        """Whether the whole model is trained."""
        return self.model_passes > 0 or self.streams

    def by_blocks(self) -> "Stages":
        """The same, but all training is of single blocks, on the calibration text: less memory, a greater loss."""
        passes = self.block_passes + (self.model_passes or int(self.streams))
        return self._replace(block_passes=passes).without_whole()

    def without_whole(self) -> "Stages":
        """The same, but the whole model is not trained."""
        return self._replace(model_passes=0, tokens=0, minutes=0.0)


PRESETS: Mapping[Preset, Stages] = {
    "fast": Stages("sparsegpt"),
    "balanced": Stages("refine", block_passes=1, model_passes=1, samples=128),
    "best": Stages("refine", block_passes=1, model_passes=4, samples=256),
}


@dataclass(frozen=True)
class PruneConfig:
    """How to prune. Raises InputError, naming the field, on a value that makes no sense.

    preset: None is "balanced", unless a method is given.
    method: a solver by name instead of a preset; kept weights are not trained then.
    train: all kept weights of the model together, or block by block; "auto" is the model where memory allows it.
    blocks_as_begun: with train "blocks", train blocks only as long as if the model were trained after them; set where
        a run that was begun to train the model goes on without that.
    tokens, minutes: train the whole model on so much fresh text of the same sources, or for so long, instead of going
        through the calibration text again; at most one of them.
    lean: in the training of the whole, hold moments in 8 bits; set where memory asks for it. recompute: compute blocks
        again on the way back, likewise, which changes no bit.
    calibration: a source or several, which share the samples, see `text.sources`; magnitude ignores it. None is text
        that the model writes, with conversations where it is one for them.
    samples x length: the tokens to calibrate on; without a number of samples, that of the preset.
    values: kept weights are stored in the dtype of the model, or as int8 with a scale for each row (packed only). None
        is the former, or with a budget whichever is best, of each linear.
    lm_head: the same for lm_head, which stays dense; as int8 it has a scale for each 64 columns (packed only).
    keep_dense: patterns, as `fnmatch` has them, of names of linears in the decoder blocks; what one of them names stays
        dense, with those that have the same input.
    keep_dense_values: those stay in the dtype of the model, or become int8 with a scale for each 64 columns (packed
        only).
    budget, max_kl: of the linears of the decoder blocks, so many stay dense that they cost at most this share of the
        dense ones, or that the divergence from the dense model is at most this before kept weights are trained.
    frontier: several budgets, for `run.frontier`.
    budget_for: what they cost: bytes, or seconds of a token (decode) or of a prompt (prefill).
    card: the GPU whose seconds are estimated; None: they are measured here.
    damping: added to the diagonal of a Hessian, as a fraction of its mean.
    dtype: what calibration forwards run in; "auto" is the dtype of the model. Statistics and solvers are float32.
    device: where the block in work is, and the whole model while it writes text or is distilled; at all other times the
        model is in the memory of the host.
    memory_limit_bytes: of the host; None is all that is free. A run that needs more puts hidden states on disk, which
        changes no result; if that is not enough, "auto" trains block by block; else the run is refused.
    """

    preset: Preset | None = None
    method: Method | None = None
    train: Train = "auto"
    calibration: str | tuple[str, ...] | None = None
    samples: int | None = None
    length: int = 512
    seed: int = 0
    format: Format = "packed"
    values: Values | None = None
    lm_head: Values = "model"
    keep_dense: tuple[str, ...] = ()
    keep_dense_values: Values = "model"
    budget: float | None = None
    max_kl: float | None = None
    frontier: tuple[float, ...] = ()
    budget_for: BudgetFor = "bytes"
    card: str | None = None
    damping: float = 0.01
    block_columns: int = 128
    dtype: Precision = "auto"
    device: str = "cpu"
    memory_limit_bytes: int | None = None
    revision: str | None = None
    blocks_as_begun: bool = False
    tokens: int | None = None
    minutes: float | None = None
    lean: bool = False
    recompute: bool = False

    def __post_init__(self) -> None:
        if self.preset and self.method:
            raise InputError(f"preset {self.preset} and method {self.method} exclude each other; give one of them")
        self._require_choices()
        self._require_numbers()
        self._require_text()
        self._require_budget()

    def _require_choices(self) -> None:
        literals = {
            "preset": Preset,
            "method": Method,
            "train": Train,
            "format": Format,
            "values": Values,
            "lm_head": Values,
            "keep_dense_values": Values,
            "budget_for": BudgetFor,
            "dtype": Precision,
        }
        for name, choices in literals.items():
            known = (*get_args(choices), getattr(type(self), name))  # a default may be None
            _require(getattr(self, name) in known, self, name, f"one of {', '.join(get_args(choices))}")
        dense = 'model with the format dense, or take packed and then "twofour convert --to dense"'
        for name in ("values", "lm_head", "keep_dense_values"):
            _require(getattr(self, name) != "int8" or self.format == "packed", self, name, dense)
        has_kept = bool(self.keep_dense) or self.keep_dense_values == "model"
        _require(has_kept, self, "keep_dense_values", "model, or keep_dense with it: nothing is kept dense")

    def _require_numbers(self) -> None:
        _require(self.samples is None or self.samples >= 1, self, "samples", "at least 1")
        _require(self.length >= 2, self, "length", "at least 2")
        _require(0 <= self.seed < 2**63, self, "seed", "between 0 and 2^63 - 1")
        _require(self.tokens is None or self.tokens >= self.length, self, "tokens", "at least those of a sample")
        minutes = self.minutes
        _require(minutes is None or 0 < minutes < float("inf"), self, "minutes", "a positive number")
        if self.tokens and self.minutes:
            raise InputError("tokens and minutes exclude each other; give one of them")
        fits = not self.stages.streams or self.stages.needs_text
        _require(fits, self, "method", "one that reads text, which a stream is made of")
        limit = self.memory_limit_bytes
        _require(limit is None or limit > 0, self, "memory_limit_bytes", "a positive number, or None")
        _require(0 < self.damping < float("inf"), self, "damping", "a positive number")
        columns_fit = self.block_columns > 0 and self.block_columns % 4 == 0
        _require(columns_fit, self, "block_columns", "a positive multiple of 4")

    def _require_text(self) -> None:
        kinds = f"{SELF}, {CHAT}, a text file, {BEGUN}FILE or {HUB}OWNER/NAME, each once"
        once = len(set(self.sources)) == len(self.sources) > 0
        _require(once and all(self.sources), self, "calibration", kinds)
        every = f"at least {len(self.sources)}: one of each source"
        _require(self.text_samples >= len(self.sources), self, "samples", every)
        enough = self.text_samples >= 2 or not self.stages.follows_dense
        _require(enough, self, "samples", "at least 2: one to train on, one to validate on")

    def _require_budget(self) -> None:
        asked = [name for name in ("budget", "max_kl", "frontier") if getattr(self, name) not in (None, ())]
        if len(asked) > 1:
            raise InputError(f"{' and '.join(asked)} exclude each other; give one of them")
        for name in asked:
            values = self.frontier if name == "frontier" else (getattr(self, name),)
            _require(all(0 < value < float("inf") for value in values), self, name, "a positive number")
        once = len(set(self.frontier)) == len(self.frontier)
        _require(once, self, "frontier", "budgets, each once")
        has_seconds = self.chooses and self.budget_for != "bytes"
        _require(self.card is None or has_seconds, self, "card", "a budget for decode or prefill with it")
        _require(self.chooses or self.budget_for == "bytes", self, "budget_for", "a budget with it")
        _require(not (self.chooses and self.keep_dense), self, "keep_dense", "either that or a budget")
        judges = self.stages.needs_text or not self.chooses
        _require(judges, self, "method", "one that calibrates with a budget, which is met by measuring")

    @property
    def chooses(self) -> bool:
        """Whether it is chosen which linears become 2:4."""
        return self.budget is not None or self.max_kl is not None or bool(self.frontier)

    @property
    def judged_samples(self) -> int:
        """How many samples mixtures are judged on; they are drawn beside those of calibration."""
        return max(1, min(JUDGED_TOKENS // self.length, self.text_samples // 4)) if self.chooses else 0

    @property
    def drawn(self) -> "PruneConfig":
        """The same, with all samples that are drawn."""
        return replace(self, samples=self.text_samples + self.judged_samples)

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources of the calibration text, as far as they are known before the model is."""
        if self.calibration is None:
            return (SELF,)
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
        """The number of samples of each source: by their weights, at least one; the remainder goes to the first."""
        weights = {source: CHAT_WEIGHT if source == CHAT else 1.0 for source in self.sources}
        unit = self.text_samples / sum(weights.values())
        shares = {source: max(1, int(weight * unit)) for source, weight in weights.items()}
        shares[self.sources[0]] += self.text_samples - sum(shares.values())
        return shares

    @property
    def chosen(self) -> Preset | None:
        """The preset; None where a method was asked for instead."""
        return None if self.method else self.preset or DEFAULT_PRESET

    @property
    def stages(self) -> Stages:
        """What the preset does; a method asked for by name trains nothing, unless on a stream."""
        stages = Stages(self.method) if self.method else PRESETS[self.preset or DEFAULT_PRESET]
        if self.tokens or self.minutes:
            stages = stages._replace(model_passes=0, tokens=self.tokens or 0, minutes=self.minutes or 0.0)
        if self.train != "blocks":
            return stages
        return stages.without_whole() if self.blocks_as_begun else stages.by_blocks()


def writes(source: str) -> bool:
    """Whether the dense model writes the text of a source."""
    return source in (SELF, CHAT) or source.startswith(BEGUN)


def file_of(source: str) -> str | None:
    """The file that a source reads, if it reads one."""
    return None if source in (SELF, CHAT) or source.startswith(HUB) else source.removeprefix(BEGUN)


def without_folders(source: str) -> str:
    """A source with the name of its file alone."""
    file = source.removeprefix(BEGUN)
    return source.removesuffix(file) + Path(file).name


def _require(fits: bool, config: PruneConfig, name: str, wanted: str) -> None:
    if not fits:
        raise InputError(f"{name} is {getattr(config, name)!r}; give {wanted}")
