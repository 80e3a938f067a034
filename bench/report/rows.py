"""The table that a person reads: the same rows for the terminal and for the page."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Document = Mapping[str, Any]

UNKNOWN = "not measured"
WORDS = {"better": "better", "worse": "worse", "same": "same", "unclear": "no clear difference", None: ""}


@dataclass(frozen=True)
class Row:
    """One quantity; `point` is 2:4 over dense, None where a quotient says nothing or is not known."""

    group: str
    label: str
    dense: str
    sparse: str
    point: float | None
    low: float | None
    high: float | None
    verdict: str | None

    @property
    def ratio(self) -> str:
        return times(self.point)

    @property
    def interval(self) -> str:
        return interval(self.low, self.high)

    @property
    def word(self) -> str:
        return WORDS[self.verdict]


def rows(document: Document) -> list[Row]:
    return [*_quality(document), *_speed(document), *_memory(document), *_cost(document)]


def headline(document: Document) -> str:
    """The primary metric in a sentence, with the load that it holds for."""
    primary = document["primary"]
    figure = (document["cost"] or {}).get("blended") if primary == "cost" else document["metrics"][primary]
    name = "cost per token" if primary == "cost" else "time to the end of an answer (median)"
    if not figure or figure["ratio"] is None:
        return f"The {name} of 2:4 against dense: {UNKNOWN}."
    ratio = figure["ratio"]
    text = f"{times(ratio['point'])} {interval(ratio['low'], ratio['high'])}".strip()
    return f"2:4 against dense, {name}: {text}, {WORDS[figure['verdict']]} at this load."


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
    judged = quality.get("perplexity") or {}
    kl, agreement = quality.get("kl"), quality.get("agreement")
    perplexities = plain(quality.get("dense_perplexity")), plain(quality.get("sparse_perplexity"))
    return [
        Row("Quality", "perplexity", *perplexities, judged.get("ratio"), None, None, judged.get("verdict")),
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
    return Row("Quality", label, dense, sparse, None, None, None, verdict)


_SPEED = {
    "tpot_mean": ("inter-token latency (TPOT, mean)", milliseconds),
    "itl_gap_p95": ("gap between tokens (p95)", milliseconds),
    "e2e_p50": ("whole answer (median)", milliseconds),
    "output_tokens_per_s": ("throughput, output tokens/s", plain),
}


def _speed(document: Document) -> list[Row]:
    metrics = document["metrics"]
    # In an open loop a request that had to wait to be sent has waited.
    first = "ttft_sched_p50" if document["load"]["rate"] else "ttft_p50"
    shown = {first: ("time to first token (median)", milliseconds), **_SPEED}
    return [_compared("Speed", label, metrics[name], form) for name, (label, form) in shown.items()]


def _memory(document: Document) -> list[Row]:
    memory = document["memory"]
    labels = {
        "weight_bytes": "weights, resident",
        "linear_bytes": "of it in the linears",
        "device_peak_bytes": "peak of the engine, loading too",
    }
    found = []
    for name, label in labels.items():
        dense, sparse = (megabytes((memory[arm] or {}).get(name)) for arm in ("dense", "sparse"))
        point, verdict = memory[name]["ratio"], memory[name]["verdict"]
        found.append(Row("Memory", label, dense, sparse, point, None, None, verdict))
    return found


def _cost(document: Document) -> list[Row]:
    labels = {"blended": "$ per million tokens", "output_only": "$ per million output tokens"}
    found = []
    for kind, label in labels.items():
        cost = (document["cost"] or {}).get(kind, {})
        found.append(_compared("Cost", label, cost, dollars))
    return found


def _compared(group: str, label: str, figure: Mapping[str, Any], form: Callable[[float | None], str]) -> Row:
    ratio = figure.get("ratio") or {"point": None, "low": None, "high": None}
    dense, sparse = form(figure.get("dense")), form(figure.get("sparse"))
    return Row(group, label, dense, sparse, ratio["point"], ratio["low"], ratio["high"], figure.get("verdict"))
