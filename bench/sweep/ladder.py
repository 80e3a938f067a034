"""A ladder: several servers at every pace, in turns.

A round visits every pace, and there every server in turn (see `turns`), all with the same schedule. Rounds differ in
their seeds, so they are replicates: figures are compared round by round. Where a rate is over a server's capacity, no
higher one is asked of it any more.
"""

from collections.abc import Sequence
from functools import partial

from twofour.bench.sweep.load import Load, Pace
from twofour.bench.sweep.visit import Found, Visit, until_cut_off, visit
from twofour.bench.targets.running import Running, frozen_all
from twofour.bench.turns import order
from twofour.prune.progress import Progress


def climb(servers: Sequence[Running], load: Load, paces: Sequence[Pace], rounds: int, progress: Progress) -> Found:
    """Measure all servers at all paces. All frozen groups go on in the end."""
    with frozen_all(servers):
        return until_cut_off(partial(_climb, servers, load, paces, rounds, progress))


def _climb(
    servers: Sequence[Running],
    load: Load,
    paces: Sequence[Pace],
    rounds: int,
    progress: Progress,
    visits: list[Visit],
) -> None:
    for round_ in range(rounds):
        for pace in paces:
            for server in order(servers, round_):
                if not _too_much(visits, server.name, pace):
                    with server.awake():
                        visits.append(visit(server, load, pace, round_, progress))


def _too_much(visits: Sequence[Visit], server: str, pace: Pace) -> bool:
    """Whether a lower rate was over its capacity already."""
    lowest = min((each.pace.rate or 0 for each in visits if each.server == server and each.over_capacity), default=None)
    return lowest is not None and (pace.rate or 0) > lowest
