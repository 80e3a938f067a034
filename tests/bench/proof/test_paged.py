import json
from itertools import count
from urllib.request import urlopen

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofour.bench.load import client, decode
from twofour.bench.load.endpoint import Endpoint
from twofour.bench.load.service import Service
from twofour.bench.load.workload import Lengths, schedule
from twofour.bench.proof.mock import Script, serving
from twofour.bench.proof.paged import Machine, PagedBatch

MACHINE = Machine(1.0, 0.01, 0.1, kv_s=0.001, pair_s=0.0001, sequences=3, tokens=10, pages=12, page=4)
UNIQUE = count()


def prompt(words: int) -> list[str]:
    return [f"w{next(UNIQUE)}" for _ in range(words)]


def served(batch: PagedBatch) -> list[str]:
    batch.begin()
    return [str(key) for key in batch.end()]


def test_a_step_by_hand() -> None:
    batch = PagedBatch(MACHINE)
    batch.add("a", prompt(4), 3)
    batch.add("b", prompt(16), 2)
    # a whole and six of b, which has pages for all: 16 of 48
    assert batch.begin() == pytest.approx(1.0 + 0.01 * 10 + 0.0001 * (4 * 5 / 2 + 6 * 7 / 2))
    assert batch.end() == ["a"]
    assert batch.pages.used == 1 + 4
    # a decodes: it attends to five tokens; nine of b, after six
    assert batch.begin() == pytest.approx(1.0 + 0.01 * 9 + 0.1 + 0.001 * 5 + 0.0001 * (9 * 6 + 9 * 10 / 2))
    assert batch.end() == ["a"]
    assert batch.begin() == pytest.approx(1.0 + 0.2 + 0.001 * (6 + 16))  # one token of b is left: as one that decodes
    assert batch.end() == ["a", "b"]
    assert served(batch) == ["b"]
    assert batch.idle
    assert (batch.pages.unnamed, batch.total, [step.decodes for step in batch.log]) == (0, 4, [0, 1, 2, 1])


def test_the_youngest_makes_room_and_comes_back_first() -> None:
    batch = PagedBatch(Machine(1.0, 0.0, 0.0, pages=5, page=4, sequences=4, remembers=False))
    batch.add("old", prompt(8), 8)
    batch.add("young", prompt(4), 6)
    batch.add("third", prompt(4), 1)
    assert served(batch) == ["old", "young"]  # two pages and one, and one more for each of both: no room for a third
    assert served(batch) == ["old", "young"]  # a page each
    assert [served(batch) for _ in range(3)] == [["old", "young"]] * 3
    assert served(batch) == ["old"]  # which needs a page, and takes that of the younger
    assert (batch.preemptions, batch.under_way, batch.waiting) == (1, 1, 2)
    assert [served(batch) for _ in range(2)] == [["old"]] * 2
    assert served(batch) == ["young", "third"]
    assert batch.idle


def test_known_words_are_not_computed_again() -> None:
    words = prompt(10)
    batch = PagedBatch(MACHINE)
    batch.add("first", words, 1)
    assert served(batch) == ["first"]
    batch.add("same", words, 1)
    batch.add("other end", [*words[:5], *prompt(5)], 1)
    batch.begin()
    assert batch.log[-1].prefill_tokens == (10 - 8) + (10 - 4)
    assert batch.end() == ["same", "other end"]


def test_a_whole_prompt_that_is_known_still_computes_its_last_page() -> None:
    words = prompt(8)
    batch = PagedBatch(MACHINE)
    for key in ("first", "same"):
        batch.add(key, words, 1)
        batch.begin()
        batch.end()
    assert [step.prefill_tokens for step in batch.log] == [8, 4]


ASKED = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 18), st.integers(0, 3)), min_size=1, max_size=12)


@given(ASKED, st.booleans(), st.integers(12, 40))
def test_every_token_comes_once_and_no_page_is_lost(
    asked: list[tuple[int, int, int]], remembers: bool, pages: int
) -> None:
    machine = Machine(1.0, 0.0, 0.0, sequences=3, tokens=10, pages=pages, page=4, remembers=remembers)
    batch, came = PagedBatch(machine), list[object]()
    for key, (words, output, family) in enumerate(asked):
        batch.add(key, [f"{family}-{at}" for at in range(words)], output)
    while not batch.idle:
        batch.begin()
        assert batch.pages.used <= pages
        assert 0 < batch.log[-1].prefill_tokens + batch.log[-1].decodes <= 10
        came += batch.end()
    assert [came.count(key) for key in range(len(asked))] == [output for _, output, _ in asked]
    assert batch.pages.used == 0


def test_who_is_dropped_leaves_no_page_behind() -> None:
    batch = PagedBatch(MACHINE)
    batch.add("gone", prompt(9), 4)
    served(batch)
    batch.drop("gone")
    batch.add("waiting", prompt(3), 1)
    batch.drop("waiting")
    assert batch.idle
    assert batch.pages.used == 0


def test_a_server_with_a_cache_tells_its_steps_and_its_size() -> None:
    machine = Machine(0.002, 1e-6, 1e-5, sequences=2, pages=20, page=8, tokens=64)
    with serving(Script(machine=machine)) as mock, client.connected(mock.url, 30.0) as session:
        jobs = client.jobs(Service(mock.url, "mock"), schedule(6, Lengths(20), Lengths(5), 1), "nonce")
        session.send(jobs, 3)
        log, endpoint = Endpoint(mock.url, "mock").step_log(), Endpoint(mock.url, "mock")
        said = endpoint.scrape()
        with urlopen(f"{mock.url}/debug/steps") as answer:
            assert json.load(answer) == log
    records = [decode.record(job.exchange) for job in jobs]
    assert all(record.error is None and record.output_tokens == 5 for record in records)
    assert log and said
    assert sum(log["prefill_tokens"]) == 6 * 20
    assert sum(log["decodes"]) == 6 * 4
    assert log["total"] == len(log["seconds"]) == len(log["started_at"])
    ends = [begun + lasted for begun, lasted in zip(log["started_at"], log["seconds"], strict=True)]
    assert all(end <= begun + 1e-9 for end, begun in zip(ends, log["started_at"][1:], strict=False))
    assert said.memory.kv_capacity_tokens == 160


def test_what_the_cache_never_holds_is_refused() -> None:
    small = Machine(0.001, 0.0, 0.0, pages=2, page=8)
    with serving(Script(machine=small)) as mock, client.connected(mock.url, 30.0) as session:
        jobs = client.jobs(Service(mock.url, "mock"), schedule(1, Lengths(12), Lengths(5), 1), "nonce")
        session.send(jobs, 1)
    assert decode.record(jobs[0].exchange).status == 400
