"""The step log of a server, as /debug/steps gives it: what each step of its engine computed, and how long it took."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Step:
    """None: the server's log is of an older version, which does not say."""

    prefill_tokens: int  # of sequences with more than one token to go
    decodes: int
    kv_tokens: int  # that the decodes attend to; in an older log also what prompts do
    seconds: float
    prefill_pairs: int = 0
    started_at: float | None = None  # by a clock of the server's
    waiting: int | None = None
    count: int = 1  # more: all of this is the sum of so many


@dataclass(frozen=True)
class Glance:
    """One look at the log. total: also counts the steps that it no longer holds."""

    total: int
    steps: Sequence[Step]

    def since(self, before: "Glance") -> Sequence[Step]:
        """What came after an earlier look, as far as the log reaches back."""
        fresh = self.total - before.total
        return self.steps[-fresh:] if fresh > 0 else []

    def lost_since(self, before: "Glance") -> int:
        """Steps that came after it and are in the log no longer."""
        return max(0, self.total - before.total - len(self.steps))


def read(log: Mapping[str, Any] | None) -> Glance | None:
    """None where there is no log, or one that nobody can read."""
    try:
        return None if log is None else Glance(int(log["total"]), _steps(log))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _steps(log: Mapping[str, Any]) -> list[Step]:
    seconds, nothing = log["seconds"], [None] * len(log["seconds"])
    return [
        Step(*row)
        for row in zip(
            log["prefill_tokens"],
            log["decodes"],
            log.get("decode_kv_tokens", log["kv_tokens"]),
            seconds,
            log.get("prefill_pairs", [0] * len(seconds)),
            log.get("started_at", nothing),
            log.get("waiting", nothing),
            strict=True,
        )
    ]
