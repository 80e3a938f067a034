"""Which of several replicas a request goes to, by how many requests each has under way and what prompts share."""

import random
from collections.abc import Callable, Hashable, Mapping, Sequence

Choose = Callable[[Sequence[int], Hashable], int]  # requests under way by replica, what the prompt begins with -> which
_BOUND = 1.25  # of the mean load: beyond it, a replica gets none for the sake of its cache


def round_robin(count: int, seed: int) -> Choose:
    turn = -1

    def choose(loads: Sequence[int], begins: Hashable) -> int:
        nonlocal turn
        turn = (turn + 1) % count
        return turn

    return choose


def drawn(count: int, seed: int) -> Choose:
    draw = random.Random(f"{seed}/router")
    return lambda loads, begins: draw.randrange(count)


def least_loaded(count: int, seed: int) -> Choose:
    """The first of those with the fewest under way."""
    return lambda loads, begins: loads.index(min(loads))


def power_of_two(count: int, seed: int) -> Choose:
    """The less loaded of two that are drawn, the first drawn where both are alike."""
    draw = random.Random(f"{seed}/router")
    return lambda loads, begins: min(draw.sample(range(count), min(2, count)), key=loads.__getitem__)


def prefix_affinity(count: int, seed: int) -> Choose:
    """Where the last with the same beginning went, unless it has too many under way; else the least loaded."""
    last: dict[Hashable, int] = {}

    def choose(loads: Sequence[int], begins: Hashable) -> int:
        chosen = last.get(begins) if begins is not None else None
        if chosen is None or loads[chosen] > 1 + _BOUND * sum(loads) / count:
            chosen = loads.index(min(loads))
        last[begins] = chosen
        return chosen

    return choose


ROUTERS: Mapping[str, Callable[[int, int], Choose]] = {
    "round_robin": round_robin,
    "random": drawn,
    "least_loaded": least_loaded,
    "power_of_two": power_of_two,
    "prefix_affinity": prefix_affinity,
}
BLIND = ("round_robin", "random")  # they do not look at the loads
