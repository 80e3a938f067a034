"""A Run read again from its document, so that whatever shows a run also shows one that was kept.

Its clock begins with the run: `started_at` is 0. Prompts are not kept, and neither are keys.
"""

from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime
from typing import Any

from pydantic import TypeAdapter

from twofour.bench.load.gates import Gate
from twofour.bench.load.metrics import Summary
from twofour.bench.load.records import Record, Request
from twofour.bench.load.run import Run
from twofour.bench.load.service import Service
from twofour.bench.load.workload import Schedule
from twofour.prune.errors import InputError


def read(document: Mapping[str, Any]) -> Run:
    """Raises InputError where the document holds no requests."""
    if "records" not in document:
        raise InputError('the document holds no requests, as "bench run --json" prints it; give what --out wrote')
    load, records = dict(document["load"]), document["records"]
    nonce = load.pop("nonce")
    service = Service(**{each.name: load.pop(each.name) for each in fields(Service) if each.name in load})
    return Run(
        service,
        Schedule([_request(record) for record in records], load["concurrency"], load),
        nonce,
        datetime.fromisoformat(document["started"]),
        0.0,
        TypeAdapter(list[Record]).validate_python(records),
        TypeAdapter(Summary).validate_python(document["summary"]),
        TypeAdapter(list[Gate]).validate_python(document["gates"]),
        document["cut_off"],
    )


def _request(record: Mapping[str, Any]) -> Request:
    return Request(
        record["index"],
        record["scheduled_at"],
        "",
        record["planned_prompt_tokens"],
        record["planned_output_tokens"],
    )
