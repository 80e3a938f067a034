"""Steps seen from outside, of an engine that is played by hand: what it did is known."""

import random
from collections import deque
from collections.abc import Sequence

import pytest

from twofour.bench.capacity import outside
from twofour.bench.capacity.step_model import StepModel, fit
from twofour.bench.load.records import Chunks, Record
from twofour.bench.load.step_log import Step

LAW = StepModel(8e-3, 3e-5, 2e-4, 6e-8, 1e-8)


def play(
    asked: Sequence[tuple[float, int, int]], spread_s: float = 1e-4, budget: int = 100_000
) -> tuple[list[Record], list[Step]]:
    """Each of `asked` is when, prompt tokens and answer tokens; `budget` tokens of prompts are computed in a step."""
    draw = random.Random(0)
    records = [Record(i, at, sent_at=at, prompt_tokens=p) for i, (at, p, _) in enumerate(asked)]
    queue, running, now, done = deque(records), list[Record](), 0.0, list[Step]()
    computed = dict.fromkeys(range(len(asked)), 0)
    while queue or running:
        now = max(now, queue[0].scheduled_at) if not running else now
        left, p, q, fresh = budget, 0, 0, list[Record]()
        while queue and queue[0].scheduled_at <= now and left:
            start, length = computed[queue[0].index], asked[queue[0].index][1]
            count = min(left, length - start)
            computed[queue[0].index] += count
            left, p, q = left - count, p + count, q + count * start + count * (count + 1) // 2
            if start + count == length:
                fresh.append(queue.popleft())
        kv = sum((record.prompt_tokens or 0) + len(record.chunks) for record in running)
        done.append(Step(p, len(running), kv, LAW.seconds(p, len(running), kv, q), q, now))
        now += done[-1].seconds
        running += fresh
        for record in draw.sample(running, len(running)):
            record.chunks = Chunks.of([*record.chunks, (now + draw.uniform(0, spread_s), 1)])
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


def test_prompts_of_several_steps_are_one_sum() -> None:
    records, done = play([(0.0, 50, 20), (0.05, 300, 5)], spread_s=0.0, budget=100)
    (found,) = [step for step in outside.steps(records, budget=100) if step.prefill_tokens]
    parts = [step for step in done if step.prefill_tokens and step.decodes]
    assert (found.prefill_tokens, found.count, len(parts)) == (300, 3, 3)
    assert found.seconds == pytest.approx(sum(step.seconds for step in parts))
    assert found.prefill_pairs == sum(step.prefill_pairs for step in parts) == 300 * 301 // 2


def test_the_law_is_found_where_prompts_take_several_steps_and_wait() -> None:
    records, _ = play(some(300, 0.1), budget=64)
    found = fit(outside.steps(records, budget=64)).steps
    for prefill, decodes in ((0, 1), (0, 8), (64, 4)):
        asked = (prefill, decodes, 200 * decodes, prefill * (prefill + 1) // 2)
        assert found.seconds(*asked) == pytest.approx(LAW.seconds(*asked), rel=0.03)


def test_prompts_whose_steps_nobody_sees_are_left_out() -> None:
    records, done = play([(0.0, 300, 5)], budget=100)
    seen = outside.steps(records, budget=100)
    assert len(done) == 7 and len(seen) == 4 and not any(step.prefill_tokens for step in seen)


def test_what_passes_around_a_prompt_that_is_alone() -> None:
    records, _ = play([(i * 10.0, 50 + i, 2) for i in range(9)], spread_s=0.0)
    for record in records:
        record.chunks = Chunks.of((chunk.at + 0.003, 1) for chunk in record.chunks)
    found = outside.first_s(records, lambda p: LAW.seconds(p, 0, 0, p * (p + 1) // 2))
    assert found == pytest.approx(0.003)
    assert outside.first_s(records, lambda p: 100.0) == 0.0  # never below
