"""What a document says, as a gate needs it: its runs, by the place where each was made.

A place is a load on a server: what one `run` has, a pace of a `sweep`, an arm of a `compare`. Its runs are replicates.
Of a search the place is the server, and each round has one figure more, `max_rate`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twofour.bench.comparison import document as compare
from twofour.bench.load import repeat
from twofour.bench.load import run as single
from twofour.bench.report.arms import SEVERAL
from twofour.bench.sweep import document as sweep
from twofour.prune.errors import InputError

WHOLE = ""  # the one place of a run
# What two loads need not have in common: where it was, and what makes one run another than the next.
_OWN = {"url", "model", "nonce", "seed", "rounds", "timeout_s", "order", "summary", "template_tokens"}

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Sample:
    """One run: the seed of its schedule, and its figures as a run's summary has them."""

    seed: int | None
    figures: Mapping[str, Any]


@dataclass(frozen=True)
class Evidence:
    source: str
    load: Mapping[str, Any]  # what must be equal where two are compared
    machine: Mapping[str, Any] | None  # None: not known
    spoiled: Sequence[str]  # files that say that they are not valid
    places: Mapping[str, Sequence[Sample]]


def read(path: Path) -> Evidence:
    """Read a file, or a folder of files of `run` under one load. Raises InputError."""
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path} holds no .json; give what bench run, sweep or compare has written")
    each = [_of_file(file) for file in files]
    first = each[0]
    if any(
        (one.load, one.machine, one.places.keys()) != (first.load, first.machine, first.places.keys()) for one in each
    ):
        raise InputError(f"the files of {path} are of different loads or machines; keep those of one load in a folder")
    places = {name: [sample for one in each for sample in one.places[name]] for name in first.places}
    return Evidence(str(path), first.load, first.machine, [name for one in each for name in one.spoiled], places)


def _of_file(file: Path) -> Evidence:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        places = _PLACES[document["kind"]](document)
        valid, load = document["valid"], {name: value for name, value in document["load"].items() if name not in _OWN}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{file} is no document of bench run, sweep or compare with its runs ({error!r})") from error
    return Evidence(
        str(file), load | {"kind": document["kind"]}, _machine(document), [] if valid else [str(file)], places
    )


def _machine(document: Document) -> dict[str, Any] | None:
    hardware = document.get("hardware")
    return {name: hardware.get(name) for name in ("cpu", "cpus", "gpus")} if hardware else None


def _of_run(document: Document) -> dict[str, list[Sample]]:
    return {WHOLE: [_sample(document)]}


def _of_repeat(document: Document) -> dict[str, list[Sample]]:
    return {WHOLE: [_sample(run) for run in document["runs"]]}


def _of_compare(document: Document) -> dict[str, list[Sample]]:
    return {arm: [_sample(run) for run in document["runs"] if run["arm"] == arm] for arm in document["arms"]}


def _of_sweep(document: Document) -> dict[str, list[Sample]]:
    if document["limits"] is not None:
        pairs = [(each["server"], _searched(each)) for each in document["searches"]]
    else:
        pairs = [(_place(cell), _sample(run)) for cell in document["cells"] for run in cell["runs"]]
    places = dict[str, list[Sample]]()
    for place, sample in pairs:
        places.setdefault(place, []).append(sample)
    return places if len(document["servers"]) > 1 else dict(_nameless(places, document["servers"][0]["name"]))


def _nameless(places: Mapping[str, list[Sample]], name: str) -> Iterator[tuple[str, list[Sample]]]:
    """The one server of a sweep may be at another address the next time."""
    for place, samples in places.items():
        yield place.removeprefix(name).removeprefix(", "), samples


def _place(cell: Document) -> str:
    pace = f"{cell['concurrency']} at a time" if cell["rate"] is None else f"{cell['rate']:.4g} requests/s"
    return f"{cell['server']}, {pace}"


def _sample(run: Document) -> Sample:
    slo = run.get("slo") or {}
    return Sample(run["load"].get("seed"), {**run["summary"], "goodput_per_s": slo.get("goodput_per_s")})


def _searched(search: Document) -> Sample:
    """A search that ended early names no rate that it could compare."""
    known = None if search["why"] else search["low"]
    figures = ("goodput_per_s", "output_tokens_per_s", "total_tokens_per_s")
    return Sample(search["seed"], {"max_rate": known, **{name: search[name] for name in figures}})


_PLACES = {
    single.KIND: _of_run,
    repeat.KIND: _of_repeat,
    sweep.KIND: _of_sweep,
    compare.KIND: _of_compare,
    SEVERAL: _of_compare,
}
