"""A run as rows, one for each request that was sent: CSV for spreadsheets, JSON lines for programs.

Times are seconds; `*_at` are after the start of the run. Nothing is an empty cell, or null.
"""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from twofour.bench.load import gaps, metrics
from twofour.bench.load.records import TIMES, Record
from twofour.bench.load.run import Run

_PLAIN = ("prompt_tokens", "output_tokens", "cached_tokens", "finish_reason", "status", "error", "reconnected")


def csv_of(run: Run) -> str:
    text = io.StringIO()
    rows = list(_rows(run))
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["index"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def jsonl_of(run: Run) -> Iterator[str]:
    """With every chunk: when it came, and its tokens. Line by line, as all together may be too large to be held."""
    chunks = (record.chunks.plain(run.started_at) for record in run.records)
    whole = (row | {"chunks": each} for row, each in zip(_rows(run), chunks, strict=True))
    return (json.dumps(row, allow_nan=False) + "\n" for row in whole)


def _rows(run: Run) -> Iterator[dict[str, Any]]:
    planned = {request.index: request for request in run.schedule.requests}
    for record in run.records:
        request = planned[record.index]
        yield {
            "index": record.index,
            "in_window": _counts(record, run),
            "planned_prompt_tokens": request.prompt_tokens,
            "planned_output_tokens": request.output_tokens,
            **{name: getattr(record, name) for name in _PLAIN},
            **{name: _after(getattr(record, name), run.started_at) for name in TIMES},
            **_quantities(record),
        }


def _counts(record: Record, run: Run) -> bool:
    """Whether its latencies are in the summary's."""
    window = run.summary.window_s
    return window is not None and window[0] <= metrics.sent(record) - run.started_at <= window[1]


def _after(at: float | None, started_at: float) -> float | None:
    return None if at is None else at - started_at


def _quantities(record: Record) -> dict[str, float | None]:
    """Those of `metrics`, and the longest wait for a chunk; nothing of a request that failed."""
    if record.error is not None:
        return dict.fromkeys((*metrics.quantities([]), "longest_gap"))
    each = metrics.quantities([record])
    known = {name: values[0] if values else None for name, values in each.items()}
    return known | {"longest_gap": max(gaps.of(record).tolist(), default=None)}
