"""The table that a person reads: the same rows for the terminal and for the page."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from twofour.bench.report.arms import ARMS, arm_label

Document = Mapping[str, Any]

UNKNOWN = "not measured"
WORDS = {"better": "better", "worse": "worse", "same": "same", "unclear": "no clear difference", None: ""}


@dataclass(frozen=True)
class Ratio:
    """2:4 over one of the dense baselines; `point` None: a quotient says nothing, or is not known."""

    point: float | None = None
    low: float | None = None
    high: float | None = None
    verdict: str | None = None

    @property
    def times(self) -> str:
        return times(self.point)

    @property
    def interval(self) -> str:
        return interval(self.low, self.high)

    @property
    def word(self) -> str:
        return WORDS[self.verdict]

    def __str__(self) -> str:
        return f"{self.times} {self.interval}".strip()


@dataclass(frozen=True)
class Row:
    """One quantity of all arms, as text, with what 2:4 is to the headline's dense and to torch dense."""

    group: str
    label: str
    torch_dense: str
    dense: str
    sparse: str
    ratio: Ratio
    to_torch_dense: Ratio


def rows(document: Document) -> list[Row]:
    return [*_quality(document), *_speed(document), *_memory(document), *_cost(document)]


def dated(document: Document) -> str:
    """The day of the price, and how old it was at the run; nothing where it was given for the run."""
    return price_dated(document["cost"]["price"]["as_of"], document["started"])


def price_dated(as_of: str | None, started: str) -> str:
    """The same, of a price and a run by their days."""
    if not as_of:
        return ""
    days = (datetime.fromisoformat(started).date() - date.fromisoformat(as_of)).days
    return f", as of {as_of}, {days} days before the run"


def headline(document: Document) -> str:
    """The primary metric in a sentence, with the load that it holds for."""
    primary = document["primary"]
    figure = (document["cost"] or {}).get("blended") if primary == "cost" else document["metrics"][primary]
    name = "cost per token" if primary == "cost" else "time to the end of an answer (median)"
    ratio, to_torch_dense = ratio_of(figure), ratio_of((figure or {}).get("to_torch_dense"))
    against = f"2:4 against {arm_label('dense', document['arms'])}, {name}"
    if ratio.point is None:
        return f"{against}: {UNKNOWN}."
    also = f"; against torch dense {to_torch_dense}" if to_torch_dense.point else ""
    return f"{against}: {ratio}, {ratio.word} at this load{also}."


def kernels_text(kernels: Mapping[str, int]) -> str:
    """Which kernels multiply, as the server says it when it starts."""
    return ", ".join(f"{name} for {linears} linears" for name, linears in kernels.items())


def times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.3f}x" if ratio < 10 else f"{ratio:.1f}x"


def interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"[{low:.3f}, {high:.3f}]"


def milliseconds(seconds: float | None) -> str:
    return UNKNOWN if seconds is None else f"{_three(seconds * 1000)} ms"


def megabytes(size: float | None) -> str:
    return UNKNOWN if size is None else f"{size / 1e6:,.1f} MB"


def dollars(amount: float | None) -> str:
    return UNKNOWN if amount is None else f"${amount:,.4f}" if amount < 1 else f"${amount:,.2f}"


def plain(value: float | None) -> str:
    return UNKNOWN if value is None else _three(value)


def count(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value:,}"


def percent(share: float | None) -> str:
    return UNKNOWN if share is None else f"{100 * share:.1f} %"


def _three(value: float) -> str:
    """Three significant digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")


def _quality(document: Document) -> list[Row]:
    quality = document["quality"] or {}
    kl, agreement = quality.get("kl"), quality.get("agreement")
    perplexities = plain(quality.get("dense_perplexity")), plain(quality.get("sparse_perplexity"))
    return [
        Row("Quality", "perplexity", "", *perplexities, ratio_of(quality.get("perplexity")), Ratio()),
        _loss("KL to dense, nats per token", "" if kl is None else "0", plain(kl), kl),
        _loss(
            "same likeliest token as dense",
            "" if agreement is None else "100 %",
            percent(agreement),
            None if agreement is None else 1 - agreement,
        ),
    ]


def _loss(label: str, dense: str, sparse: str, loss: float | None) -> Row:
    """What is measured from the dense model, so that dense is perfect by definition."""
    verdict = None if loss is None else "worse" if loss > 0.0005 else "same"
    return Row("Quality", label, "", dense, sparse, Ratio(verdict=verdict), Ratio())


def _speed(document: Document) -> list[Row]:
    metrics = document["metrics"]
    shown = speed_shown(document)
    return [_compared("Speed", label, metrics[name], metrics[name], form) for name, (label, form) in shown.items()]


def speed_shown(document: Document) -> dict[str, tuple[str, Callable[[float | None], str]]]:
    """The metrics that a reader sees, what they are called, and how they are written."""
    # In an open loop the time that a request waits to be sent counts.
    first = "ttft_sched_p50" if document["load"]["rate"] else "ttft_p50"
    return {first: ("time to first token (median)", milliseconds), **_SPEED}


_SPEED = {
    "tpot_mean": ("inter-token latency (TPOT, mean)", milliseconds),
    "itl_gap_p95": ("gap between tokens (p95)", milliseconds),
    "e2e_p50": ("whole answer (median)", milliseconds),
    "output_tokens_per_s": ("throughput, output tokens/s", plain),
}


def _memory(document: Document) -> list[Row]:
    memory = document["memory"]
    labels = {
        "weight_bytes": "weights, resident",
        "linear_bytes": "of it in the linears",
        "device_peak_bytes": "peak of the engine, loading too",
    }
    held = {name: {arm: (memory.get(arm) or {}).get(name) for arm in ARMS} for name in labels}
    return [_compared("Memory", label, held[name], memory[name], megabytes) for name, label in labels.items()]


def _cost(document: Document) -> list[Row]:
    labels = {"blended": "$ per million tokens", "output_only": "$ per million output tokens"}
    costs = document["cost"] or {}
    if "good_requests" in costs:
        labels["good_requests"] = "$ per 1,000 good requests"
    return [
        _compared("Cost", label, costs.get(kind, {}), costs.get(kind, {}), dollars) for kind, label in labels.items()
    ]


def _compared(
    group: str, label: str, figures: Mapping[str, Any], ratios: Mapping[str, Any], form: Callable[[float | None], str]
) -> Row:
    torch_dense, dense, sparse = (form(figures.get(arm)) for arm in ARMS)
    return Row(group, label, torch_dense, dense, sparse, ratio_of(ratios), ratio_of(ratios.get("to_torch_dense")))


def ratio_of(compared: Mapping[str, Any] | None) -> Ratio:
    """Of a figure's `ratio`, a number or one with an interval, and its `verdict`."""
    if not compared or compared.get("ratio") is None:
        return Ratio()
    found, verdict = compared["ratio"], compared["verdict"]
    if isinstance(found, Mapping):
        return Ratio(found["point"], found["low"], found["high"], verdict)
    return Ratio(found, verdict=verdict)
