"""Which prompts begin alike: the keys of the blocks that a prefix cache may find.

A later turn of a session begins with the whole prompt of the turn before it, without the answer: what the server said
is not what its history holds. The first turns of a family begin alike as far as their `parts` say, or else their words,
each of which is taken for the mean number of tokens per word.
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from itertools import accumulate, islice

from twofour.bench.load.records import Request
from twofour.bench.load.workload import marked

OWN = 1 << 32  # the own keys of request number n, from 1 on, are n * OWN + the number of the block


def shared_keys(requests: Sequence[Request], size: int) -> dict[int, list[int]]:
    """By the index of a request, the keys of its first blocks, as far as another request may have them, too."""
    keys = _of_families(requests, size)
    place = {request.index: number for number, request in enumerate(requests, 1)}
    by_index = {request.index: request for request in requests}
    for request in requests:
        before = by_index.get(request.after) if request.after is not None else None
        if before and request.family is not None and request.family == before.family:
            keys[request.index] = _continued(before, request, keys.get(before.index, []), place[before.index], size)
    return keys


def _continued(before: Request, request: Request, keys: list[int], number: int, size: int) -> list[int]:
    full = min(before.prompt_tokens or 0, request.prompt_tokens or 0) // size
    return [*keys[:full], *(number * OWN + i for i in range(len(keys), full))]


def _of_families(requests: Sequence[Request], size: int) -> dict[int, list[int]]:
    """Those of first turns."""
    members = Counter(request.family for request in requests if request.after is None)
    first = [r for r in requests if r.after is None and r.family is not None and members[r.family] > 1]
    sketched, written = [r for r in first if r.parts], [r for r in first if not r.parts]
    known: dict[tuple[int, Hashable], int] = {}
    keys = {r.index: _interned(_of_parts(r, size), r, size, known) for r in sketched}
    width = size * _words_per_token(written)
    texts = {r.index: _interned(_of_words(r, width), r, size, known) for r in written}
    times = Counter(key for each in texts.values() for key in each)
    return keys | {index: [key for key in each if times[key] > 1] for index, each in texts.items()}


def _interned(
    blocks: Iterator[Hashable], request: Request, size: int, known: dict[tuple[int, Hashable], int]
) -> list[int]:
    keys, key = list[int](), 0
    for block in islice(blocks, (request.prompt_tokens or 0) // size):
        key = known.setdefault((key, block), len(known) + 1)
        keys.append(key)
    return keys


def _of_parts(request: Request, size: int) -> Iterator[Hashable]:
    """What is in each full block: which parts, from where."""
    begins = [0, *accumulate(part.tokens for part in request.parts)]
    names, last = [part.name for part in request.parts], 0
    for begin in range(0, begins[-1] - size + 1, size):
        first, last = bisect_right(begins, begin) - 1, bisect_left(begins, begin + size)
        yield (begin - begins[first], *zip(names[first:last], begins[first + 1 : last], strict=False), names[last - 1])


def _of_words(request: Request, width: float) -> Iterator[Hashable]:
    """The same of a text: its words, so many in a block."""
    words = marked(request, "").split()
    return (tuple(words[round(i * width) : round((i + 1) * width)]) for i in range(int(len(words) / width)))


def _words_per_token(requests: Sequence[Request]) -> float:
    """On the average of all, so that equal beginnings have equal blocks."""
    tokens = sum(request.prompt_tokens or 0 for request in requests)
    return sum(len(marked(request, "").split()) for request in requests) / tokens if tokens else 1.0
