"""How many machines of which option: from profiles, a demand and a promise to answers.

For each option: the highest rate of one replica, the smallest fleet that keeps the promise at the peak, spares beside
it, how much more that fleet could take, and in how many other worlds it would do.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from twofour.bench.capacity import reach, search, simulate, uncertainty
from twofour.bench.capacity.demand import Demand, demand
from twofour.bench.capacity.growth import Growth
from twofour.bench.capacity.option import Option, options, prices
from twofour.bench.capacity.profile import Profile
from twofour.bench.capacity.search import Promise, Simulator, Trial, World
from twofour.bench.capacity.uncertainty import Sureness
from twofour.bench.load import slo
from twofour.bench.sweep.search import Bracket, highest
from twofour.bench.traffic.traffic import Traffic
from twofour.prune.errors import InputError
from twofour.prune.progress import Progress, silent, track

REQUESTS = 1000
WITHIN = 0.02  # of the highest rate
_ROUGHLY = 0.05  # of that of a fleet
_MOST = 500  # replicas: what is simulated of so many takes minutes


@dataclass(frozen=True)
class Asked:
    demand: Demand
    promise: Promise
    spare: int = 1  # machines that may be out while the promise is kept
    growth: Growth | None = None
    extrapolate: bool = False  # beyond what was measured
    requests: int = REQUESTS  # of a simulation
    seed: int = 0


@dataclass(frozen=True)
class Fleet:
    """What keeps the promise at the peak. highest: the rate up to which it does, at least the peak."""

    replicas: int
    at_peak: Trial
    highest: float
    sure: Sureness


@dataclass(frozen=True)
class Answer:
    """Of one option. fleet None: no number of its machines keeps the promise, and alone says what one request takes.

    beyond: in which ways steps at the peak, and at the highest rate, go beyond what was measured. Without a fleet, this
    is why there is none.
    """

    option: Option
    limit: Bracket  # requests per second of one replica
    binding: str
    world: World
    alone: Trial
    fleet: Fleet | None
    beyond: Sequence[str] = ()


def plan(
    profiles: Sequence[Profile],
    traffic: Traffic,
    promised: str,
    *,
    price: Sequence[str] = (),
    router: str = "round_robin",
    spare: int = 1,
    growth: Growth | None = None,
    extrapolate: bool = False,
    mean_rate: float | None = None,
) -> dict[str, Any]:
    """The document of a plan. traffic has a rate, or a trace with times; price has NAME=dollars an hour."""
    from twofour.bench.capacity.document import document

    asked = Asked(
        demand(traffic, mean_rate),
        Promise(slo.parse(promised), router),
        spare,
        growth,
        extrapolate,
        seed=traffic.seed,
    )
    return document(asked, answers(asked, options(profiles, prices(price))))


def answers(
    asked: Asked, options: Sequence[Option], progress: Progress = silent, simulator: Simulator = simulate.run
) -> list[Answer]:
    """In the order of the options. Raises InputError where none can keep the promise, at any number."""
    if not options:
        raise InputError("a plan needs an option; give --profile FILE, which bench profile writes")
    if asked.spare < 0:
        raise InputError(f"{asked.spare} spare machines; --spare is at least 0")
    found = [answer(asked, option, simulator) for option in track(options, "options simulated", progress)]
    if not any(each.fleet for each in found):
        for each in found:
            reach.refuse_beyond(each.option.name, list(each.beyond), asked.extrapolate)
        raise InputError(_impossible(asked, found))
    return found


def answer(asked: Asked, option: Option, simulator: Simulator = simulate.run) -> Answer:
    """Raises InputError for what no option could answer, and for a profile that cannot be asked."""
    requests = _requests(asked)
    refuse_unfit(asked, option.profile, requests)
    world = World(option.profile.replica, asked.demand, asked.promise, requests, asked.seed, simulator)
    alone = world.alone()
    _refuse_unknown(asked, alone)
    if not alone.attained.attained:
        return _finished(Answer(option, Bracket(), search.worst(alone.attained) or search.CAPACITY, world, alone, None))
    limit = search.highest_rate(world, WITHIN)
    made = Answer(option, limit, search.binding(world, limit), world, alone, None)
    replicas = search.smallest_fleet(world, asked.demand.peak, _guess(asked, made))
    if replicas is None:
        return _finished(made)
    refuse_unfit(asked, option.profile, search.fleet_requests(requests, replicas))
    return _finished(_with_fleet(asked, made, replicas))


def _finished(made: Answer) -> Answer:
    """Without what nobody asks for any more."""
    made.world.forget(made.fleet.at_peak if made.fleet else None)
    alone = made.world.alone()
    return replace(made, alone=alone)


def _guess(asked: Asked, made: Answer) -> int:
    """How many to try. Where one by itself keeps nothing of a trace, several may, as each gets less of a crowd."""
    count = search.guess(asked.demand.peak, made.limit.low or made.world.ceiling / 2)
    if count > _MOST:
        raise InputError(
            f"{asked.demand.peak:g} requests/s need about {count:,} replicas of {made.option.name}, and a plan "
            f"simulates {_MOST} at most; plan for a part of the traffic, such as one of several equal fleets"
        )
    return count


def _requests(asked: Asked) -> int:
    """Twice as many as the promise needs to be judged, at least: some come before and after the steady part."""
    return max(asked.requests, 2 * asked.promise.slo.fewest)


def _with_fleet(asked: Asked, made: Answer, replicas: int) -> Answer:
    option, world, peak = made.option, made.world, asked.demand.peak
    at_peak = world.trial(peak, replicas)
    beyond = list(reach.beyond(option.profile, at_peak.found.usage))
    if beyond and not asked.extrapolate:
        return replace(made, beyond=beyond)
    most = _highest(world, peak, replicas)
    further = [] if beyond else reach.beyond(option.profile, world.part(most, replicas).found.usage)
    sure = uncertainty.sureness(_worlds(option.profile, world), peak, replicas)
    fleet = Fleet(replicas, at_peak, most, sure)
    return replace(made, fleet=fleet, beyond=[*beyond, *(f"{each}, for its headroom" for each in further)])


def _highest(world: World, peak: float, replicas: int) -> float:
    """Of the fleet, by a part of it."""
    found = highest(lambda rate: world.part_kept(rate, replicas), peak, 1.1, _ROUGHLY)
    return max(peak, found.low or peak)


def _worlds(profile: Profile, world: World) -> list[World]:
    """Other coefficients and another seed in each."""
    draws = profile.draws or [world.replica.steps]
    return [
        World(
            replace(world.replica, steps=draws[number % len(draws)]),
            world.demand,
            world.promise,
            max(OTHERS, 2 * world.promise.slo.fewest),
            world.seed + 1 + number,
            world.simulator,
            world,
        )
        for number in range(uncertainty.WORLDS)
    ]


OTHERS = 500  # requests of a simulation of another world


def _refuse_unknown(asked: Asked, alone: Trial) -> None:
    """A term by which a request that is alone cannot be judged says nothing of any fleet."""
    for term, kept in zip(asked.promise.slo.terms, alone.attained.terms, strict=True):
        if kept.found_s is None:
            few = alone.attained.requests < term.fewest
            why = f"{alone.attained.requests} requests are too few" if few else "too few answers have a second token"
            raise InputError(f"{term.name} cannot be judged: {why}; give a longer trace or leave it out")


def refuse_unfit(asked: Asked, profile: Profile, requests: int) -> None:
    """requests: of the largest simulation."""
    if not profile.valid:
        raise InputError(f"the profile {profile.name} is not valid ({'; '.join(profile.failed)}); measure it again")
    limits = profile.replica.limits
    room = limits.kv_blocks * limits.block_size
    if room <= 0:
        raise InputError(f"the profile {profile.name} has no room in its KV cache; measure it again with bench profile")
    longest = asked.demand.longest(requests, asked.seed)
    if longest > min(room, limits.context_length):
        raise InputError(
            f"a prompt and its answer have {longest} tokens, and {profile.name} takes "
            f"{min(room, limits.context_length)} (its context and its KV cache); plan for shorter ones, or measure a "
            "server with room for them"
        )


def _impossible(asked: Asked, found: Sequence[Answer]) -> str:
    """By the option that comes nearest."""
    missed = [
        (kept.found_s / kept.limit_s, f"{kept.term} is {kept.found_s * 1000:.3g} ms on {each.option.name}")
        for each in found
        for kept in each.alone.attained.terms
        if kept.kept is False and kept.found_s is not None
    ]
    if not missed:
        return f"no number of machines keeps {asked.promise.slo} at {asked.demand.peak:g} requests/s; promise less"
    return (
        f"no number of machines keeps {asked.promise.slo}: of a request that comes alone, {min(missed)[1]}; promise "
        "less, or measure a faster option"
    )
