"""What is asked at every place of a sweep: traffic of one kind, at a pace."""

from dataclasses import dataclass, replace
from typing import Any

from twofour.bench.load.slo import Slo
from twofour.bench.load.workload import Schedule
from twofour.bench.traffic import bounds
from twofour.bench.traffic.traffic import Rate, Traffic
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
        bounds.at_once(self.concurrency, "--concurrency")

    def __str__(self) -> str:
        return f"{self.concurrency} at a time" if self.rate is None else f"{self.rate:.4g} requests/s"


@dataclass(frozen=True)
class Load:
    """traffic: at any pace; of a rate it has, only the kind of arrivals counts. requests: of each run; None: as many as
    its pace and the Slo need.
    """

    traffic: Traffic
    slo: Slo | None = None
    requests: int | None = None

    def __post_init__(self) -> None:
        if self.requests is not None and self.slo and self.requests < self.slo.fewest:
            raise InputError(
                f"{self.requests} requests do not decide on {self.slo}; give --requests at least {self.slo.fewest}"
            )

        if self.requests is not None:
            replace(self.traffic, requests=self.requests).refuse_vast()

    def schedule(self, pace: Pace, round_: int, requests: int | None = None) -> Schedule:
        """What every server gets in one round. At another rate the same comes, faster or slower."""
        process = self.traffic.rate or Rate(1.0)
        return replace(
            self.traffic,
            requests=requests or self.requests or self._needed(pace),
            concurrency=pace.concurrency,
            rate=None if pace.rate is None else replace(process, per_s=pace.rate),
            seed=self.traffic.seed + round_,
            limits=replace(self.traffic.limits, stop_over_saturated=pace.rate is not None),
        ).schedule()

    def described(self) -> dict[str, Any]:
        """Plain data for documents, without a pace."""
        any_pace = Pace(concurrency=1) if self.traffic.rate is None else Pace(rate=1.0)
        made_of = self.schedule(any_pace, 0, requests=1).made_of
        kind = {name: value for name, value in made_of.items() if name not in ("concurrency", "rate")}
        return kind | {"requests": self.requests, "slo": str(self.slo) if self.slo else None}

    def _needed(self, pace: Pace) -> int:
        judged = SPARE * self.slo.fewest if self.slo else 0
        if pace.concurrency is None:
            return max(ARRIVING, 2 * judged)
        return max(AT_A_TIME, EACH_CLIENT * pace.concurrency, judged)
