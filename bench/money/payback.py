"""How many tokens pay for the pruning: its minutes against what each token saves.

Where pruning and serving use machines of one price, the price drops out: what takes a machine so many seconds, and
then saves it 1/slow - 1/fast of them with each token, is paid back after their quotient. The interval is that of the
ratio of costs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Payback:
    """Tokens, prompts' and answers'. None: it is never paid back, at that end of the interval."""

    minutes: float
    tokens: float | None
    low: float | None
    high: float | None


def payback(minutes: float, dense_tokens_per_s: float, ratio: Mapping[str, Any]) -> Payback:
    """ratio: of the costs of a token, sparse over dense, with its interval."""

    def tokens(cost_ratio: float | None) -> float | None:
        if cost_ratio is None or cost_ratio >= 1:
            return None
        return 60 * minutes * dense_tokens_per_s / (1 - cost_ratio)

    return Payback(minutes, tokens(ratio["point"]), tokens(ratio["low"]), tokens(ratio["high"]))
