"""The result for the eye, from the document alone: who took part, then a block for each context, batch and threads."""

from collections.abc import Iterator, Mapping
from typing import Any

Document = Mapping[str, Any]


def table(document: Document) -> str:
    lines = [f"on: {document['hardware']['summary']}", *_arms(document), "", *_legend(document)]
    for cell in document["cells"]:
        lines += ["", *_cell(document, cell)]
    return "\n".join([*lines, "", *_endings(document)])


def _arms(document: Document) -> Iterator[str]:
    width = max(map(len, document["arms"]))
    for name, arm in document["arms"].items():
        options = "".join(f", {key} {value}" for key, value in arm["options"].items())
        runtime = arm["runtime"] if arm["runner"] == arm["runtime"] else f"{arm['runtime']} ({arm['runner']})"
        weights = f"{arm['weight_bytes'] / 1e6:,.0f} MB of weights a step"
        yield f"  {name:<{width}}  {arm['model']} by {runtime}{options}; {weights}"


def _legend(document: Document) -> list[str]:
    counted = f"{document['steps']} steps in each of {document['rounds']} rounds"
    return [
        f"ms: a step, median and tenth percentile of {counted}; bytes: weights and cache that it reads;",
        "share: of the bandwidth that this machine was measured to have; NAME / it: how much faster than NAME,",
        "geometric mean over the rounds [95 % interval]; same: how many greedy tokens, from the first on, are NAME's,",
        f"of {document['steps'] + document['steps_not_counted']}",
    ]


def _cell(document: Document, cell: Mapping[str, Any]) -> Iterator[str]:
    bandwidth = document["bandwidth"][str(cell["threads"])]["bytes_per_s"] / 1e9
    busy = "" if cell["quiet"] is not False else f"; BUSY: something waited {cell['cpu_pressure']:.0%} of the time"
    threads = f"{cell['threads']} thread{'s' * (cell['threads'] > 1)}"
    yield f"{threads}, context {cell['context']:,}, batch {cell['batch']} (read at {bandwidth:.1f} GB/s){busy}"
    width = max(map(len, cell["arms"]))
    heads = "".join(f"{f'{name} / it':>20}{'same':>6}" for name in document["baselines"])
    yield f"  {'':{width}}{'ms':>8}{'p10':>8}{'MB':>7}{'GB/s':>6}{'share':>7}{heads}"
    for name, arm in cell["arms"].items():
        yield f"  {name:<{width}}{_figures(arm)}{''.join(_against(arm, each) for each in document['baselines'])}"


def _figures(arm: Mapping[str, Any]) -> str:
    megabytes = (arm["weight_bytes"] + arm["cached_bytes"]) / 1e6
    times = f"{arm['median_s'] * 1e3:>8.2f}{arm['p10_s'] * 1e3:>8.2f}"
    return f"{times}{megabytes:>7,.0f}{arm['bytes_per_s'] / 1e9:>6.1f}{arm['share_of_bandwidth']:>7.0%}"


def _against(arm: Mapping[str, Any], name: str) -> str:
    if name not in arm["against"]:
        return f"{'-':>20}{'-':>6}"
    return f"{times(arm['against'][name]):>20}{arm['same_tokens'][name]:>6}"


def times(ratio: Mapping[str, Any]) -> str:
    """How much faster, with its interval where there is one."""
    spread = "" if ratio["low"] is None else f" [{ratio['low']:.2f}, {ratio['high']:.2f}]"
    return f"{ratio['point']:.2f}x{spread}"


def _endings(document: Document) -> Iterator[str]:
    if document["cut_off"]:
        yield "cut off: what whole rounds gave is shown"
    yield "VALID" if document["valid"] else "INVALID: do not quote these numbers"
