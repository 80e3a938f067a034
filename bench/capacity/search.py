"""The highest rate at which one replica keeps a promise, and the smallest fleet that keeps it at the peak.

One replica is searched by bisection. A fleet is then simulated as a whole behind its router, from the number that this
suggests: down while the promise is kept, up while it is not. So the answer is what brute force would find, as long as
more machines never make it worse.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil

from twofour.bench.capacity import simulate
from twofour.bench.capacity.demand import Demand
from twofour.bench.capacity.profile import Replica
from twofour.bench.capacity.simulate import Simulated
from twofour.bench.load.slo import Attainment, Slo, attain
from twofour.bench.load.workload import Schedule
from twofour.bench.sweep.search import LOWEST, Bracket, highest

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
    trials: "dict[tuple[float, int], Trial]" = field(default_factory=dict, compare=False, repr=False)

    def trial(self, rate: float, count: int = 1) -> "Trial":
        key = (rate, count)
        if key not in self.trials:
            schedule = self.demand.schedule(rate, fleet_requests(self.requests, count), self.seed)
            found = self.simulator(schedule, self.replica, count, self.promise.router, self.seed)
            self.trials[key] = Trial(rate, count, found, attain(self.promise.slo, found.records))
        return self.trials[key]

    def kept(self, rate: float, count: int = 1) -> bool:
        return rate <= count * ceiling(self) and self.trial(rate, count).attained.attained is True

    @property
    def curve(self) -> "list[Trial]":
        """What was tried of one replica, by rate."""
        return sorted((each for each in self.trials.values() if each.count == 1), key=lambda each: each.rate)


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


def ceiling(world: World) -> float:
    """Sessions per second beyond which the line before one replica grows for ever, whatever a short run shows.

    All places are taken then. What a prefix cache finds is not counted: where prompts share, nothing is known.
    """
    prompt, output = world.demand.lengths(world.requests, world.seed)
    steps, limits = world.replica.steps, world.replica.limits
    held = prompt + output / 2
    room = limits.kv_blocks * limits.block_size / (prompt + output)
    places = max(1.0, min(limits.max_num_seqs, room if room > 1 else 1.0))
    shared = world.demand.shares and limits.prefix_cache
    reading = 0.0 if shared else steps.prefill_s * prompt + steps.pair_s * prompt * prompt / 2
    writing = (steps.fixed_s + world.replica.around.between_s) / places + steps.decode_s + steps.kv_s * held
    seconds = (reading + (output - 1) * writing) * world.demand.turns(world.requests, world.seed)
    return _SLACK / seconds if seconds else float("inf")


_SLACK = 1.02  # lengths that are drawn are not their mean


def highest_rate(world: World, within: float) -> Bracket:
    """Of one replica. From half of its ceiling; lower where a promise is so hard that it is kept near nothing only."""
    found = Bracket()
    for lower in (1, LOWEST, LOWEST**2):
        found = highest(world.kept, _START * ceiling(world) / lower, _STEP, within)
        if found.low:
            return found
    return found


def smallest_fleet(world: World, rate: float, guess: int) -> int | None:
    """The fewest replicas that keep the promise at so high a rate; None: not even twice the guess, and some, do."""
    count, most = max(1, guess), 2 * guess + 8
    if world.kept(rate, count):
        while count > 1 and world.kept(rate, count - 1):
            count -= 1
        return count
    while count < most:
        count += 1
        if world.kept(rate, count):
            return count
    return None


def guess(rate: float, each: float) -> int:
    return max(1, ceil(rate / each - 1e-9))


def binding(world: World, found: Bracket) -> str:
    """The term that is missed first beyond the limit; where none is, the machine itself is full."""
    if found.high is None or (found.high, 1) not in world.trials:
        return CAPACITY
    terms = world.trials[found.high, 1].attained.terms
    missed = {term.term: (term.found_s or 0.0) / term.limit_s for term in terms if term.kept is False}
    return max(missed, key=missed.__getitem__) if missed else CAPACITY
