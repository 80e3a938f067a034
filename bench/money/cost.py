"""Dollars per million tokens, from a price per hour and measured throughput.

With P dollars per hour, and Ti input and To output tokens per second as delivered in the run:
- blended = 1e6 P / (3600 (Ti + To))
- output only = 1e6 P / (3600 To): all the cost on the output; never to be added to an input price
- as price sheets split it, an output token worth r = 4 input tokens: in = 1e6 P / (3600 (Ti + r To)) and
  out = r in; then (Ti in + To out) / 1e6 is the cost per second again

The figures hold at the load of the run, the machine fully used: at 40 % utilisation each is 2.5 times as
much. Prices age, so they are data (prices.yaml); the ratio of two arms on one machine needs none. A machine that the
table does not hold has no price, with the reason: the price of a similar one would be a guess.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.resources import files
from math import isfinite
from typing import Any

from twofour.bench.hardware import Gpu, Hardware
from twofour.prune.errors import InputError

OUTPUT_WEIGHT = 4.0  # r
STALE_AFTER_DAYS = 90
MEMORY_WITHIN = 0.1  # of what the table says: what a driver keeps for itself varies
X86 = ("x86_64", "AMD64")


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


def price_of(machine: Hardware, on_gpu: bool) -> Price | str:
    """The table's price of such a machine, or why it has none."""
    return _gpu_price(machine.gpus, prices()) if on_gpu else _cpu_price(machine, prices())


def prices() -> dict[str, Any]:
    import yaml

    text = files("twofour.bench.money").joinpath("prices.yaml").read_text(encoding="utf-8")
    table: dict[str, Any] = yaml.safe_load(text)
    return table


def listed(name: str) -> list[Price]:
    """The table's prices of GPUs of this name, or whose names begin with this word."""
    rows = [row for row in prices()["gpu"] if spelled(name) in map(spelled, [row["name"], *row["names"]])]
    rows = rows or [row for row in prices()["gpu"] if spelled(name) == spelled(row["name"]).partition(" ")[0]]
    return list(map(_price, rows))


def cost(usd_per_hour: float, input_tokens_per_s: float, output_tokens_per_s: float) -> Cost:
    usd_per_second = usd_per_hour / 3600
    split_input = 1e6 * usd_per_second / (input_tokens_per_s + OUTPUT_WEIGHT * output_tokens_per_s)
    return Cost(
        blended=1e6 * usd_per_second / (input_tokens_per_s + output_tokens_per_s),
        output_only=1e6 * usd_per_second / output_tokens_per_s,
        split_input=split_input,
        split_output=OUTPUT_WEIGHT * split_input,
    )


def _cpu_price(machine: Hardware, table: Mapping[str, Any]) -> Price | str:
    """Of the cheapest instance that has its CPUs and its memory."""
    if machine.system.split()[-1] not in X86:
        return f"the price table has x86-64 instances only, and this machine is {machine.system}"
    if machine.memory_bytes is None:
        return "this system does not say how much memory it has"
    gib = machine.memory_bytes / 2**30
    rows = [{**listing, **row} for listing in table["cpu"] for row in listing["instances"]]
    large_enough = [row for row in rows if row["cpus"] >= machine.cpus and row["memory_gib"] >= gib]
    if not large_enough:
        return f"no instance of the price table has {machine.cpus} CPUs and {gib:.0f} GiB of memory"
    return _price(min(large_enough, key=lambda row: float(row["usd_per_hour"])))


def _gpu_price(gpus: Sequence[Gpu], table: Mapping[str, Any]) -> Price | str:
    """Of all GPUs of the machine, if they are of one kind: the same name, as much memory."""
    if not gpus:
        return "no GPU was found"
    if any(gpu.memory_bytes is None for gpu in gpus):
        return f"the driver does not say how much memory the {gpus[0].name} has"
    kinds = sorted({f"{gpu.name} with {(gpu.memory_bytes or 0) / 2**30:.0f} GiB" for gpu in gpus})
    if len(kinds) > 1:
        return f"the machine has GPUs of several kinds: {', '.join(kinds)}"
    row = next((row for row in table["gpu"] if _is_such(row, gpus[0])), None)
    return _price(row, len(gpus)) if row else f"the price table has no {kinds[0]}"


def _is_such(row: Mapping[str, Any], gpu: Gpu) -> bool:
    as_large = abs((gpu.memory_bytes or 0) / (row["memory_gib"] * 2**30) - 1) <= MEMORY_WITHIN
    return as_large and spelled(gpu.name) in map(spelled, row["names"])


def spelled(name: str) -> str:
    """A GPU's name without what drivers spell one way or another: the maker before it, hyphens, case."""
    return " ".join(name.lower().replace("-", " ").split()).removeprefix("nvidia ")


def _price(row: Mapping[str, Any], count: int = 1) -> Price:
    name = f"{count} x {row['name']}" if count > 1 else row["name"]
    return Price(count * row["usd_per_hour"], name, row["source"], row["kind"], row["as_of"])
