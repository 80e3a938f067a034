"""A schedule as a file: JSON, one line of what holds for all, then a line for each request.

The digest of a schedule is the SHA-256 of its file. The nonce of a run is not in it: the same schedule again is the
same traffic, with other first words unless the nonce is given, too.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from twofour.bench.load.records import Message, Request
from twofour.bench.load.workload import Limits, Schedule
from twofour.prune.errors import InputError
from twofour.prune.format.folder import write_whole

KIND = "twofour.bench.schedule"
SCHEMA_VERSION = 1
_LONGEST_S = 1e9


def write(schedule: Schedule, path: Path) -> None:
    write_whole(path, "".join(lines(schedule)))


def digest(schedule: Schedule) -> str:
    found = hashlib.sha256()
    for line in lines(schedule):
        found.update(line.encode())
    return found.hexdigest()


def lines(schedule: Schedule) -> Iterator[str]:
    head = {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "concurrency": schedule.concurrency,
        "limits": asdict(schedule.limits),
        "made_of": dict(schedule.made_of),
    }
    yield json.dumps(head) + "\n"
    yield from (json.dumps(_plain(request)) + "\n" for request in schedule.requests)


def _plain(request: Request) -> dict[str, Any]:
    """Without what is as it is for most requests."""
    plain = {name: value for name, value in vars(request).items() if value != _DEFAULTS[name]}
    return plain | ({"history": [message._asdict() for message in request.history]} if request.history else {})


_DEFAULTS = {field.name: field.default for field in fields(Request)}


def read(path: Path) -> Schedule:
    try:
        with path.open(encoding="utf-8") as file:
            head, *rest = map(json.loads, file)
        kind = (head["kind"], head["schema_version"])
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a file of --schedule-out") from None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise _no_schedule(path, "it is no JSON lines of one") from None
    if kind != (KIND, SCHEMA_VERSION):
        raise _no_schedule(path, f"it says {kind[0]!r}, version {kind[1]!r}")
    try:
        requests = list(map(_request, rest))
        _refuse_wrong(head, requests)
        _refuse_loose_ends(requests)
        return Schedule(requests, head["concurrency"], head["made_of"], Limits(**head["limits"]))
    except (TypeError, KeyError, ValueError) as error:
        raise _no_schedule(path, f"{type(error).__name__}: {error}") from None


def _request(line: Mapping[str, Any]) -> Request:
    return Request(**dict(line) | {"history": tuple(Message(**message) for message in line.get("history", ()))})


def _refuse_wrong(head: Mapping[str, Any], requests: Sequence[Request]) -> None:
    """What cannot be sent, as from a file that was edited."""
    at_once = head["concurrency"]
    if not (at_once is None or (isinstance(at_once, int) and at_once >= 1)) or not isinstance(head["made_of"], dict):
        raise ValueError(f"its concurrency is {at_once!r}, made of {head['made_of']!r}")
    for request in requests:
        planned, times = request.prompt_tokens, (request.at_s, request.think_s)
        can_be = (
            isinstance(request.prompt, str) and isinstance(planned, int | None) and type(request.output_tokens) is int
        )
        can_be = can_be and all(isinstance(each, int | float) and 0 <= each < _LONGEST_S for each in times)
        if not can_be or request.output_tokens < 1:
            raise ValueError(f"request {request.index} cannot be sent")


def _refuse_loose_ends(requests: Sequence[Request]) -> None:
    """Indices are unique, and a turn comes after the one that it waits for."""
    known = set[int | None]([None])
    for request in requests:
        if request.index in known or request.after not in known:
            raise ValueError(f"request {request.index} comes twice, or before {request.after}, which it waits for")
        known.add(request.index)
    if not requests:
        raise ValueError("no requests are in it")


def _no_schedule(path: Path, why: str) -> InputError:
    return InputError(f"{path} is no schedule that can be read: {why}; give a file of --schedule-out")
