"""The result for the eye, from the document alone: who took part, then a block for each place."""

from collections.abc import Iterator, Mapping
from typing import Any

from twofour.bench.decode.table import times

Document = Mapping[str, Any]
NEVER_SLOWER = 0.98  # what a ratio's interval must reach
HEADS = {"step": "ms a step", "whole": "s in all", "first": "ms to 1st"}
SCALES = {"step": 1e3, "whole": 1.0, "first": 1e3}


def table(document: Document) -> str:
    lines = [f"on: {document['hardware']['summary']}", *_arms(document), "", *_legend(document)]
    for cell in document["cells"]:
        lines += ["", *_cell(document, cell)]
    return "\n".join([*lines, "", *_endings(document)])


def _arms(document: Document) -> Iterator[str]:
    width = max(map(len, document["arms"]))
    for name, arm in document["arms"].items():
        how = arm["quantization"] or "vLLM's own linears"
        yield f"  {name:<{width}}  {arm['model']} in vLLM {arm['versions']['vllm']}: {how}, {arm['dtype']}"
    engine = ", ".join(f"{key}={value}" for key, value in document["engine"].items())
    if engine:
        yield f"  engine: {engine}"


def _legend(document: Document) -> list[str]:
    base, rounds = document["baseline"], document["rounds"]
    return [
        f"medians of {rounds} rounds; {base} / it: how much faster than {base}, geometric mean over the rounds",
        "[95 % interval]; tok/s: generated, or of the prompt; in all: prompts and answers, from the first to the last",
    ]


def _cell(document: Document, cell: Mapping[str, Any]) -> Iterator[str]:
    busy = "" if cell["quiet"] is not False else f"; BUSY: others took {cell['others']:.0%} of the CPUs"
    yield f"{_what(document, cell)}{busy}"
    width, base = max(map(len, cell["arms"])), f"{document['baseline']} / it"
    names = list(next(iter(cell["arms"].values())))
    yield f"  {'':{width}}" + "".join(f"{HEADS[name]:>11}{'tok/s':>8}{base:>21}" for name in names)
    for arm, figures in cell["arms"].items():
        own = arm == document["baseline"]
        yield f"  {arm:<{width}}" + "".join(_quantity(name, each, own) for name, each in figures.items())


def _what(document: Document, cell: Mapping[str, Any]) -> str:
    if not cell["steps"]:
        return f"prompts of {cell['prompt']:,} tokens, one at a time"
    answers = 1 + document["steps_not_counted"] + cell["steps"]
    return f"{cell['batch']} at a time, prompts of {cell['prompt']:,} tokens, answers of {answers}"


def _quantity(name: str, figures: Mapping[str, Any], own: bool) -> str:
    text = "-" if own else times(figures["against"])
    return f"{figures['median_s'] * SCALES[name]:>11.2f}{figures['tokens_per_s']:>8,.1f}{text:>21}"


def _endings(document: Document) -> Iterator[str]:
    if document["cut_off"]:
        yield "cut off: what whole rounds gave is shown"
    for cell in document["cells"]:
        for arm, figures in cell["arms"].items():
            if any(_is_slower(each["against"]) for each in figures.values()):
                yield f"SLOWER than {document['baseline']}: {arm}, {_what(document, cell)}"
    yield "VALID" if document["valid"] else "INVALID: do not quote these numbers"


def _is_slower(ratio: Mapping[str, Any]) -> bool:
    return (ratio["point"] if ratio["high"] is None else ratio["high"]) < NEVER_SLOWER
