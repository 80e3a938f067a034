import hashlib
import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twofour.bench.load import schedule_file
from twofour.bench.load.records import Message, Request
from twofour.bench.load.workload import Lengths, Limits, Schedule, synthetic
from twofour.prune.errors import InputError, OutputError

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SECONDS = st.floats(0, 1e6)
REQUESTS = st.builds(
    Request,
    index=st.just(0),
    at_s=SECONDS,
    prompt=TEXTS,
    prompt_tokens=st.none() | st.integers(1, 9),
    output_tokens=st.integers(1, 9),
    think_s=SECONDS,
    history=st.lists(st.builds(Message, TEXTS, TEXTS), max_size=3).map(tuple),
    family=st.none() | TEXTS,
)
SCHEDULES = st.builds(
    lambda requests, concurrency, made_of, limits: Schedule(
        [replace(each, index=i, after=i - 1 if i % 3 else None) for i, each in enumerate(requests)],
        concurrency,
        made_of,
        limits,
    ),
    st.lists(REQUESTS, min_size=1, max_size=6),
    st.none() | st.integers(1, 9),
    st.dictionaries(TEXTS, st.none() | st.integers() | TEXTS, max_size=3),
    st.builds(Limits, st.none() | SECONDS, st.none() | st.integers(1, 9), st.booleans(), st.none() | st.integers(0, 9)),
)


@settings(max_examples=30)
@given(SCHEDULES)
def test_what_is_read_is_what_was_written_and_the_digest_is_that_of_the_file(schedule: Schedule) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "schedule.jsonl"
        schedule_file.write(schedule, path)
        again = schedule_file.read(path)
        assert again == schedule
        assert hashlib.sha256(path.read_bytes()).hexdigest() == schedule_file.digest(schedule)
        assert schedule_file.digest(again) == schedule_file.digest(schedule)


def test_a_line_holds_what_another_tool_needs(tmp_path: Path) -> None:
    schedule = synthetic(2, Lengths(8), Lengths(3), 1, rate=2.0)
    schedule_file.write(schedule, tmp_path / "s.jsonl")
    head, *lines = map(json.loads, (tmp_path / "s.jsonl").read_text().splitlines())
    assert (head["kind"], head["concurrency"], head["made_of"]["rate"]) == ("twofour.bench.schedule", None, 2.0)
    assert [set(line) for line in lines] == [{"index", "at_s", "prompt", "prompt_tokens", "output_tokens"}] * 2
    assert [line["at_s"] for line in lines] == [request.at_s for request in schedule.requests]


@pytest.mark.parametrize(
    "change", [{"at_s": 9.0}, {"prompt": "x"}, {"output_tokens": 4}, {"think_s": 1.0}, {"family": "x"}]
)
def test_another_request_is_another_digest(change: dict[str, object]) -> None:
    schedule = synthetic(3, Lengths(8), Lengths(3), 1)
    other = [*schedule.requests[:2], replace(schedule.requests[2], **change)]  # type: ignore[arg-type]
    assert schedule_file.digest(replace(schedule, requests=other)) != schedule_file.digest(schedule)


HEAD = '{"kind": "twofour.bench.schedule", "schema_version": 1, "concurrency": 1, "limits": {}, "made_of": {}}\n'
ONE = '{"index": 0, "at_s": 0.0, "prompt": "a", "prompt_tokens": 1, "output_tokens": 1}\n'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no JSON lines"),
        ("{", "no JSON lines"),
        ("[1]\n", "no JSON lines"),
        (HEAD.replace("1,", "2,", 1) + ONE, "version 2"),
        (HEAD.replace("bench.schedule", "bench.run") + ONE, "twofour.bench.run"),
        (HEAD, "no requests"),
        (HEAD + ONE + ONE, "comes twice"),
        (HEAD + ONE.replace("}", ', "after": 7}'), "before 7"),
        (HEAD + ONE.replace('"prompt": "a", ', ""), "prompt"),
        (HEAD + ONE.replace("}", ', "colour": 1}'), "colour"),
        (HEAD.replace('"concurrency": 1', '"concurrency": "x"') + ONE, "concurrency"),
        (HEAD.replace('"made_of": {}', '"made_of": null') + ONE, "made of None"),
        (HEAD + ONE.replace('"a"', "null"), "request 0 cannot be sent"),
        (HEAD + ONE.replace('"output_tokens": 1', '"output_tokens": -1'), "request 0 cannot be sent"),
        (HEAD + ONE.replace('"at_s": 0.0', '"at_s": "x"'), "request 0 cannot be sent"),
        (HEAD + ONE.replace("}", ', "think_s": -1}'), "request 0 cannot be sent"),
        ("[" * 100_000, "no JSON lines"),
        (HEAD.replace('"limits": {}', '"limits": {"x": 1}') + ONE, "unexpected"),
    ],
)
def test_what_is_no_schedule_is_refused_by_its_fault(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "s.jsonl").write_text(text)
    with pytest.raises(InputError, match=why):
        schedule_file.read(tmp_path / "s.jsonl")


def test_a_file_that_is_not_there_or_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        schedule_file.read(tmp_path / "none")
    with pytest.raises(OutputError):
        schedule_file.write(synthetic(1, Lengths(8), Lengths(1), 0), tmp_path / "none" / "s.jsonl")
