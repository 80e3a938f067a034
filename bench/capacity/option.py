"""What can be bought: a profile, and what an hour of such a machine costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from math import isfinite

from twofour.bench.capacity.profile import Profile
from twofour.bench.money.cost import Price, listed
from twofour.prune.errors import InputError

HOURS = 730.0  # of a month


@dataclass(frozen=True)
class Option:
    profile: Profile
    price: Price | None

    @property
    def name(self) -> str:
        return self.profile.name


def options(profiles: Sequence[Profile], prices: Mapping[str, Price]) -> list[Option]:
    names = [profile.name for profile in profiles]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"two profiles are named {twice[0]}; give each a name of its own")
    if unknown := sorted(prices.keys() - set(names)):
        raise InputError(f"--price names {unknown[0]}, and the profiles are {', '.join(names)}; name one of them")
    return [Option(profile, prices.get(profile.name)) for profile in profiles]


def prices(texts: Sequence[str]) -> dict[str, Price]:
    """Read NAME=2.5, NAME=2.5@2026-05-01 with the day of that price, and NAME=H100 for a GPU of our table."""
    return dict(map(_price, texts))


def _price(text: str) -> tuple[str, Price]:
    name, equals, said = text.partition("=")
    amount, at, day = said.partition("@")
    try:
        if not (name and equals and said):
            raise ValueError
        usd = float(amount)
        as_of = date.fromisoformat(day) if at else None
    except ValueError:
        known = listed(said) if name else []
        if len(known) == 1:
            return name, known[0]
        if known:
            raise InputError(
                f"{said} is several GPUs of the price table: {', '.join(each.name for each in known)}; name one of them"
            ) from None
        raise InputError(
            f"{text!r} is no price; write NAME=2.5 in dollars an hour, NAME=2.5@2026-05-01 with the day of that price, "
            "or NAME=H200 for a GPU of the price table"
        ) from None
    if not (usd > 0 and isfinite(usd)):
        raise InputError(f"a price of {usd:g} dollars per hour for {name}; --price is above 0")
    return name, Price(usd, name, "--price", "given", as_of)
