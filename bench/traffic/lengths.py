"""How long something is, as it is written in a flag: `128`, `128~0.3`, `0.7x128~0.3+0.3x2048`."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from twofour.bench.load.workload import Lengths, lengths
from twofour.prune.errors import InputError


@dataclass(frozen=True)
class Mixture:
    """Numbers of tokens of several kinds; `weights` add up to 1."""

    weights: Sequence[float]
    kinds: Sequence[Lengths]

    @property
    def mean(self) -> float:
        return sum(weight * kind.mean for weight, kind in zip(self.weights, self.kinds, strict=True))

    @property
    def mean_square(self) -> float:
        return sum(weight * kind.mean_square for weight, kind in zip(self.weights, self.kinds, strict=True))

    def draw(self, draw: random.Random) -> int:
        return draw.choices(self.kinds, self.weights)[0].draw(draw)

    def __str__(self) -> str:
        return "+".join(f"{weight:g}x{kind}" for weight, kind in zip(self.weights, self.kinds, strict=True))


def tokens(text: str) -> Lengths | Mixture:
    """Read a length, or a mixture of such: each with the share of requests that have it before an `x`."""
    if "x" not in text:
        return lengths(text)
    shares, kinds = zip(*(part.partition("x")[::2] for part in text.split("+")), strict=True)
    weights = [_number(share, text) for share in shares]
    if not math.isclose(sum(weights), 1.0, abs_tol=1e-6):
        raise InputError(f"the shares in {text!r} add up to {sum(weights):g}; make them add up to 1")
    return Mixture(tuple(weights), tuple(lengths(kind.strip()) for kind in kinds))


def _number(share: str, text: str) -> float:
    try:
        number = float(share)
    except ValueError:
        number = -1.0
    if not 0 < number <= 1:
        raise InputError(f"{text!r} is no mixture of lengths; write 0.7x128~0.3+0.3x2048")
    return number


@dataclass(frozen=True)
class Pause:
    """Seconds: `mean_s`, or lognormal with that mean and `sigma`, the deviation of its logarithm."""

    mean_s: float
    sigma: float = 0.0

    def draw(self, draw: random.Random) -> float:
        if not self.sigma or not self.mean_s:
            return self.mean_s
        return draw.lognormvariate(math.log(self.mean_s) - self.sigma**2 / 2, self.sigma)

    def __str__(self) -> str:
        return f"{self.mean_s:g}~{self.sigma:g}" if self.sigma else f"{self.mean_s:g}"


def pause(text: str) -> Pause:
    """Read `2` or `2~0.5`, in seconds."""
    mean, _, sigma = text.partition("~")
    try:
        parsed = Pause(float(mean), float(sigma or 0))
    except ValueError:
        raise InputError(f"{text!r} is no pause; write seconds, 2 or 2~0.5") from None
    if not (0 <= parsed.mean_s < math.inf and 0 <= parsed.sigma <= 2):
        raise InputError(f"a pause of {text!r} is out of range; the mean is at least 0, sigma from 0 to 2")
    return parsed
