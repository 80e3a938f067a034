"""Rows of requests: as many as were sent, with the quantities that the summary is made of."""

import csv
import io
import json
from dataclasses import replace

import pytest
from bench_findings import CLOSED, run

from twofour.bench.load.per_request import csv_of, jsonl_of
from twofour.bench.load.run import Run


@pytest.fixture
def done() -> Run:
    whole = run(CLOSED, 0, 0.01)
    whole.records[5].error = 'reset: "gone", it says'
    return whole


def test_a_row_has_what_was_measured_of_its_request(done: Run) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_of(done))))
    assert [int(row["index"]) for row in rows] == list(range(12))
    first, later = rows[0], rows[1]
    # Each request waits 20 ms for its first token and 10 ms for each of nine more; it is sent when the last has ended.
    assert float(first["sent_at"]) == 0 and float(later["sent_at"]) == pytest.approx(0.11)
    assert [float(later[name]) for name in ("ttft", "tpot", "e2e", "longest_gap")] == pytest.approx(
        [0.02, 0.01, 0.11, 0.01]
    )
    assert (first["planned_output_tokens"], first["output_tokens"]) == ("10", "10")
    assert {row["in_window"] for row in rows} == {"True"}


def test_a_failed_request_has_its_error_and_no_quantities(done: Run) -> None:
    row = list(csv.DictReader(io.StringIO(csv_of(done))))[5]
    assert row["error"] == 'reset: "gone", it says' and row["ttft"] == row["longest_gap"] == ""


def test_json_lines_are_the_same_rows_with_their_chunks(done: Run) -> None:
    lines = [json.loads(line) for line in jsonl_of(done)]
    rows = list(csv.DictReader(io.StringIO(csv_of(done))))
    assert [list(row) for row in rows] == [[name for name in line if name != "chunks"] for line in lines]
    assert lines[5]["ttft"] is None and lines[0]["in_window"] is True
    assert [at for at, _ in lines[1]["chunks"]] == pytest.approx([0.13 + 0.01 * token for token in range(10)])


def test_what_was_sent_outside_the_window_says_so(done: Run) -> None:
    late = replace(done, summary=replace(done.summary, window_s=(0.5, 9.0)))
    assert [json.loads(line)["in_window"] for line in jsonl_of(late)] == [False] * 5 + [True] * 7


def test_nothing_sent_is_a_table_without_rows(done: Run) -> None:
    assert csv_of(replace(done, records=[])) == "index\n" and list(jsonl_of(replace(done, records=[]))) == []
