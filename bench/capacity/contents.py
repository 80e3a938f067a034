"""Which prompts begin alike: the keys of the blocks that a prefix cache may find.

A later turn of a session begins with the whole prompt of the turn before it, without the answer: what the server said
is not what its history holds. The first turns of a family begin alike as far as their `parts` say, or else their words,
each of which is taken for the mean number of tokens per word.
"""

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from itertools import islice

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
    known: dict[tuple[int, Hashable], int] = {}
    ratio = _words_per_token([request for request in first if not request.parts])
    keys = {request.index: _interned(_blocks(request, size, ratio), known) for request in first}
    times = Counter(key for each in keys.values() for key in each)
    return {index: [key for key in each if times[key] > 1] for index, each in keys.items()}


def _interned(blocks: Iterator[Hashable], known: dict[tuple[int, Hashable], int]) -> list[int]:
    keys = [0]
    for block in blocks:
        keys.append(known.setdefault((keys[-1], block), len(known) + 1))
    return keys[1:]


def _blocks(request: Request, size: int, ratio: float) -> Iterator[Hashable]:
    """What is in each full block of the prompt."""
    full = (request.prompt_tokens or 0) // size
    return islice(_of_parts(request, size) if request.parts else _of_words(request, size, ratio), full)


def _of_parts(request: Request, size: int) -> Iterator[Hashable]:
    inside = [(name, i) for name, tokens in request.parts for i in range(tokens)]
    return (tuple(inside[i : i + size]) for i in range(0, len(inside) - size + 1, size))


def _of_words(request: Request, size: int, ratio: float) -> Iterator[Hashable]:
    words, width = marked(request, "").split(), size * ratio
    return (tuple(words[round(i * width) : round((i + 1) * width)]) for i in range(int(len(words) / width)))


def _words_per_token(requests: Sequence[Request]) -> float:
    """On the average of all, so that equal beginnings have equal blocks."""
    tokens = sum(request.prompt_tokens or 0 for request in requests)
    return sum(len(marked(request, "").split()) for request in requests) / tokens if tokens else 1.0
