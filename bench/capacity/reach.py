"""What would be asked of machines beyond what was measured of them."""

from collections.abc import Iterator, Sequence

from twofour.bench.capacity.hull import SLACK
from twofour.bench.capacity.profile import Profile
from twofour.bench.capacity.simulate import Usage
from twofour.prune.errors import InputError


def beyond(profile: Profile, usage: Sequence[Usage]) -> Iterator[str]:
    """In words, each quantity of a step that goes beyond the largest that was measured, on any replica."""
    asked = (
        (max(each.most_running for each in usage), "sequences at a time"),
        (max(each.most_prefill for each in usage), "prompt tokens in a step"),
        (max(each.most_attended for each in usage), "tokens of the cache attended to in a step"),
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
