"""Traffic that grows: how long the machines of today last, and what those of later months cost."""

import re
from dataclasses import dataclass
from math import inf, log

from twofour.bench.capacity.search import guess
from twofour.prune.errors import InputError

MONTHS = 12
_GROWTH = re.compile(r"(-?\d+(?:\.\d+)?)%/(month|year)")


@dataclass(frozen=True)
class Growth:
    monthly: float  # 0.05 is 5 % more each month than in the one before

    def times(self, month: int) -> float:
        return float((1 + self.monthly) ** month)

    def lasts(self, headroom: float) -> float | None:
        """Months until the traffic is so much higher; None: never."""
        if self.monthly <= 0:
            return None
        return max(0.0, log(1 + headroom) / log(1 + self.monthly))


@dataclass(frozen=True)
class Month:
    month: int
    rate: float
    machines: int


def parse(text: str) -> Growth:
    """Read `5%/month` or `40%/year`."""
    found = _GROWTH.fullmatch(text.replace(" ", ""))
    share = float(found[1]) / 100 if found else inf
    if not found or not -1 < share <= 10:
        raise InputError(f"{text!r} is no growth that can be planned for; write 5%/month or 40%/year")
    return Growth(share if found[2] == "month" else (1 + share) ** (1 / 12) - 1)


def months(growth: Growth, rate: float, highest: float, replicas: int, spare: int) -> list[Month]:
    """From now to a year on. replicas: the fewest that keep the promise at the rate; highest: up to which they do."""
    rates = [rate * growth.times(month) for month in range(MONTHS + 1)]
    fewest = [replicas if at >= rate else 1 for at in rates]
    needed = [max(least, guess(at, highest / replicas)) for least, at in zip(fewest, rates, strict=True)]
    return [Month(month, at, count + spare) for month, (at, count) in enumerate(zip(rates, needed, strict=True))]
