"""What a plan would ask of machines beyond what was measured of them."""

from collections.abc import Iterator
from math import ceil

from twofour.bench.capacity.hull import SLACK
from twofour.bench.capacity.profile import Profile
from twofour.bench.capacity.search import Trial, World
from twofour.prune.errors import InputError


def beyond(profile: Profile, world: World, trial: Trial) -> Iterator[str]:
    """In words, each quantity of a step that goes beyond the largest that was measured."""
    limits, usage = profile.replica.limits, trial.found.usage
    room = limits.kv_blocks * limits.block_size
    longest = world.demand.longest_prompt(world.requests, world.seed)
    asked = (
        (max(each.most_running for each in usage), "sequences at a time"),
        (min(limits.max_num_batched_tokens, longest), "prompt tokens in a step"),
        (ceil(max(each.most_kv_share for each in usage) * room), "tokens in the cache"),
    )
    for (most, what), measured in zip(asked, profile.hull.largest, strict=True):
        if most > measured * (1 + SLACK) + 1:
            yield f"{most:,} {what}, and {measured:,.0f} were measured"


def refuse_beyond(name: str, found: list[str], extrapolate: bool) -> None:
    if found and not extrapolate:
        raise InputError(
            f"the plan would need {name} at {'; '.join(found)}; measure such loads with bench profile, or give "
            "--extrapolate and take the answer for a guess"
        )
