"""Dollars per million tokens, from a price per hour and measured throughput.

With P dollars per hour, and Ti input and To output tokens per second as delivered in the run:
- blended = 1e6 P / (3600 (Ti + To))
- output only = 1e6 P / (3600 To): all the cost on the output; never to be added to an input price
- as price sheets split it, an output token worth r = 4 input tokens: in = 1e6 P / (3600 (Ti + r To)) and
  out = r in; then (Ti in + To out) / 1e6 is the cost per second again

The figures hold at the load of the run, the machine fully used: at 40 % utilisation each is 2.5 times as
much. Prices age, so they are data (prices.yaml); the ratio of two arms on one machine needs none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from importlib.resources import files
from math import isfinite
from typing import Any

from twofour.bench.hardware import Hardware
from twofour.prune.errors import InputError

OUTPUT_WEIGHT = 4.0  # r
STALE_AFTER_DAYS = 90


@dataclass(frozen=True)
class Price:
    """Of one machine, on demand; `as_of` None: given on the command line."""

    usd_per_hour: float
    name: str
    source: str
    kind: str
    as_of: date | None = None

    def age_days(self, today: date) -> int | None:
        return None if self.as_of is None else (today - self.as_of).days

    def warning(self, today: date) -> str | None:
        age = self.age_days(today)
        if age is None or age <= STALE_AFTER_DAYS:
            return None
        return f"the price of {self.name} is {age} days old; give today's with --price-per-hour"


@dataclass(frozen=True)
class Cost:
    """Dollars per million tokens."""

    blended: float
    output_only: float
    split_input: float
    split_output: float


def given(usd_per_hour: float) -> Price:
    if not (usd_per_hour > 0 and isfinite(usd_per_hour)):
        raise InputError(f"a price of {usd_per_hour:g} dollars per hour; --price-per-hour is above 0")
    return Price(usd_per_hour, "this machine", "--price-per-hour", "given")


def price_of(machine: Hardware, on_gpu: bool, table: Mapping[str, Any] | None = None) -> Price | None:
    """The table's price of such a machine; None where it has none."""
    table = table or prices()
    return _gpu_price(machine, table) if on_gpu else _cpu_price(machine.cpus, table)


def prices() -> dict[str, Any]:
    import yaml

    text = files("twofour.bench").joinpath("prices.yaml").read_text(encoding="utf-8")
    table: dict[str, Any] = yaml.safe_load(text)
    return table


def cost(usd_per_hour: float, input_tokens_per_s: float, output_tokens_per_s: float) -> Cost:
    usd_per_second = usd_per_hour / 3600
    split_input = 1e6 * usd_per_second / (input_tokens_per_s + OUTPUT_WEIGHT * output_tokens_per_s)
    return Cost(
        blended=1e6 * usd_per_second / (input_tokens_per_s + output_tokens_per_s),
        output_only=1e6 * usd_per_second / output_tokens_per_s,
        split_input=split_input,
        split_output=OUTPUT_WEIGHT * split_input,
    )


def _cpu_price(cpus: int, table: Mapping[str, Any]) -> Price | None:
    listing = table["cpu"]
    large_enough = [row for row in listing["instances"] if row["cpus"] >= cpus]
    if not large_enough:
        return None
    row = min(large_enough, key=lambda row: float(row["usd_per_hour"]))
    return _price({**listing, **row})


def _gpu_price(machine: Hardware, table: Mapping[str, Any]) -> Price | None:
    """Of one GPU; None where there are several kinds, or one that the table does not know."""
    names = {gpu.name for gpu in machine.gpus}
    fitting = [row for row in table["gpu"] for name in names if all(word in name for word in row["match"])]
    return _price(fitting[0]) if len(names) == 1 and fitting else None


def _price(row: Mapping[str, Any]) -> Price:
    return Price(row["usd_per_hour"], row["name"], row["source"], row["kind"], row["as_of"])
