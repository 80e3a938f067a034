"""What came to a service, from a file: when, and how many tokens in and out.

Three kinds are known by their columns: the CSV of Azure's LLM inference traces (TIMESTAMP, ContextTokens,
GeneratedTokens), that of BurstGPT (Timestamp in seconds, Request tokens, Response tokens), and Mooncake's JSON lines
(timestamp in milliseconds, input_length, output_length, hash_ids). A file of lengths may leave the time out; a CSV of
two columns without names has prompt and answer. Requests without an answer are left out and counted.

`hash_ids` name the blocks of 512 tokens that a prompt consists of: equal beginnings have equal numbers.
"""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from math import isfinite
from pathlib import Path
from typing import Any

from twofour.prune.errors import InputError

BLOCK = 512

_TIME = ("timestamp",)
_PROMPT = ("contexttokens", "request tokens", "input_length", "prompt_tokens")
_ANSWER = ("generatedtokens", "response tokens", "output_length", "output_tokens")


@dataclass(frozen=True)
class Row:
    at_s: float | None  # after the first; None: the file does not say
    prompt_tokens: int
    output_tokens: int
    blocks: Sequence[int] = ()


@dataclass(frozen=True)
class Trace:
    name: str
    rows: Sequence[Row]  # in the order of their times
    left_out: int


def read(path: Path) -> Trace:
    """Raise InputError, which names the line, where it is no trace."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            text = file.read()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); give the file of a trace") from None
    lines = text.splitlines()
    plain, unit_s = (_json_rows(lines, path), 1e-3) if text.lstrip().startswith("{") else (_csv_rows(lines), 1.0)
    rows = [_row(each, unit_s, f"{path}, line {number}") for number, each in plain]
    answered = [row for row in rows if row.output_tokens and row.prompt_tokens]
    if not answered:
        raise InputError(f"{path} has no request with an answer; give the file of a trace")
    return Trace(path.name, _from_the_first(answered), len(rows) - len(answered))


def _csv_rows(lines: Sequence[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Each line with its number, names in lower case."""
    unnamed = bool(lines) and all(cell.strip().isdecimal() for cell in lines[0].split(","))
    reader = csv.DictReader(lines, ["prompt_tokens", "output_tokens"] if unnamed else None)
    for row in reader:
        yield reader.line_num, {str(name).strip().lower(): value for name, value in row.items()}


def _json_rows(lines: Sequence[str], path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, {str(name).lower(): value for name, value in json.loads(line).items()}
            except (ValueError, AttributeError):
                raise InputError(f"{path}, line {number} is no JSON object; give a trace as JSON lines") from None


def _row(plain: Mapping[str, Any], unit_s: float, where: str) -> Row:
    at, prompt, answer = (_first_of(names, plain) for names in (_TIME, _PROMPT, _ANSWER))
    try:
        at_s = None if at is None else _seconds(at, unit_s)
        row = Row(at_s, int(prompt), int(answer), tuple(map(int, plain.get("hash_ids") or ())))
    except (TypeError, ValueError):
        raise InputError(
            f"{where} has no numbers of tokens, or no time: {str(dict(plain))[:120]}; "
            "Azure's and BurstGPT's CSV and Mooncake's JSON lines are read"
        ) from None
    if row.prompt_tokens < 0 or row.output_tokens < 0 or not isfinite(row.at_s or 0.0):
        raise InputError(f"{where} has impossible numbers: {str(dict(plain))[:120]}")
    return row


def _first_of(names: Sequence[str], plain: Mapping[str, Any]) -> Any:
    return next((plain[name] for name in names if name in plain), None)


def _seconds(at: Any, unit_s: float) -> float:
    try:
        return float(at) * unit_s
    except ValueError:
        return datetime.fromisoformat(at).timestamp()


def _from_the_first(rows: Sequence[Row]) -> list[Row]:
    times = [row.at_s for row in rows if row.at_s is not None]
    if len(times) < len(rows):
        return [replace(row, at_s=None) for row in rows]
    ordered = sorted(rows, key=lambda row: row.at_s or 0.0)
    return [replace(row, at_s=(row.at_s or 0.0) - min(times)) for row in ordered]
