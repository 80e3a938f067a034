"""The steps of an engine that keeps no log, read from the times at which the chunks of all its answers came.

A step of an engine that batches gives each sequence in it one token, and they leave together. So chunks that come
together are a step: it ends when they come, and began when those of the step before came, if one of them goes on. What
a step computed is known from who got a token: a first token stands for a whole prompt, another one for a decode.

Of a prompt that takes several steps nobody outside can tell which computed what of it. So those from its sending to its
first token are one sum of so many steps. Left out are steps after a pause. What passes between steps is part of them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from statistics import median

import numpy as np

from twofour.bench.load.records import Record
from twofour.bench.load.step_log import Step

_TOGETHER = 0.35  # of a usual step: chunks that are less apart may be of one


@dataclass
class _Moment:
    """Chunks that came together: of each answer its record and how many of its chunks had come before."""

    at: float
    chunks: dict[int, tuple[Record, int]] = field(default_factory=dict)


def steps(records: Sequence[Record], budget: int) -> list[Step]:
    """Of one run against one engine. budget: the most tokens of a step."""
    good = [record for record in records if record.error is None and record.prompt_tokens and len(record.chunks) > 1]
    moments = list(_moments(good))
    spans, found = _spans(moments, budget), list[Step]()
    for span, pairs in groupby(pairwise(moments), key=lambda pair: _within(spans, pair[1].at)):
        seen = list(pairs)
        if span is None:
            found += [_step(*pair) for pair in seen if _goes_on(*pair)]
        elif all(_goes_on(*pair) for pair in seen):
            before = int(seen[0][0].at < span[0])  # the step that was under way when the first prompt was sent
            found += [_step(*pair) for pair in seen[:before]]
            found += [_sum([_step(*pair) for pair in seen[before:]])] if seen[before:] else []
    return found


def first_s(records: Sequence[Record], prefill: Callable[[int], float]) -> float:
    """What passes around the steps of a prompt that is alone. prefill: seconds of a prompt of so many tokens."""
    waits = [
        record.chunks[0].at - record.sent_at - prefill(record.prompt_tokens)
        for record in records
        if record.error is None and record.chunks and record.sent_at is not None and record.prompt_tokens
    ]
    return max(0.0, median(waits)) if waits else 0.0


def _moments(records: Sequence[Record]) -> Iterator[_Moment]:
    """Chunks in order of time, put together where they came together."""
    gaps = [gap for record in records for gap in np.diff(record.chunks.at)]
    apart_s = _TOGETHER * float(np.median(gaps)) if gaps else 0.0
    chunks = sorted(
        (at, i, nth) for i, record in enumerate(records) for nth, at in enumerate(record.chunks.at.tolist())
    )
    moment, last_at = None, 0.0
    for at, i, nth in chunks:
        if moment is None or at - last_at > apart_s or i in moment.chunks:
            if moment:
                yield moment
            moment = _Moment(at)
        moment.chunks[i], last_at = (records[i], nth), at
    if moment:
        yield moment


def _goes_on(before: _Moment, moment: _Moment) -> bool:
    """An answer got a token in both, one after the other: the engine did not pause, and no step is missing."""
    return any(i in before.chunks and before.chunks[i][1] == nth - 1 for i, (_, nth) in moment.chunks.items())


def _spans(moments: Sequence[_Moment], budget: int) -> list[tuple[float, float]]:
    """From the sending of prompts that do not fit into one step to their first tokens, apart from each other."""
    found = list[tuple[float, float]]()
    for moment in moments:
        begun = [record for record, nth in moment.chunks.values() if nth == 0]
        tokens = sum(record.prompt_tokens or 0 for record in begun) + len(moment.chunks) - len(begun)
        if begun and tokens > budget:
            sent_at = min(record.sent_at or 0.0 for record in begun)
            while found and found[-1][1] > sent_at:
                sent_at = min(sent_at, found.pop()[0])
            found.append((sent_at, moment.at))
    return found


def _within(spans: Sequence[tuple[float, float]], at: float) -> tuple[float, float] | None:
    return next(((begin, end) for begin, end in spans if begin < at <= end), None)


def _sum(steps: Sequence[Step]) -> Step:
    return Step(
        sum(step.prefill_tokens for step in steps),
        sum(step.decodes for step in steps),
        sum(step.kv_tokens for step in steps),
        sum(step.seconds for step in steps),
        sum(step.prefill_pairs for step in steps),
        steps[0].started_at,
        count=len(steps),
    )


def _step(before: _Moment, moment: _Moment) -> Step:
    prompts = [record.prompt_tokens or 0 for record, nth in moment.chunks.values() if nth == 0]
    decodes = [(record.prompt_tokens or 0) + nth for record, nth in moment.chunks.values() if nth]
    pairs = sum(tokens * (tokens + 1) // 2 for tokens in prompts)
    return Step(sum(prompts), len(decodes), sum(decodes), moment.at - before.at, pairs, before.at)
