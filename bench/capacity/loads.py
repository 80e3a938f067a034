"""What a server is asked while it is profiled: prompts of many lengths alone, a ladder of clients, two rates."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from twofour.bench.capacity.profile import EngineLimits
from twofour.bench.load.workload import NONCE_WORDS, Lengths, Limits
from twofour.bench.traffic.lengths import Mixture
from twofour.bench.traffic.traffic import Rate, Traffic

ALONE = "alone"
RUNGS = 5  # of the ladder
SHARES = (0.5, 0.8)  # of the most requests a second that the ladder has shown
_WARM_UP = 2  # requests
_FEWEST, _FIRST = 16, 512  # requests of a visit; of one before anything is known
_FEW = 4  # requests of an open loop, however slow
_SPARE = 2.0  # the time ends a visit, not its requests


@dataclass(frozen=True)
class Shape:
    """The lengths that a plan will ask for: only what was measured can be planned."""

    prompt_tokens: Lengths | Mixture
    output_tokens: Lengths | Mixture
    seed: int = 0


def ladder(limits: EngineLimits, shape: Shape, most: int | None = None) -> list[int]:
    """Clients at a time, from two to as many as the engine runs, or `most`; evenly spaced by their logarithm."""
    each = shape.prompt_tokens.mean + shape.output_tokens.mean
    top = min(limits.max_num_seqs, int(limits.kv_blocks * limits.block_size // each), most or limits.max_num_seqs)
    return sorted({round(2 * (max(top, 2) / 2) ** (rung / (RUNGS - 1))) for rung in range(RUNGS)})


def names(clients: Sequence[int]) -> list[str]:
    return [ALONE, *(f"{n} at a time" for n in clients), *(f"{share:.0%} of the rate" for share in SHARES)]


def traffic(
    name: str, clients: Sequence[int], limits: EngineLimits, shape: Shape, seconds: float, rate: float | None
) -> Traffic:
    """One of `names` for so long. rate: the most requests a second so far; None: nothing is known yet."""
    needed = _FIRST if rate is None else max(_FEWEST, round(_SPARE * rate * seconds))
    load = Traffic(
        requests=needed,
        prompt_tokens=shape.prompt_tokens,
        output_tokens=shape.output_tokens,
        seed=shape.seed,
        limits=Limits(duration_s=seconds, warm_up=_WARM_UP),
    )
    if name == ALONE:
        return replace(load, concurrency=1, prompt_tokens=_spread(shape.prompt_tokens, limits))
    at_a_time = {f"{n} at a time": n for n in clients}
    if name in at_a_time:
        return replace(load, concurrency=at_a_time[name], requests=max(needed, 2 * at_a_time[name]))
    asked = {f"{share:.0%} of the rate": share * (rate or 1.0) for share in SHARES}[name]
    come = max(_FEW, round(asked * seconds))
    return replace(load, rate=Rate(asked), requests=come, limits=Limits(warm_up=_WARM_UP))


def _spread(prompts: Lengths | Mixture, limits: EngineLimits) -> Mixture:
    """A quarter of the usual length, as it is, and four times, as far as the context goes."""
    longest = min(limits.context_length, limits.kv_blocks * limits.block_size) // 2
    means = [max(NONCE_WORDS + 1, min(longest, round(prompts.mean * factor))) for factor in (0.25, 1, 4)]
    return Mixture((1 / 3, 1 / 3, 1 / 3), tuple(map(Lengths, means)))
