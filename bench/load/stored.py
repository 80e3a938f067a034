"""A Run read again from its document, so that whatever shows a run also shows one that was kept.

Its clock begins with the run: `started_at` is 0. Prompts are not kept, and neither are keys.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from math import inf
from typing import Any, get_type_hints

import numpy as np
from pydantic import ConfigDict, TypeAdapter

from twofour.bench.load import access
from twofour.bench.load.records import Chunks, Record, Request
from twofour.bench.load.run import Run
from twofour.bench.load.service import Service
from twofour.bench.load.workload import Limits, Schedule
from twofour.prune.errors import InputError


def read(document: Mapping[str, Any]) -> Run:
    """Raises InputError where the document holds no requests."""
    if "records" not in document:
        raise InputError('the document holds no requests, as "bench run --json" prints it; give what --out wrote')
    load, records = document["load"], document["records"]
    own: dict[str, Any] = {
        "service": Service(**_known(load), access=access.told(load)),
        "schedule": Schedule(
            list(map(_request, records)), load["concurrency"], _made_of(load), Limits(**document.get("limits", {}))
        ),
        "nonce": load["nonce"],
        "template_tokens": load.get("template_tokens", 0),
        "message_tokens": load.get("message_tokens", 0.0),
        "started_at": 0.0,
    }
    kinds = get_type_hints(Run)
    kept: dict[str, Any] = {each.name: document[each.name] for each in fields(Run) if each.name in document}
    if kept.get("slo"):
        kept["slo"] = kept["slo"] | {"terms": list(map(_term, kept["slo"]["terms"]))}
    kept["records"] = [{**record, "chunks": _chunks(record["chunks"])} for record in kept["records"]]
    return Run(**own, **{name: _typed(kinds[name], value) for name, value in kept.items()})


def _typed(kind: Any, value: Any) -> Any:
    made_already = ConfigDict(arbitrary_types_allowed=True) if kind == Sequence[Record] else None
    return TypeAdapter(kind, config=made_already).validate_python(value)


def _chunks(kept: Sequence[tuple[float, int]]) -> Chunks:
    """Raises ValueError for what an array would take and change: null, and parts of a token."""
    if kept and np.asarray([tokens for _, tokens in kept]).dtype.kind not in "iu":
        raise ValueError("a chunk holds no whole number of tokens")
    made = Chunks.of(kept)
    if not np.isfinite(made.at).all():
        raise ValueError("a chunk came at no time")
    return made


def _term(term: Mapping[str, Any]) -> dict[str, Any]:
    """Null is what was infinite, too: then the term was missed."""
    return {**term, "found_s": inf if term["found_s"] is None and term["kept"] is False else term["found_s"]}


def _known(load: Mapping[str, Any]) -> dict[str, Any]:
    return {each.name: load[each.name] for each in fields(Service) if each.name in load}


def _made_of(load: Mapping[str, Any]) -> dict[str, Any]:
    """What the document says of the load, without the server and what belongs to the run."""
    others = Service(load["url"], load["model"]).described().keys() | {"nonce", "template_tokens", "message_tokens"}
    return {name: value for name, value in load.items() if name not in others}


def _request(record: Mapping[str, Any]) -> Request:
    return Request(
        record["index"],
        record["scheduled_at"],
        "",
        record["planned_prompt_tokens"],
        record["planned_output_tokens"],
    )
