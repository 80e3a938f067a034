"""The planner on machines of `paged` without any time passing: fleets by brute force, and how often intervals hold.

A profile is fitted to the steps of loads that are not asked for later. What is true is what `paged_fleet` gives, which
shares no code with the planner's simulator.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil, floor, log10

from twofour.bench.capacity import search, step_model
from twofour.bench.capacity.demand import Demand, demand
from twofour.bench.capacity.profile import Around, EngineLimits, Profile, Replica
from twofour.bench.capacity.search import Promise, World
from twofour.bench.capacity.uncertainty import WORLDS
from twofour.bench.capacity.validation import figures, foretell
from twofour.bench.load.records import Request
from twofour.bench.load.slo import Slo, attain, parse
from twofour.bench.load.step_log import Step
from twofour.bench.load.workload import Lengths, Schedule
from twofour.bench.proof import paged, paged_fleet
from twofour.bench.proof.paged import Machine
from twofour.bench.traffic.traffic import Rate, Traffic
from twofour.prune.progress import Progress, track

FITTED = (0.25, 0.6, 1.0)  # of capacity: what a profile is fitted to
UNSEEN = (0.45, 0.7, 0.85)
REQUESTS = 1000  # of a simulation, as of a plan
LARGEST = 20  # machines
_FORETOLD = 5  # long runs, of which a forecast takes the median
# How many were planned, how many are needed, and how many by the same engine with other luck.
Fleet = tuple[int | None, int | None, int | None]
P95 = ("ttft_p95", "itl_p95", "e2e_p95")


@dataclass(frozen=True)
class Case:
    machine: Machine
    demand: Demand
    slo: Slo


def case(number: int, round_promise: bool = True) -> Case:
    """Any machine, lengths, promise and peak; the fleet has 20 machines at most.

    round_promise: in numbers as people say them; else one that a run has just kept, so that luck decides at the edge.
    """
    draw = random.Random(f"fleet {number}")
    machine = Machine(
        fixed_s=draw.uniform(0.004, 0.03),
        prefill_s=draw.uniform(1e-5, 1e-4),
        decode_s=draw.uniform(2e-5, 4e-4),
        kv_s=draw.uniform(1e-8, 2e-7),
        pair_s=draw.uniform(0, 2e-8),
        noise=0.03,
        sequences=draw.choice([8, 16, 32]),
        tokens=draw.choice([256, 512]),
        seed=number,
    )
    lengths = Lengths(draw.randint(40, 300), 0.4), Lengths(draw.randint(8, 32), 0.4)
    traffic = Traffic(prompt_tokens=lengths[0], output_tokens=lengths[1], rate=Rate(1.0), seed=number)
    most = paged_fleet.capacity(schedule(traffic, 1.0, 400), machine)
    peak = most * draw.uniform(0.5, 0.7 * LARGEST)
    asked = schedule(traffic, draw.uniform(0.5, 0.85) * most, REQUESTS)
    promised = _promised(machine, asked, round_promise)
    return Case(machine, demand(replace(traffic, rate=Rate(peak))), promised)


def schedule(traffic: Traffic, rate: float, requests: int) -> Sequence[Request]:
    return replace(traffic, rate=Rate(rate), requests=requests).schedule().requests


def _promised(machine: Machine, asked: Sequence[Request], round_promise: bool) -> Slo:
    """What one machine keeps at some rate: just, or in the next round numbers."""
    found = figures(paged_fleet.serve(asked, machine).records, 0.0, open_loop=True)
    kept = {name: (found[name] or 1.0) * 1000 for name in ("ttft_p95", "itl_p95")}
    return parse(",".join(f"{name}={_round(ms) if round_promise else ms:.3f}ms" for name, ms in kept.items()))


def _round(value: float) -> float:
    """Up to one digit: 37 is 40."""
    place = 10.0 ** floor(log10(value))
    return ceil(value / place) * place


def profile(machine: Machine, traffic: Traffic) -> Profile:
    """As `bench profile` makes it, without the client."""
    most, steps = paged_fleet.capacity(schedule(traffic, 1.0, 400), machine), list[paged.Step]()
    for number, share in enumerate(FITTED):
        asked = schedule(replace(traffic, seed=traffic.seed + 1000 + number), share * most, 400)
        steps += paged_fleet.serve(asked, replace(machine, seed=machine.seed + 1 + number)).steps
    found = step_model.fit([Step(*each[:2], each.decode_kv_tokens, each.seconds, each.prefill_pairs) for each in steps])
    room = machine.pages * machine.page
    limits = EngineLimits(machine.sequences, machine.tokens, machine.pages, machine.page, room)
    replica = Replica(limits, found.steps, Around(0.0, machine.between_s), found.residuals)
    return Profile("paged", "paged", replica, found.hull, draws=found.draws, error=found.error)


def planned(of: Case, replica: Replica) -> int | None:
    """How many machines a plan orders, without spares."""
    world = World(replica, of.demand, Promise(of.slo), REQUESTS, of.demand.traffic.seed)
    each = search.highest_rate(world, 0.02).low
    return search.smallest_fleet(world, of.demand.peak, search.guess(of.demand.peak, each)) if each else None


def needed(of: Case, luck: int = 0) -> int | None:
    """The fewest machines that keep the promise, each number tried; None: not even twice the largest fleet does.

    So few that more comes than they get done are none: their line grows for ever, whatever a short run shows.

    Arrivals and lengths are those that the plan had: what is compared is the engines and the search. luck: of how long
    single steps take, which no plan can know.
    """
    machine = replace(of.machine, seed=of.machine.seed + _LUCK * luck)
    peak, seed = of.demand.peak, of.demand.traffic.seed
    most = paged_fleet.capacity(of.demand.schedule(peak, _LONG, seed).requests, of.machine)
    for count in range(ceil(peak / most), 2 * LARGEST + 1):
        asked = of.demand.schedule(peak, search.fleet_requests(REQUESTS, count), seed)
        if attain(of.slo, paged_fleet.serve(asked.requests, machine, count).records).attained:
            return count
    return None


_LONG = 4000  # requests, after which it is known to a per cent or two how many one machine gets done
_LUCK = 5000  # seeds between one luck and the next


def fleets(cases: int, progress: Progress) -> Iterator[tuple[Fleet, Fleet]]:
    """Of each case with a promise in round numbers, and with one that is just kept."""
    for number in track(range(cases), "fleets", progress):
        said, edge = case(number), case(number, round_promise=False)
        replica = profile(said.machine, said.demand.traffic).replica
        yield _fleet(said, replica), _fleet(edge, replica)


def _fleet(of: Case, replica: Replica) -> Fleet:
    return planned(of, replica), needed(of), needed(of, 1)


def coverage(profiles: int, runs: int, progress: Progress) -> list[bool]:
    """Whether the 90 % interval of a forecast holds the p95 of one run; of many that no profile has seen."""
    held = list[bool]()
    for number in track(range(profiles), "profiles", progress):
        of = case(number)
        traffic, most = of.demand.traffic, paged_fleet.capacity(schedule(of.demand.traffic, 1.0, 400), of.machine)
        known = profile(of.machine, traffic)
        for place, share in enumerate(UNSEEN):
            rate, luck = share * most, 1000 * (len(UNSEEN) * number + place + 10)  # of no other place
            told = foretell(known, [_world(traffic, rate, luck + world) for world in range(WORLDS)])
            for run in range(luck + WORLDS, luck + WORLDS + runs):
                asked = schedule(replace(traffic, seed=run), rate, REQUESTS // 2)
                truth = paged_fleet.serve(asked, replace(of.machine, seed=run)).records
                found = figures(truth, 0.0, open_loop=True)
                held += [told[name].holds(found[name]) is True for name in P95]
    return held


def forecasts(profiles: int, requests: int, progress: Progress) -> dict[str, list[float]]:
    """By how much a forecast is off one run that is so long that luck matters little, by figure."""
    off: dict[str, list[float]] = {name: [] for name in P95}
    for number in track(range(profiles), "forecasts", progress):
        of = case(number)
        traffic, most = of.demand.traffic, paged_fleet.capacity(schedule(of.demand.traffic, 1.0, 400), of.machine)
        known = profile(of.machine, traffic)
        for share in UNSEEN:
            told = foretell(known, [_world(traffic, share * most, seed, requests) for seed in range(_FORETOLD)])
            asked = schedule(replace(traffic, seed=_FORETOLD), share * most, requests)
            found = figures(paged_fleet.serve(asked, of.machine).records, 0.0, open_loop=True)
            for name in P95:
                off[name] += [abs(error)] if (error := told[name].error(found[name])) is not None else []
    return off


def _world(traffic: Traffic, rate: float, seed: int, requests: int = REQUESTS // 2) -> Schedule:
    """As a plan draws it, of the same traffic."""
    return Schedule(schedule(replace(traffic, seed=seed), rate, requests), None, {"rate": rate})
