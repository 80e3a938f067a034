"""Steps seen from outside, of an engine that is played by hand: what it did is known."""

import random
from collections import deque
from collections.abc import Sequence

import pytest

from twofour.bench.capacity import outside
from twofour.bench.capacity.step_model import StepModel, fit
from twofour.bench.load.records import Chunk, Record
from twofour.bench.load.step_log import Step

LAW = StepModel(8e-3, 3e-5, 2e-4, 6e-8, 1e-8)


def play(asked: Sequence[tuple[float, int, int]], spread_s: float = 1e-4) -> tuple[list[Record], list[Step]]:
    """Each of `asked` is when, prompt tokens and answer tokens; prompts are computed whole, as soon as they come."""
    draw = random.Random(0)
    records = [Record(i, at, sent_at=at, prompt_tokens=p) for i, (at, p, _) in enumerate(asked)]
    queue, running, now, done = deque(records), list[Record](), 0.0, list[Step]()
    while queue or running:
        now = max(now, queue[0].scheduled_at) if not running else now
        fresh = []
        while queue and queue[0].scheduled_at <= now:
            fresh.append(queue.popleft())
        prompts = [record.prompt_tokens or 0 for record in fresh]
        kv = sum((record.prompt_tokens or 0) + len(record.chunks) for record in running)
        pairs = sum(p * (p + 1) // 2 for p in prompts)
        took = LAW.seconds(sum(prompts), len(running), kv, pairs)
        done.append(Step(sum(prompts), len(running), kv, took, pairs, now))
        now += took
        running += fresh
        for record in draw.sample(running, len(running)):
            record.chunks.append(Chunk(now + draw.uniform(0, spread_s), 1))
        for record in [r for r in running if len(r.chunks) == asked[r.index][2]]:
            running.remove(record)
    return records, done


def some(count: int, every_s: float, seed: int = 1) -> list[tuple[float, int, int]]:
    draw, at, made = random.Random(seed), 0.0, []
    for _ in range(count):
        at += draw.expovariate(1 / every_s)
        made.append((at, draw.randrange(20, 400), draw.randrange(2, 60)))
    return made


def test_steps_are_what_the_engine_did() -> None:
    records, done = play(some(40, 0.1), spread_s=0.0)
    seen = outside.steps(records, budget=100_000)
    known = {round(step.started_at or 0.0, 9): step for step in done}
    assert len(seen) > 0.8 * len(done)
    for step in seen:
        true = known[round(step.started_at or 0.0, 9)]
        assert (step.prefill_tokens, step.decodes, step.kv_tokens, step.prefill_pairs) == (
            *(true.prefill_tokens, true.decodes, true.kv_tokens, true.prefill_pairs),
        )
        assert step.seconds == pytest.approx(true.seconds)


def test_the_law_is_found_from_outside() -> None:
    records, _ = play(some(200, 0.1))
    found = fit(outside.steps(records, budget=100_000)).steps
    for prefill, decodes in ((0, 1), (0, 8), (300, 4)):
        asked = (prefill, decodes, 200 * decodes, prefill * (prefill + 1) // 2)
        assert found.seconds(*asked) == pytest.approx(LAW.seconds(*asked), rel=0.02)


def test_a_pause_is_no_step() -> None:
    records, done = play([(0.0, 50, 5), (10.0, 50, 5)])
    seen = outside.steps(records, budget=1000)
    assert len(done) == 10 and len(seen) == 8 and max(step.seconds for step in seen) < 0.1


def test_prompts_that_do_not_fit_into_one_step_are_left_out() -> None:
    records, _ = play([(0.0, 50, 20), (0.05, 300, 5)])
    assert any(step.prefill_tokens for step in outside.steps(records, budget=301))
    left = outside.steps(records, budget=300)
    assert left and not any(step.prefill_tokens for step in left)


def test_what_passes_around_a_prompt_that_is_alone() -> None:
    records, _ = play([(i * 10.0, 50 + i, 2) for i in range(9)], spread_s=0.0)
    for record in records:
        record.chunks = [Chunk(chunk.at + 0.003, 1) for chunk in record.chunks]
    found = outside.first_s(records, lambda p: LAW.seconds(p, 0, 0, p * (p + 1) // 2))
    assert found == pytest.approx(0.003)
    assert outside.first_s(records, lambda p: 100.0) == 0.0  # never below
