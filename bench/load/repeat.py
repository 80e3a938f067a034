"""One load several times, each time from another seed: how sure the figures are.

Requests of one run wait in the same queue, so one run does not say how far its percentiles are from those of the next.
Intervals are taken over the runs. Latencies are those of the requests that ended well within the steady window of each.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from twofour.bench.load import gaps, metrics, run
from twofour.bench.load.run import Run
from twofour.bench.load.table import ROWS, asked, promised
from twofour.bench.load.wire import shown
from twofour.bench.stats import FEWEST, Estimate, independent, matched_ratio, named, replicated
from twofour.prune.errors import InputError

KIND = "twofour.bench.repeat"
SCHEMA_VERSION = 1
RATES = ("output_tokens_per_s", "total_tokens_per_s", "requests_per_s")
Intervals = dict[str, Estimate | None]


@dataclass(frozen=True)
class Repeated:
    """cut_off: the last run was interrupted, and counts for nothing, or there are fewer than were asked for."""

    runs: Sequence[Run]
    cut_off: bool = False

    @property
    def valid(self) -> bool:
        return not self.cut_off and all(each.valid for each in self.runs)


def document(done: Repeated) -> dict[str, Any]:
    """Without its requests: what each run found, and the intervals over all of them."""
    each = [run.document(one, with_records=False) for one in done.runs]
    return {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "started": each[0]["started"],
        "load": each[0]["load"],
        "valid": done.valid,
        "cut_off": done.cut_off,
        "percentiles": {
            name: {p: _plain(found) for p, found in of_times.items()}
            for name, of_times in percentiles(done.runs).items()
        },
        "rates": {name: _plain(found) for name, found in rates(done.runs).items()},
        "runs": each,
    }


def percentiles(runs: Sequence[Run]) -> dict[str, Intervals]:
    """By quantity and percentile; None: too few values, or a percentile of 0, as of chunks that came together."""
    good = [[record for record in metrics.steady(one.records) if record.error is None] for one in runs]
    each = [metrics.quantities(records) for records in good]
    found = {name: _over_runs([of_one[name] for of_one in each]) for name in (each[0] if each else ())}
    pools = [gaps.pooled(records) for records in good]
    real = sum(independent(groups) for _, groups in pools)
    return found | {"itl_gap": _over_runs([pool for pool, _ in pools], real)}


def _over_runs(values: Sequence[Sequence[float] | gaps.Times], real: int | None = None) -> Intervals:
    real = sum(map(len, values)) if real is None else real
    return {named(p): _interval(values, p) if real >= fewest else None for p, fewest in FEWEST.items()}


def _interval(values: Sequence[Sequence[float] | gaps.Times], percent: float) -> Estimate | None:
    try:
        return replicated(values, percent)
    except InputError:  # a run has no such times, or they are 0
        return None


def rates(runs: Sequence[Run]) -> Intervals:
    """Geometric means over the runs."""
    found = Intervals()
    for name in RATES:
        values = [value for one in runs if (value := getattr(one.summary, name))]
        mean = matched_ratio([1.0] * len(values), values) if values and len(values) == len(runs) else None
        found[name] = Estimate(mean.point, mean.low, mean.high, mean.n) if mean else None
    return found


def table(done: Repeated, kept: dict[str, Any]) -> str:
    """kept: its document."""
    first = done.runs[0]
    seeds = ", ".join(str(one.schedule.made_of["seed"]) for one in done.runs)
    head = f"{first.service.model} at {shown(first.service.url)}: {asked(first.schedule)}"
    slo = [line for one in done.runs if one.slo for line in promised(one.slo)[:1]]
    return "\n".join([head, f"{len(done.runs)} runs, seeds {seeds}", *slo, "", *_lines(kept), _verdict(kept)])


def of_document(kept: dict[str, Any]) -> str:
    """The table of one that was kept."""
    load, seeds = kept["load"], ", ".join(str(one["load"]["seed"]) for one in kept["runs"])
    head = f"{load['model']} at {shown(load['url'])}: {len(kept['runs'])} runs, seeds {seeds}"
    return "\n".join([head, "", *_lines(kept), _verdict(kept)])


def _lines(kept: dict[str, Any]) -> list[str]:
    columns = ("p50", "p95", "p99")
    rows = [
        f"{label:28}" + "".join(f"{_ms(kept['percentiles'][name][p]):>28}" for p in columns)
        for name, label in ROWS.items()
        if name in kept["percentiles"]
    ]
    head = f"{'ms [95 % interval over runs]':28}" + "".join(f"{p:>28}" for p in columns)
    said = [f"{name}: {_of(found, 1, 2)}" for name, found in kept["rates"].items()]
    return [head, *rows, "", *said]


def _verdict(kept: dict[str, Any]) -> str:
    if kept["cut_off"]:
        return "CUT OFF before the end: do not quote these numbers"
    bad = [str(one["load"]["seed"]) for one in kept["runs"] if not one["valid"]]
    return f"INVALID: a gate failed with seed {', '.join(bad)}: do not quote these numbers" if bad else "VALID"


def _ms(found: dict[str, Any] | None) -> str:
    return _of(found, 1000, 2)


def _of(found: dict[str, Any] | None, times: float, digits: int) -> str:
    if found is None:
        return "-"
    low, high = (None if found[end] is None else f"{times * found[end]:.{digits}f}" for end in ("low", "high"))
    return f"{times * found['point']:.{digits}f}" + (f" [{low}, {high}]" if low and high else "")


def _plain(found: Estimate | None) -> dict[str, Any] | None:
    return None if found is None else asdict(found)
