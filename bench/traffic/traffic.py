"""What traffic is asked for, and how it becomes a Schedule: who comes when, and with what.

Arrivals are those of sessions; most have one turn. The same seed gives the same sessions at any rate.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from math import inf
from statistics import fmean
from typing import Any

from twofour.bench.load import arrivals
from twofour.bench.load.records import Request
from twofour.bench.load.workload import NONCE_WORDS, UNLIMITED, Lengths, Limits, Schedule
from twofour.bench.traffic import bounds, sessions
from twofour.bench.traffic.conversations import Conversations
from twofour.bench.traffic.lengths import Mixture, Pause
from twofour.bench.traffic.sessions import Session
from twofour.bench.traffic.traces import Trace
from twofour.prune.errors import InputError

PROMPTS, ANSWERS, ONE_TURN = Lengths(128, 0.3), Lengths(64, 0.3), Lengths(1)
AT_ONCE = Pause(0.0)
_MOST_REQUESTS = 20_000  # of a closed loop that only the time ends: they are made before it begins
_MOST_TOKENS = 10_000_000
_NOTHING = Trace("", (), 0)
_LETTERS = 6  # of a word, with the space after it


@dataclass(frozen=True)
class Rate:
    """Of an open loop, in sessions per second."""

    per_s: float
    to_per_s: float | None = None  # a ramp, linear in time, over all of the load
    shape: float | None = 1.0  # of the gamma distribution of gaps: 1 is Poisson; None: evenly spaced

    def __post_init__(self) -> None:
        last = self.per_s if self.to_per_s is None else self.to_per_s
        if not (0 <= self.per_s < inf and 0 < last < inf):
            raise InputError(f"a rate of {self} requests per second is impossible; give a number above 0")
        if self.shape is not None and not 0 < self.shape < inf:
            raise InputError(f"a burstiness of {self.shape:g} is impossible; give a number above 0, 1 is Poisson")

    @property
    def mean(self) -> float:
        return self.per_s if self.to_per_s is None else (self.per_s + self.to_per_s) / 2

    def __str__(self) -> str:
        return f"{self.per_s:g}" if self.to_per_s is None else f"{self.per_s:g}..{self.to_per_s:g}"


@dataclass(frozen=True)
class Traffic:
    """One of `rate`, `concurrency` and a trace with its own times says when sessions come."""

    requests: int | None = 64  # at most; None: as many as there are, or as the time allows
    concurrency: int | None = None
    rate: Rate | None = None
    prompt_tokens: Lengths | Mixture = PROMPTS
    output_tokens: Lengths | Mixture = ANSWERS
    pairs: Trace | None = None  # lengths of prompts and answers, drawn from it together
    trace: Trace | None = None  # replayed in its order
    speed_up: float = 1.0  # of its times
    conversations: Conversations | None = None
    keep_shared: bool = False  # what conversations share at their beginnings, a prefix cache may find
    turns: Lengths | Mixture = ONE_TURN
    think: Pause = AT_ONCE
    shared_prefix: float = 0.0  # of each first prompt
    prefixes: int = 1
    seed: int = 0
    limits: Limits = UNLIMITED

    def schedule(self) -> Schedule:
        return self._made(texts=True)

    def sketch(self) -> Schedule:
        """The same requests without the words that are made up for them: quick to make, but no client can send them."""
        return self._made(texts=False)

    def _made(self, texts: bool) -> Schedule:
        self.refuse_impossible(texts)
        requests = list(self._requests(texts))
        if not requests:
            raise InputError(
                f"no request comes within {self.limits.duration_s:g} s; give more --duration, or more --rate"
            )
        return Schedule(requests, self.concurrency, self._made_of(len(requests)), self.limits)

    def _requests(self, texts: bool) -> Iterator[Request]:
        index, most = 0, inf if self._most is None else self._most
        for at_s, session in zip(self._times(), self._sessions(texts), strict=False):
            if at_s >= (self.limits.duration_s or inf):
                return
            for request in sessions.requests(session, index, at_s):
                if index >= most:
                    return
                yield request
                index += 1

    @property
    def _most(self) -> int | None:
        """How many requests there are at most; None: others say when it ends."""
        if self.requests is not None or self.concurrency is None or self.trace:
            return self.requests
        return max(1, min(_MOST_REQUESTS, round(_MOST_TOKENS / self.prompt_tokens.mean)))

    def _times(self) -> Iterator[float]:
        if self.concurrency is not None:
            return repeat(0.0)
        if self.rate is None:
            rows = self.trace.rows if self.trace else []
            return ((row.at_s or 0.0) / self.speed_up for row in rows)
        units = arrivals.units(self.rate.shape, self.seed)
        if self.rate.to_per_s is None:
            return arrivals.at_rate(units, self.rate.per_s)
        return arrivals.ramp(
            units, self.rate.per_s, self.rate.to_per_s, self._ramp_s(self.rate.per_s + self.rate.to_per_s)
        )

    def _ramp_s(self, both_rates: float) -> float:
        if self.limits.duration_s is not None:
            return self.limits.duration_s
        return 2 * (self.requests or 1) / both_rates / self.turns.mean

    def _sessions(self, texts: bool) -> Iterator[Session]:
        if self.trace:
            return sessions.of_trace(self.trace.rows, self.seed, texts)
        if self.conversations:
            known, answers = self.conversations.all, self.output_tokens
            return sessions.of_conversations(known, answers, self.turns, self.think, self.keep_shared, self.seed)
        return sessions.of_words(
            self._sizes, self.turns, self.think, self.shared_prefix, self.prefixes, self.seed, texts
        )

    def _sizes(self, draw: random.Random) -> tuple[int, int]:
        if self.pairs is None:
            return self.prompt_tokens.draw(draw), self.output_tokens.draw(draw)
        row = draw.choice(self.pairs.rows)
        return row.prompt_tokens, row.output_tokens

    def _made_of(self, requests: int) -> dict[str, Any]:
        """What was asked for, without what was left as it is."""
        always = {
            "requests": requests,
            "concurrency": self.concurrency,
            "rate": self.rate.per_s if self.rate else None,
            "prompt_tokens": _lengths_of(self.pairs or self.trace or self.conversations) or str(self.prompt_tokens),
            "output_tokens": _lengths_of(self.pairs or self.trace) or self._answers,
            "seed": self.seed,
        }
        return always | {name: value for name, value in self._special().items() if value}

    @property
    def _answers(self) -> str:
        known = self.conversations is not None and self.conversations.has_lengths
        return f"{_lengths_of(self.conversations)} or {self.output_tokens}" if known else str(self.output_tokens)

    def _special(self) -> dict[str, Any]:
        rate, source = self.rate or Rate(1.0), self.pairs or self.trace or self.conversations
        several = self.turns != ONE_TURN
        return {
            "rate_to": rate.to_per_s,
            "arrivals": _process(rate) if rate.shape != 1.0 else None,
            "trace": self.trace and self.trace.name,
            "speed_up": self.speed_up if self.trace and self.speed_up != 1 else None,
            "prompts": self.conversations and self.conversations.name,
            "keep_shared": self.keep_shared,
            "lengths": self.pairs and self.pairs.name,
            "left_out": source and source.left_out,
            "turns": str(self.turns) if several else None,
            "think_s": str(self.think) if several else None,
            "shared_prefix": self.shared_prefix,
            "prefixes": self.prefixes if self.shared_prefix else None,
        }

    def refuse_impossible(self, texts: bool = True) -> None:
        """Raise InputError for what is no load, or one that this machine cannot hold; nothing is made yet."""
        self._refuse_unclear()
        self.refuse_vast(texts)
        if self.rate and self.requests is not None and self.limits.duration_s is None:
            bounds.lasts(self.requests / self.turns.mean / self.rate.mean)

    def refuse_vast(self, texts: bool = True) -> None:
        """At any rate."""
        most = inf if self._most is None else self._most
        bounds.at_once(self.concurrency, "--concurrency", most)
        bounds.at_once(self.limits.max_in_flight, "--max-in-flight", most)
        bounds.sessions(self.turns.mean, self.prefixes)
        bounds.memory(self._about + (self.limits.warm_up or 0), self._sent_tokens if texts else 0)

    @property
    def _about(self) -> float:
        """How many requests there are, before they are made."""
        most = inf if self._most is None else self._most
        if self.trace:
            return min(most, len(self.trace.rows))
        if self.rate is None or self.limits.duration_s is None:
            return most
        return min(most, self.rate.mean * self.limits.duration_s * self.turns.mean)

    @property
    def _sent_tokens(self) -> float:
        """Of a request in the mean; of conversations, about as many as they have words."""
        rows = (self.pairs or self.trace or _NOTHING).rows
        if rows:
            return fmean(row.prompt_tokens for row in rows)
        if self.conversations:
            return fmean(sum(len(turn.said) for turn in each.turns) for each in self.conversations.all) / _LETTERS
        before = (self.turns.mean_square / self.turns.mean - 1) / 2  # most requests are of long sessions
        return self.prompt_tokens.mean + before * (self.prompt_tokens.mean + self.output_tokens.mean)

    def _refuse_unclear(self) -> None:
        if self.requests is not None and self.requests < 1:
            raise InputError(f"{self.requests} requests measure nothing; ask for at least 1")
        if self.concurrency is not None and self.concurrency < 1:
            raise InputError(f"{self.concurrency} requests at a time; --concurrency is at least 1")
        if (self.concurrency is not None) + (self.rate is not None) + self._has_times != 1:
            raise InputError("a load is a concurrency, a rate or a trace with times; give one of them")
        if self.requests is None and self.limits.duration_s is None and not self.trace:
            raise InputError("nothing ends the load; give --requests or --duration")
        if not (self.trace or self.pairs or self.conversations):
            _refuse_short(self.prompt_tokens)
        if not 0 <= self.shared_prefix < 1 or self.prefixes < 1:
            raise InputError(
                f"{self.shared_prefix:g} of a prompt, one of {self.prefixes} texts: "
                "--shared-prefix is a share below 1, --prefixes at least 1"
            )
        if not 0 < self.speed_up < inf:
            raise InputError(f"a trace cannot go {self.speed_up:g} times as fast; give --speed-up a number above 0")

    @property
    def _has_times(self) -> bool:
        """The trace says when; not where a closed loop takes its lengths only."""
        return self.concurrency is None and self.trace is not None and self.trace.rows[0].at_s is not None


def _refuse_short(prompts: Lengths | Mixture) -> None:
    kinds: Sequence[Lengths] = prompts.kinds if isinstance(prompts, Mixture) else [prompts]
    if min(kind.mean for kind in kinds) <= NONCE_WORDS:
        raise InputError(
            f"prompts of {prompts} tokens are too short; {NONCE_WORDS} words go to the nonce, "
            f"ask for at least {NONCE_WORDS + 1}"
        )


def _lengths_of(source: Trace | Conversations | None) -> str | None:
    return f"as in {source.name}" if source else None


def _process(rate: Rate) -> str:
    return "constant" if rate.shape is None else f"gamma:{rate.shape:g}"
