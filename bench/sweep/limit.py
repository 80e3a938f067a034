"""The highest rate at which each server keeps an Slo, with an interval: one search a round, servers in turns.

A search begins with requests one at a time: where not one of them is good, no rate will do. The rate that this gave is
where the first search begins; those of later rounds begin at what the round before has found. All rates of a round get
the same requests, faster or slower, so that chance is the same for all of them. A run decides: it kept the Slo, or it
did not, or the rate was over the server's capacity, or the client was late, twice: then the server may be able to do
more, and the search ends. Whether answers took ever longer is not asked: near its limit a server drifts by chance.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from twofour.bench.sweep.load import Load, Pace
from twofour.bench.sweep.search import Bracket, highest
from twofour.bench.sweep.visit import Found, Visit, until_cut_off, visit
from twofour.bench.targets.running import Running, frozen_all
from twofour.bench.turns import order
from twofour.prune.progress import Progress

ALONE = 16  # requests that come one at a time
FIRST_STEP = 2.0
NEXT_STEP = 4  # times `within`: how far the limits of two rounds may lie apart


@dataclass(frozen=True)
class Limit:
    """What one search found. why: what ended it early; None: nothing did."""

    server: str
    round: int
    bracket: Bracket
    why: str | None = None


def find_limits(
    servers: Sequence[Running], load: Load, rounds: int, within: float, progress: Progress
) -> tuple[Found, list[Limit]]:
    """Search for each server in each round. All frozen groups go on in the end."""
    limits = list[Limit]()
    with frozen_all(servers):
        return until_cut_off(partial(_find_limits, servers, load, rounds, within, progress, limits)), limits


def _find_limits(
    servers: Sequence[Running],
    load: Load,
    rounds: int,
    within: float,
    progress: Progress,
    limits: list[Limit],
    visits: list[Visit],
) -> None:
    for round_ in range(rounds):
        for server in order(servers, round_):
            before = next((each.bracket.low for each in reversed(limits) if each.server == server.name), None)
            with server.awake():
                limits.append(_Search(server, load, round_, progress, visits).limit(before, within))


@dataclass
class _Search:
    server: Running
    load: Load
    round: int
    progress: Progress
    visits: list[Visit]  # of all searches; what this one sees is added
    why: str | None = None

    def limit(self, before: float | None, within: float) -> Limit:
        """before: what another round has found."""
        start, step = (before, 1 + NEXT_STEP * within) if before else (self._alone(), FIRST_STEP)
        bracket = highest(self._kept, start, step, within) if start else Bracket()
        return Limit(self.server.name, self.round, bracket, self.why)

    def _alone(self) -> float | None:
        """Requests a second, one at a time; None: not one is good."""
        seen = self._visit(Pace(concurrency=1), ALONE)
        if seen.run.slo and seen.run.slo.good == 0:
            self.why = "alone"
            return None
        rate = seen.run.summary.requests_per_s
        self.why = None if rate else "unknown"
        return rate

    def _kept(self, rate: float) -> bool | None:
        seen = self._visit(Pace(rate=rate))
        if seen.client_is_late:
            self.visits.pop()
            seen = self._visit(Pace(rate=rate))
        if seen.client_is_late:
            self.why = "client"
            return None
        kept = False if seen.over_capacity else seen.run.slo.attained if seen.run.slo else None
        self.why = "unknown" if kept is None else None
        return kept

    def _visit(self, pace: Pace, requests: int | None = None) -> Visit:
        self.visits.append(visit(self.server, self.load, pace, self.round, self.progress, requests))
        return self.visits[-1]
