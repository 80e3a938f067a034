"""A sweep for a person: a block for each pace, then the limits."""

from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

_WHY = {
    "alone": "requests that come one at a time miss it, too",
    "client": "the client was late: give it a core of its own, or a machine",
    "unknown": "too few requests were steady, or the server counts no tokens",
}
Document = Mapping[str, Any]


def table(document: Document) -> str:
    load = document["load"]
    lines = [
        f"prompts of {load['prompt_tokens']} and answers of {load['output_tokens']} tokens, {load['rounds']} rounds, "
        f"seed {load['seed']}; ratios to the first, with a 95 % interval over rounds",
        *body(document),
    ]
    return "\n".join([*lines, "VALID" if document["valid"] else "INVALID: do not quote these numbers"])


def body(document: Document) -> Iterator[str]:
    """What was found, without what was asked."""
    if document["load"]["slo"]:
        yield f"SLO: {document['load']['slo']}"
    yield from _cells(document) if document["limits"] is None else _limits(document)
    if not document["complete"]:
        yield f"CUT OFF: {_done(document)}"


def _done(document: Document) -> str:
    if document["limits"] is None:
        return f"rounds of each, {', '.join(str(cell['rounds']) for cell in document['cells'])}"
    return f"searches done: {len(document['searches'])} of {len(document['limits']) * document['load']['rounds']}"


def _cells(document: Document) -> Iterator[str]:
    promised = f"{'goodput/s':>11}" if document["load"]["slo"] else ""
    yield (f"{'':28}{'tokens/s':>10}{'ratio':>22}{'TTFT p50':>10}{'p95':>10}{'ITL p50':>10}{'p95':>10}  ms{promised}")
    for cell in document["cells"]:
        yield _row(cell)
        yield from _remarks(cell)
    for each in document["highest"] or ():
        yield f"{each['server']} keeps the SLO {_up_to(each)}"


def _row(cell: Document) -> str:
    rates = cell["output_tokens_per_s"]
    latencies = [cell[name][p] for name in (_waited(cell), "itl_tok") for p in ("p50", "p95")]
    numbers = "".join(f"{'-' if value is None else f'{value * 1e3:.1f}':>10}" for value in latencies)
    failed = f"  {cell['failed']} FAILED" if cell["failed"] else ""
    rate = f"{median(rates):.1f}" if rates else "-"
    return f"{_pace(cell):>16}, {cell['server']:10}{rate:>10}{_times(cell):>22}{numbers}{_goodput(cell)}{failed}"


def _waited(cell: Document) -> str:
    """What a user waits for the first token."""
    return "ttft" if cell["rate"] is None else "ttft_sched"


def _pace(cell: Document) -> str:
    return f"{cell['concurrency']} at a time" if cell["rate"] is None else f"{cell['rate']:.4g} requests/s"


def _times(figure: Document) -> str:
    ratio = figure["of_the_first"]
    return "-" if ratio is None else f"{ratio['point']:.2f}x{_interval(ratio)}"


def _interval(ratio: Document) -> str:
    return f" [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio["low"] else ""


def _goodput(cell: Document) -> str:
    known = [value for value in cell["goodput_per_s"] or () if value is not None]
    if not known:
        return ""
    word = "  kept" if cell["attained"] and all(cell["attained"]) else "  missed" if False in cell["attained"] else ""
    return f"{median(known):>15.2f}{word}"


def _remarks(cell: Document) -> Iterator[str]:
    if cell["over_capacity"]:
        yield "    over capacity: latencies are as long as the run; no higher rate was asked"
    yield from (f"    not valid: {name}" for name in cell["invalid"])


def _up_to(best: Document) -> str:
    if best["concurrency"] is None and best["rate"] is None:
        return "nowhere on this ladder"
    return f"up to {_pace(best)}"


def _limits(document: Document) -> Iterator[str]:
    yield f"{'':12}{'highest rate that keeps it':>34}{'ratio':>22}{'goodput/s':>12}{'tokens/s':>12}"
    for limit in document["limits"]:
        own = [each for each in document["searches"] if each["server"] == limit["server"]]
        middles = [_middle([each[name] for each in own]) for name in ("goodput_per_s", "output_tokens_per_s")]
        figures = "".join(f"{'-' if value is None else f'{value:.2f}':>12}" for value in middles)
        yield f"{limit['server']:12}{_highest(limit):>34}{_times(limit):>22}{figures}"
        yield from (f"    {_WHY[why]}" for why in limit["why"])
    for name in sorted({name for cell in document["cells"] for name in cell["invalid"]}):
        yield f"    not valid: {name}"


def _middle(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known and len(known) == len(values) else None


def _highest(limit: Document) -> str:
    rate = limit["rate"]
    if rate is None:
        return "none"
    return f"{'at least ' if limit['at_least'] else ''}{rate['point']:.3f} requests/s{_interval(rate)}"
