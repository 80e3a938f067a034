"""What is told of a plan, on a page and at a terminal: the answer in a sentence, remarks, and cells."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from twofour.bench.report import rows

Document = Mapping[str, Any]
ESTIMATE = "estimate, not measured"
EXTRAPOLATED = "extrapolated beyond what was measured"
LEFT_OUT = "left out, as beyond what was measured (--extrapolate answers)"


def remarks(document: Document) -> Iterator[str]:
    """What must be known before the answer."""
    if guessed := [each["name"] for each in document["options"] if each["source"] == "estimate"]:
        yield f"{ESTIMATE}: {', '.join(guessed)}"
    for each in document["options"]:
        if each["beyond"]:
            said = EXTRAPOLATED if each["machines"] is not None else LEFT_OUT
            yield f"{said}: {each['name']} at {'; '.join(each['beyond'])}"
    yield from (f"warning: {warning}" for warning in document["warnings"])


def headline(document: Document) -> str:
    """Which option, how many, how sure that is, what it saves and what it loses."""
    said, best = document["asked"], chosen(document)
    fits = f"{_machines(best, said)} keep {said['slo']} at {said['peak']:.4g} requests/s"
    parts = [fits + _sure(best), *_spends(best), *_against(document, best)]
    return "; ".join(parts) + "."


def chosen(document: Document) -> Document:
    found: Document = next(each for each in document["options"] if each["name"] == document["chosen"])
    return found


def _machines(option: Document, said: Document) -> str:
    count = option["machines"]
    noun = "machine" if count == 1 else "machines"
    spares = f" ({option['replicas']} and {said['spare']} spare)" if said["spare"] else ""
    return f"{count} {noun} of {option['name']}{spares}"


def _sure(option: Document) -> str:
    worlds = option["sure"]["replicas"]["worlds"]
    return f", in {round(option['sure']['holds'] * worlds)} of {worlds} simulated worlds"


def _spends(option: Document) -> list[str]:
    return [f"{_month(option)} a month"] if option["cost"] else []


def _month(option: Document) -> str:
    return f"${option['cost']['usd_per_month']:,.0f}"


def _against(document: Document, best: Document) -> Iterator[str]:
    """The first option beside which the best one is another."""
    first = document["options"][0]
    if first is best:
        return
    if first["machines"] is None:
        yield f"{first['name']} is left out" if first["beyond"] else f"no number of machines of {first['name']} does"
    elif all(each["cost"] for each in document["options"] if each["machines"] is not None):
        saved = 1 - best["cost"]["usd_per_month"] / first["cost"]["usd_per_month"]
        more_or_less = "less" if saved >= 0 else "more"
        yield f"{rows.percent(abs(saved))} {more_or_less} than {_machines(first, document['asked'])}"
    else:
        yield f"{_machines(first, document['asked'])} would do, too"
    yield f"quality loss {quality(best)}"


def quality(option: Document) -> str:
    return "not stated" if option["quality_loss"] is None else rows.percent(option["quality_loss"])


Cell = Callable[[Document], str]
ROWS: Mapping[str, Cell] = {
    "machines, with spares": lambda option: rows.count(option["machines"]),
    "replicas that it takes": lambda option: _replicas(option),
    "highest rate of one, requests/s": lambda option: rows.plain(option["replica"]["highest_rate"]),
    "what binds": lambda option: option["replica"]["binding"],
    "headroom": lambda option: rows.percent(option["headroom"]),
    "utilisation": lambda option: rows.percent(option["utilisation"]),
    "time in steps": lambda option: rows.percent(_peak(option, "busy")),
    "TTFT p50, p95, p99": lambda option: _latency(option, "ttft"),
    "ITL p50, p95, p99": lambda option: _latency(option, "itl"),
    "TPOT p50, p95, p99": lambda option: _latency(option, "tpot"),
    "E2E p50, p95, p99": lambda option: _latency(option, "e2e"),
    "good requests": lambda option: rows.percent(_peak(option, "good_share")),
    "the promise holds in": lambda option: rows.percent(option["sure"] and option["sure"]["holds"]),
    "KV cache at most": lambda option: rows.percent(_peak(option, "most_kv_share")),
    "preemptions": lambda option: rows.count(_peak(option, "preemptions")),
    "$ a month": lambda option: f"{option['cost']['usd_per_month']:,.0f}" if option["cost"] else rows.UNKNOWN,
    "$ per M tokens at capacity": lambda option: _million(option, "at_capacity", "blended"),
    "  input": lambda option: _million(option, "at_capacity", "input"),
    "  output": lambda option: _million(option, "at_capacity", "output"),
    "$ per M tokens at your traffic": lambda option: _million(option, "at_mean", "blended"),
    "  input, at your traffic": lambda option: _million(option, "at_mean", "input"),
    "  output, at your traffic": lambda option: _million(option, "at_mean", "output"),
    "$ per 1,000 good requests": lambda option: rows.dollars(
        option["cost"] and option["cost"]["per_1000_good_requests"]
    ),
    "quality loss": lambda option: quality(option),
}


def cells(document: Document) -> list[tuple[str, list[str]]]:
    """Each row with a cell for each option; what nobody knows is left out."""
    made = [(label, [cell(option) for option in document["options"]]) for label, cell in ROWS.items()]
    terms = [(f"  {name}, 90 % interval", found) for name, found in _intervals(document)]
    return [row for row in [*made, *terms] if set(row[1]) != {rows.UNKNOWN}]


def _replicas(option: Document) -> str:
    if option["replicas"] is None:
        return rows.UNKNOWN
    return (
        f"{option['replicas']} [{_end(option['sure']['replicas'], 'low')}, {_end(option['sure']['replicas'], 'high')}]"
    )


def _end(spread: Document, end: str) -> str:
    return "more" if spread[end] is None else f"{spread[end]:g}"


def _peak(option: Document, name: str) -> Any:
    return option["at_peak"] and option["at_peak"][name]


def _latency(option: Document, name: str) -> str:
    found = _peak(option, name)
    if not found:
        return rows.UNKNOWN
    return ", ".join("-" if found[p] is None else f"{found[p] * 1000:.0f}" for p in ("p50", "p95", "p99")) + " ms"


def _million(option: Document, when: str, kind: str) -> str:
    return rows.dollars(option["cost"] and option["cost"][when][kind])


def _intervals(document: Document) -> Iterator[tuple[str, list[str]]]:
    sure = [option["sure"] for option in document["options"]]
    known = next(each for each in sure if each)
    for term in known["found_s"]:
        yield term, [_interval(each["found_s"][term]) if each else rows.UNKNOWN for each in sure]


def _interval(spread: Document) -> str:
    ends = ("more" if spread[end] is None else f"{spread[end] * 1000:.0f}" for end in ("low", "high"))
    return f"[{', '.join(ends)}] ms"


def asked(said: Document) -> str:
    mean = "" if said["mean"] == said["peak"] else f", {said['mean']:.4g} on average"
    return (
        f"peak {said['peak']:.4g} requests/s{mean}; prompts of {said['prompt_tokens']:.0f} and answers of "
        f"{said['output_tokens']:.0f} tokens; router: {said['router'].replace('_', ' ')}; seed {said['seed']}"
    )
