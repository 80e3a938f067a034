"""What is asked at every place of a sweep: prompts and lengths of one kind, at a pace."""

from dataclasses import dataclass

from twofour.bench.load.slo import Slo
from twofour.bench.load.workload import Lengths, Schedule, synthetic
from twofour.prune.errors import InputError

AT_A_TIME, EACH_CLIENT = 8, 2  # requests of a closed loop: at least so many, and so many of each client
ARRIVING = 128  # requests of an open loop, at least
SPARE = 2  # so many times what an Slo needs in a closed loop, as ramp and drain do not count; twice that in an open one


@dataclass(frozen=True, order=True)
class Pace:
    """A closed loop or an open one: requests at a time, or a second."""

    concurrency: int | None = None
    rate: float | None = None

    def __post_init__(self) -> None:
        if (self.concurrency is None) == (self.rate is None):
            raise InputError("a pace is a concurrency or a rate; give one of them")
        if self.concurrency is not None and self.concurrency < 1:
            raise InputError(f"{self.concurrency} requests at a time; --concurrency is at least 1")

    def __str__(self) -> str:
        return f"{self.concurrency} at a time" if self.rate is None else f"{self.rate:.4g} requests/s"


@dataclass(frozen=True)
class Load:
    """requests: of each run; None: as many as its pace and the Slo need."""

    prompt_tokens: Lengths
    output_tokens: Lengths
    seed: int
    slo: Slo | None = None
    requests: int | None = None

    def __post_init__(self) -> None:
        if self.requests is not None and self.slo and self.requests < self.slo.fewest:
            raise InputError(
                f"{self.requests} requests do not decide on {self.slo}; give --requests at least {self.slo.fewest}"
            )

    def schedule(self, pace: Pace, round_: int, requests: int | None = None) -> Schedule:
        """What every server gets in one round. At another rate the same comes, faster or slower."""
        return synthetic(
            requests or self.requests or self._needed(pace),
            self.prompt_tokens,
            self.output_tokens,
            self.seed + round_,
            concurrency=pace.concurrency,
            rate=pace.rate,
        )

    def _needed(self, pace: Pace) -> int:
        judged = SPARE * self.slo.fewest if self.slo else 0
        if pace.concurrency is None:
            return max(ARRIVING, 2 * judged)
        return max(AT_A_TIME, EACH_CLIENT * pace.concurrency, judged)
