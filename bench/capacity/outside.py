"""The steps of an engine that keeps no log, read from the times at which the chunks of all its answers came.

A step of an engine that batches gives each sequence in it one token, and they leave together. So chunks that come
together are a step: it ends when they come, and began when those of the step before came, if one of them goes on. What
a step computed is known from who got a token: a first token stands for a whole prompt, another one for a decode.

Left out are steps whose work nobody outside can tell: those in which more than one step's worth of prompts was begun,
and those after a pause. What passes between steps is part of them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

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
    unclear = _unclear(moments, budget)
    return [
        _step(before, moment)
        for before, moment in pairwise(moments)
        if not unclear(moment) and _goes_on(before, moment)
    ]


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
    gaps = [later.at - chunk.at for record in records for chunk, later in pairwise(record.chunks)]
    apart_s = _TOGETHER * median(gaps) if gaps else 0.0
    chunks = sorted((c.at, i, nth) for i, record in enumerate(records) for nth, c in enumerate(record.chunks))
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


def _unclear(moments: Sequence[_Moment], budget: int) -> Callable[[_Moment], bool]:
    """Whether some of a prompt that came later, in a step with too many tokens for one, may have been computed."""
    spans = []
    for moment in moments:
        begun = [record for record, nth in moment.chunks.values() if nth == 0]
        tokens = sum(record.prompt_tokens or 0 for record in begun) + len(moment.chunks) - len(begun)
        if begun and tokens > budget:
            spans.append((min(record.sent_at or 0.0 for record in begun), moment.at))
    return lambda moment: any(begin <= moment.at <= end for begin, end in spans)


def _step(before: _Moment, moment: _Moment) -> Step:
    prompts = [record.prompt_tokens or 0 for record, nth in moment.chunks.values() if nth == 0]
    decodes = [(record.prompt_tokens or 0) + nth for record, nth in moment.chunks.values() if nth]
    pairs = sum(tokens * (tokens + 1) // 2 for tokens in prompts)
    return Step(sum(prompts), len(decodes), sum(decodes), moment.at - before.at, pairs, before.at)
