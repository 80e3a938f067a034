"""The result for the eye, from the document alone: the ceiling, each model's sum, then every matrix."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

_RATIO_WIDTH = 25
_LEGEND = (
    "below: median ms ± half of p10..p90; GB/s of the weight's bytes as laid out (share of the ceiling); how much",
    "       faster the second is than the first, geometric mean over the rounds [95 % interval]",
)


def table(document: Mapping[str, Any]) -> str:
    absent = [
        "",
        *(f"not measured: {who}: {why}" for who, why in document["not_measured"].items()),
        *_failures(document),
    ]
    if not document["cells"]:
        return "\n".join([*_heading(document), *absent])
    lines = [*_heading(document), *_LEGEND, "", *_ceiling(document["ceiling"])]
    for model in document["models"]:
        lines += _model(model, [each for each in document["sums"] if each["model"] == model["name"]])
    for part, rows, columns in dict.fromkeys(map(_place, document["cells"])):
        own = [cell for cell in document["cells"] if _place(cell) == (part, rows, columns)]
        lines += ["", f"{part} {rows:,} x {columns:,}{_served(own[0])}", *_block(own)]
    return "\n".join(
        [*lines, *absent, *verdict(document["never_slower"]), *map(_gate, document["gates"]), _validity(document)]
    )


def verdict(judged: Mapping[str, Any]) -> list[str]:
    """What --verify-never-slower says."""
    limits, histogram = judged["limits"], judged["histogram"]
    calls = ", ".join(f"{tokens}: {share:.0%}" for tokens, share in histogram.items())
    lines = [
        f"never slower than torch dense: {judged['ratio']}, upper end of the interval at least {limits['decode']:g} up "
        f"to {judged['decode_tokens']} tokens, {limits['prefill']:g} beyond; weighted at least {limits['weighted']:g}",
        f"  weighted by the calls with so many tokens: {calls}",
    ]
    lines += [
        f"  SLOWER  {each['part']} {each['rows']:,} x {each['columns']:,}, {each['tokens']} tokens ({each['kernel']}): "
        f"{_ratio(each['ratio'])}, limit {each['limit']:g}"
        for each in judged["failures"]
    ]
    lines += [_weighted(each) for each in judged["weighted"]]
    word = {True: "passed", False: "FAILED", None: "not measured"}[judged["passed"]]
    return [*lines, f"  {word}: {len(judged['failures'])} of {judged['judged']} cells are slower"]


def _failures(document: Mapping[str, Any]) -> list[str]:
    """Who was dropped, the notes on the others, and whether all was measured."""
    lines = [
        f"dropped: {each['contender']}, {each['part']} {each['rows']:,} x {each['columns']:,}"
        + (f", {each['tokens']} tokens" if each["tokens"] else "")
        + f": {each['reason']}"
        for each in document.get("dropped", ())
    ]
    known = (cell["contenders"].items() for cell in document["cells"])
    notes = {(who, figures["note"]) for own in known for who, figures in own if who != "served" and figures["note"]}
    lines += [f"note: {who}: {note}" for who, note in sorted(notes)]
    return lines if document.get("complete", True) else [*lines, "incomplete: it ended before all was measured"]


def _heading(document: Mapping[str, Any]) -> list[str]:
    isa, torch_isa, threads = document["isa"], document["torch_isa"], document["threads"]
    held = " ".join(f"{name}={value}" for name, value in document["torch_environment"].items())
    who = f"{threads} thread{'s' * (threads > 1)}" if document["device"] == "cpu" else document["device"]
    return [
        f"on:    {document['hardware']['summary']}",
        f"with:  {isa}, torch {document['versions'].get('torch')} ({torch_isa}{f', held by {held}' if held else ''})",
        f"how:   {who}, {document['clock']}, {document['rounds']} rounds in turns, weights cold "
        f"({document['ring_bytes'] / 1e6:.0f} MB of copies each), seed {document['seed']}",
    ]


def _ceiling(ceiling: Mapping[str, Any]) -> list[str]:
    others = "".join(f"; {each['bytes_per_s'] / 1e9:.1f} by a {each['method']}" for each in ceiling["others"])
    lines = [f"ceiling: {ceiling['bytes_per_s'] / 1e9:.1f} GB/s, measured by a {ceiling['method']}{others}. So at best"]
    for each, best in ceiling["formats"].items():
        microseconds, factor = best["s_per_million_weights"] * 1e6, best["against_dense_bf16"]
        lines.append(
            f"  {each:11}{best['bytes_per_weight']:7.3f} bytes per weight, {microseconds:6.1f} us per million weights, "
            f"{factor:.2f}x as fast as dense bf16"
        )
    return lines


def _model(model: Mapping[str, Any], sums: Sequence[Mapping[str, Any]]) -> list[str]:
    count = sum(linear["count"] for linear in model["linears"])
    return ["", f"{model['name']}: all {count} linears of its blocks", *_block(sums)] if sums else []


def _block(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Times, bandwidths and ratios, one line for each number of tokens; a dash where a contender was dropped."""
    lines = [*_part("ms", rows, "contenders", _time, 18), *_part("GB/s", rows, "contenders", _bandwidth, 18)]
    return [*lines, *_part("faster", rows, "ratios", _ratio, _RATIO_WIDTH)]


def _part(
    title: str, rows: Sequence[Mapping[str, Any]], key: str, shown: Callable[[Mapping[str, Any]], str], width: int
) -> list[str]:
    names = list(dict.fromkeys(name for row in rows for name in row[key]))
    cells = [[shown(row[key][name]) if name in row[key] else "-" for name in names] for row in rows]
    return [
        _line(title, names, width),
        *(_line(row["tokens"], own, width) for row, own in zip(rows, cells, strict=True)),
    ]


def _line(first: object, cells: Sequence[str], width: int) -> str:
    return f"  {first!s:>6}" + "".join(f"{cell:>{width}}" for cell in cells)


def _time(figures: Mapping[str, Any]) -> str:
    spread = (figures["p90_s"] - figures["p10_s"]) / 2 / figures["median_s"]
    return f"{figures['median_s'] * 1e3:.3f} ±{spread:.0%}"


def _bandwidth(figures: Mapping[str, Any]) -> str:
    share = figures["share_of_ceiling"]
    return f"{figures['bytes_per_s'] / 1e9:.1f}" + ("" if share is None else f" ({share:.0%})")


def _ratio(ratio: Mapping[str, Any]) -> str:
    return f"{ratio['point']:.2f}x [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def _place(cell: Mapping[str, Any]) -> tuple[str, int, int]:
    return cell["part"], cell["rows"], cell["columns"]


def _served(cell: Mapping[str, Any]) -> str:
    """Which kernel is `served` here, with its note."""
    served = cell["contenders"].get("served")
    if served is None:
        return ""
    return f", served by {served['kernel']}" + (f" ({served['note']})" if served["note"] else "")


def _weighted(each: Mapping[str, Any]) -> str:
    if each["ratio"] is None:
        return f"  not measured  {each['model']}, weighted: none of these numbers of tokens"
    word = "passed" if each["passed"] else "SLOWER"
    share = "" if each["share_of_calls"] > 0.999 else f", over {each['share_of_calls']:.0%} of the calls"
    return f"  {word}  {each['model']}, weighted: {_ratio(each['ratio'])}{share}"


def _gate(gate: Mapping[str, Any]) -> str:
    word = {True: "passed", False: "FAILED", None: "not measured"}[gate["passed"]]
    value = "" if gate["value"] is None else f": {gate['value']:.1%}, at most {gate['limit']:.0%}"
    return f"  {word}  {gate['name']}{value}" + (f"; {gate['remedy']}" if gate["passed"] is False else "")


def _validity(document: Mapping[str, Any]) -> str:
    return "VALID" if document["valid"] else "INVALID: do not quote these numbers"
