"""The highest rate at which one replica keeps a promise, and the smallest fleet that keeps it at the peak.

One replica is searched by bisection. A fleet is then simulated as a whole behind its router, from the number that this
suggests: down while the promise is kept, up while it is not. So the answer is what brute force would find, as long as
more machines never make it worse.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import ceil, isfinite

from twofour.bench.capacity import simulate
from twofour.bench.capacity.demand import Demand
from twofour.bench.capacity.profile import Replica
from twofour.bench.capacity.simulate import Simulated
from twofour.bench.load.slo import Attainment, Slo, attain
from twofour.bench.load.workload import UNLIMITED, Schedule
from twofour.bench.sweep.search import LOWEST, Bracket, highest
from twofour.prune.errors import InputError

Simulator = Callable[[Schedule, Replica, int, str, int], Simulated]  # as `simulate.run`
CAPACITY = "capacity"  # what binds where no term of the promise does
_START = 0.5  # of the ceiling
_STEP = 1.4


@dataclass(frozen=True)
class Promise:
    """What must be kept, and how requests find their machine."""

    slo: Slo
    router: str = "round_robin"


@dataclass(frozen=True)
class World:
    """A replica and its luck: whatever is tried in it gets the same requests and the same residuals."""

    replica: Replica
    demand: Demand
    promise: Promise
    requests: int  # of a simulation with one replica; a fleet gets more
    seed: int = 0
    simulator: Simulator = simulate.run
    like: "World | None" = None  # of the same server: how near a full one comes to its bound is known from there
    trials: "dict[tuple[float, int, int], Trial]" = field(default_factory=dict, compare=False, repr=False)

    def trial(self, rate: float, count: int = 1) -> "Trial":
        return self._tried((rate, count, count))

    def part(self, rate: float, replicas: int) -> "Trial":
        """Up to four of so many replicas behind their router, with what they get of the rate."""
        return self._tried((rate, min(replicas, POOL), replicas))

    def _tried(self, key: tuple[float, int, int]) -> "Trial":
        if key not in self.trials:
            self.trials[key] = self._simulated(*key)
        return self.trials[key]

    def _simulated(self, rate: float, count: int, of: int) -> "Trial":
        requests = fleet_requests(self.requests, count)
        if count < of and self.promise.router == "round_robin":
            schedule = self.demand.turn_of(rate, requests, self.seed, count, of)
        else:
            schedule = self.demand.schedule(rate * count / of, requests, self.seed)
        return self._served(rate * count / of, count, schedule)

    def _served(self, rate: float, count: int, schedule: Schedule) -> "Trial":
        found = self.simulator(schedule, self.replica, count, self.promise.router, self.seed)
        return Trial(rate, count, found, attain(self.promise.slo, found.records))

    def alone(self) -> "Trial":
        """Of one replica, with requests so far apart that none meets another."""
        rate = _ALONE * self.ceiling
        if (rate, 1, 1) not in self.trials:
            self.trials[rate, 1, 1] = self._served(rate, 1, self.demand.apart(rate, self.requests, self.seed))
        return self.trials[rate, 1, 1]

    def forget(self, but: "Trial | None") -> None:
        """Let go of all records but those of one trial: they are most of the memory of a plan."""
        for key, each in self.trials.items():
            if each is not but:
                self.trials[key] = replace(each, found=Simulated([], each.found.usage))

    def kept(self, rate: float, count: int = 1) -> bool:
        return rate <= count * self._most(count) and self.trial(rate, count).attained.attained is True

    def part_kept(self, rate: float, replicas: int) -> bool:
        return rate <= replicas * self._most(replicas) and self.part(rate, replicas).attained.attained is True

    def _most(self, count: int) -> float:
        """Per replica. A router that sends where a beginning is known makes several do better than one."""
        if count > 1 and self.promise.router == "prefix_affinity" and self.demand.shares:
            return bound(self, reads=False)
        return self.ceiling

    @cached_property
    def ceiling(self) -> float:
        """Sessions per second beyond which the line before one replica grows for ever, whatever a short run shows."""
        return self._efficiency * bound(self)

    @cached_property
    def _efficiency(self) -> float:
        return self.like._efficiency if self.like else full_rate(self) / bound(self)

    @property
    def curve(self) -> "list[Trial]":
        """What was tried of one replica, by rate."""
        alone = (trial for (_, _, of), trial in self.trials.items() if of == 1)
        return sorted(alone, key=lambda each: each.rate)


@dataclass(frozen=True)
class Trial:
    rate: float
    count: int
    found: Simulated
    attained: Attainment


def fleet_requests(requests: int, count: int) -> int:
    """A queue of each replica must have the time to grow."""
    return max(requests, PER_REPLICA * count)


PER_REPLICA = 150
POOL = 4
_ALONE = 1e-4  # of the ceiling


def full_rate(world: World) -> float:
    """Sessions per second that one replica ends while there is always more to do, by simulation."""
    schedule = _always_more(world)
    found = simulate.run(schedule, world.replica, 1, world.promise.router, world.seed)
    served = simulate.served_per_s(found.records)
    return bound(world) if served is None else served / world.demand.turns(world.requests, world.seed)


def _always_more(world: World) -> Schedule:
    """All at once; sessions one after the other, as many at a time as run."""
    places = world.replica.limits.max_num_seqs
    made = world.demand.schedule(1.0, max(world.requests, _WAVES * min(places, _MANY)), world.seed)
    eager = simulate.always_more(made.requests)
    sessions = any(each.after is not None for each in eager)
    return Schedule(eager, places if sessions else None, made.made_of, UNLIMITED)


_WAVES, _MANY = 4, 512  # of answers that begin and end together


def bound(world: World, reads: bool = True) -> float:
    """What the mean lengths allow, sessions per second: all places taken. reads: prompts, and all of them."""
    prompt, output = world.demand.lengths(world.requests, world.seed)
    steps, limits = world.replica.steps, world.replica.limits
    held = prompt + output / 2
    room = limits.kv_blocks * limits.block_size / held if reads else float(limits.max_num_seqs)
    places = max(1.0, min(limits.max_num_seqs, room))
    reading = steps.prefill_s * prompt + steps.pair_s * prompt * prompt / 2 if reads else 0.0
    writing = (steps.fixed_s + world.replica.around.between_s) / places + steps.decode_s + steps.kv_s * held
    seconds = (reading + output * writing) * world.demand.turns(world.requests, world.seed)
    if not (seconds > 0 and isfinite(1 / seconds)):
        raise InputError("by its profile a step of this server takes no time, so nothing bounds it; measure it again")
    return _SLACK / seconds


_SLACK = 1.02  # lengths that are drawn are not their mean


def highest_rate(world: World, within: float) -> Bracket:
    """Of one replica. From half of its ceiling; lower where a promise is so hard that it is kept near nothing only."""
    found = Bracket()
    for lower in (1, LOWEST, LOWEST**2):
        found = highest(world.kept, _START * world.ceiling / lower, _STEP, within)
        if found.low:
            return found
    return found


def smallest_fleet(world: World, rate: float, guess: int) -> int | None:
    """The fewest replicas that keep the promise at so high a rate; None: not even twice the guess, and some, do.

    Where they are many, a part of them says first how many to try as a whole.
    """
    first, most = guess, 2 * guess + 8
    if guess > POOL:
        found = fewest(lambda count: world.part_kept(rate, count), guess, most)
        if found is None:
            return None
        first = found
    return fewest(lambda count: world.kept(rate, count), first, most)


def fewest(kept: Callable[[int], bool], guess: int, most: int) -> int | None:
    """Down from the guess while it is kept, up to the most while it is not."""
    count = max(1, guess)
    if kept(count):
        while count > 1 and kept(count - 1):
            count -= 1
        return count
    return next((more for more in range(count + 1, most + 1) if kept(more)), None)


def guess(rate: float, each: float) -> int:
    return max(1, ceil(rate / each - 1e-9))


def binding(world: World, found: Bracket) -> str:
    """The term that is missed first beyond the limit; where none is, the machine itself is full."""
    if found.high is None or (found.high, 1, 1) not in world.trials:
        return CAPACITY
    return worst(world.trials[found.high, 1, 1].attained) or CAPACITY


def worst(attained: Attainment) -> str | None:
    """The term that is missed by most; None: none is."""
    missed = {term.term: (term.found_s or 0.0) / term.limit_s for term in attained.terms if term.kept is False}
    return max(missed, key=missed.__getitem__, default=None)
