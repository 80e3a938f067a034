"""JSON of answers that may be large, made in steps: between two steps other threads can run."""

import json
from collections.abc import Iterable, Iterator, Mapping

LEVELS = 4  # of an answer, down to the scores of its tokens: choices, a choice, logprobs, a list
STEP = 256  # items of a list; the score of one token has some hundred values


def dumps(document: object) -> str:
    return "".join(fragments(document, LEVELS))


def fragments(value: object, levels: int) -> Iterator[str]:
    if isinstance(value, Mapping) and levels > 0:
        yield from of_object(value, levels)
    elif isinstance(value, list | tuple) and levels > 0 and any(isinstance(item, Mapping) for item in value[:1]):
        yield from of_items(fragments(item, levels - 1) for item in value)
    elif isinstance(value, list | tuple) and len(value) > STEP:
        yield from of_items([text(value[i : i + STEP])[1:-1]] for i in range(0, len(value), STEP))
    else:
        yield text(value)


def of_object(value: Mapping[str, object], levels: int) -> Iterator[str]:
    yield "{"
    for number, (name, item) in enumerate(value.items()):
        yield f"{',' if number else ''}{text(name)}:"
        yield from fragments(item, levels - 1)
    yield "}"


def of_items(items: Iterable[Iterable[str]]) -> Iterator[str]:
    yield "["
    for number, item in enumerate(items):
        yield "," if number else ""
        yield from item
    yield "]"


def text(value: object) -> str:
    """ASCII only: some clients of event streams also split lines at U+2028."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"))
