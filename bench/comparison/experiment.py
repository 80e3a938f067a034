"""The nouns of a comparison: the load of all arms in all rounds, and what was found. Plain data, nothing runs here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from twofour.bench import turns
from twofour.bench.comparison.quality import Quality
from twofour.bench.hardware import Hardware
from twofour.bench.load.endpoint import State
from twofour.bench.load.run import Run
from twofour.bench.load.slo import Slo
from twofour.bench.load.step_log import Step
from twofour.bench.load.workload import Lengths, Schedule
from twofour.bench.money.cost import Price
from twofour.bench.targets.servers import Placement
from twofour.bench.traffic.traffic import Rate, Traffic
from twofour.prune.errors import InputError

_PROMPTS = Lengths(64, 0.3)
_ANSWERS = Lengths(32, 0.3)


@dataclass(frozen=True)
class Experiment:
    """The load that all servers get, round by round. A `rate` makes it an open loop, `concurrency` a closed one."""

    requests: int = 16  # per arm and round
    concurrency: int | None = 2
    rate: float | None = None  # requests per second
    prompt_tokens: Lengths = _PROMPTS
    output_tokens: Lengths = _ANSWERS
    rounds: int = 6
    seed: int = 0
    timeout_s: float = 600.0
    slo: Slo | None = None

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise InputError(f"{self.rounds} rounds compare nothing; ask for at least 1, 6 for an interval")
        if (self.concurrency is None) == (self.rate is None):
            raise InputError("a load is a concurrency or a rate; give one of them")
        if self.concurrency is not None and self.concurrency < 1:
            raise InputError(f"{self.concurrency} requests at a time; --concurrency is at least 1")
        turns.refuse_endless(self.rounds)
        self.traffic.refuse_impossible()

    @property
    def primary(self) -> str:
        """The one metric that decides, declared before anything is measured."""
        return "cost" if self.rate is None else "e2e_p50"

    @property
    def traffic(self) -> Traffic:
        """That of the first round."""
        rate = None if self.rate is None else Rate(self.rate)
        return Traffic(self.requests, self.concurrency, rate, self.prompt_tokens, self.output_tokens, seed=self.seed)

    def schedule(self, round_: int) -> Schedule:
        """What all servers get in one round."""
        return replace(self.traffic, seed=self.seed + round_).schedule()

    def __str__(self) -> str:
        pace = f"Poisson arrivals at {self.rate:g} requests/s" if self.rate else f"{self.concurrency} at a time"
        return (
            f"{pace}, prompts of {self.prompt_tokens} and answers of {self.output_tokens} tokens, "
            f"{self.rounds} rounds of {self.requests} requests per model, seed {self.seed}"
        )


@dataclass(frozen=True)
class ArmRun:
    """steps: of the server meanwhile, those of the warm-up among them; empty: it does not say."""

    arm: str
    round: int
    run: Run
    steps: Sequence[Step] = ()


@dataclass(frozen=True)
class ArmFacts:
    """One arm as it was served; states are None where the server has no /metrics."""

    given: str  # the folder or the URL
    model: str  # as it is served
    command: Sequence[str] | None  # None: it was running already
    before: State | None
    after: State | None
    answer: str | None  # to `Findings.question`
    pruning_minutes: float | None = None  # None: it was not pruned here, or does not say


@dataclass(frozen=True)
class Findings:
    """Everything that a report is made of."""

    experiment: Experiment
    started: datetime
    command: Sequence[str]
    hardware: Hardware
    versions: Mapping[str, str | None]
    placement: Placement | None  # None: the servers were running already
    arms: Mapping[str, ArmFacts]  # some of ARMS, in their order
    runs: Sequence[ArmRun]
    quality: Quality | None
    random_weights: str | None  # the shape that the weights were made for; None: they are a real model's
    question: str
    price: Price | None
    unpriced: str | None = None  # why there is no price
    cut_off: bool = False  # interrupted: these are the whole rounds until then
    views: Sequence[Mapping[str, Any]] = ()  # under other loads, see `views`
