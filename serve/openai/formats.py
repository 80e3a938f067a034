"""The form of an answer (`response_format`) as a grammar for the engine.

llguidance, the extra `json`, compiles schemas: within limits of size and time, without the GIL, and it fetches nothing.
It refuses what it does not implement, so that no answer follows only half a schema.
"""

import asyncio
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from functools import lru_cache
from importlib.util import find_spec
from math import prod
from time import monotonic
from typing import Any, TypeVar

from twofour.serve.edge.errors import RequestError, invalid, unsupported
from twofour.serve.engine.matching import matcher_of
from twofour.serve.openai.protocol import ResponseFormat

MAX_SCHEMA_CHARACTERS = 1 << 16
# At most one space between the parts of JSON: small models tend to fill their answers with more.
OPTIONS: Any = {"whitespace_flexible": True, "whitespace_pattern": " ?", "lenient": False}
ANY_OBJECT = {"type": "object"}
PARAM = "response_format"
# Fewer than in the engine: the tokens of a model span several places of the grammar, and meet more items than bytes.
MAX_ITEMS = 6400
# How texts are written to try a schema: as long as it allows, as short, and in a third way. Bytes, the first preferred.
PREFERRED = (b'",:{[', b'}]"', b'ntf0-]}",')
STEPS, WALKS_S = 256, 2.0
MAX_DIVISOR = 10_000  # llguidance has a state for every remainder: for millions it takes minutes and gigabytes
MAX_COUNTED = 100  # llguidance lists every way to choose properties: for some hundred that takes seconds
Kind = TypeVar("Kind")
# Threads for this alone: a schema may take long and cannot be stopped, and nothing else should wait for it.
THREADS = ThreadPoolExecutor(2, thread_name_prefix="schemas")


async def grammar_of(given: ResponseFormat | None) -> str | None:
    """The grammar that the answer must follow; None: any text."""
    if given is None or given.type == "text":
        return None
    if find_spec("llguidance") is None:
        raise unsupported(PARAM, 'to have it, install the server as "twofour[json]"')
    schema = schema_of(given)
    return await asyncio.get_running_loop().run_in_executor(THREADS, lambda: compiled(schema_text(schema)))


def schema_of(given: ResponseFormat) -> dict[str, Any]:
    if given.type == "json_object":
        return ANY_OBJECT
    if given.json_schema is None:
        raise invalid("response_format: json_schema is missing; give its schema", PARAM)
    return given.json_schema.document


def schema_text(schema: dict[str, Any]) -> str:
    try:
        text = json.dumps(schema) if characters(schema) <= MAX_SCHEMA_CHARACTERS else None
        if text is None or len(text) > MAX_SCHEMA_CHARACTERS:
            raise refused(f"it is longer than {MAX_SCHEMA_CHARACTERS} characters")
        divisor = prod(map(digits, found(schema, "multipleOf", (int, float))))
        counted = sum(map(len, found(schema, "properties", dict))) > MAX_COUNTED and found_counts(schema)
    except RecursionError as error:
        raise refused("it is nested too deep") from error
    if divisor > MAX_DIVISOR:
        raise refused(f"multipleOf, all of them multiplied, is for {MAX_DIVISOR} at most")
    if counted:
        raise refused(f"minProperties and maxProperties are for {MAX_COUNTED} properties at most")
    return text


def characters(schema: object) -> int:
    """About how many it has as text. One that is far too long is not written to count them."""
    if isinstance(schema, dict):
        return sum(len(name) + characters(part) for name, part in schema.items())
    if isinstance(schema, list):
        return sum(map(characters, schema))
    return len(schema) if isinstance(schema, str) else 1


def found_counts(schema: object) -> bool:
    return any(True for name in ("minProperties", "maxProperties") for _ in found(schema, name, int))


def digits(number: float) -> int:
    """The number made of its digits, without the zeros around them: 1 for 0.01, 36 for 3600."""
    return int("".join(map(str, Decimal(str(number)).as_tuple().digits)).rstrip("0") or "1")


def found(schema: object, keyword: str, kind: type[Kind] | tuple[type[Kind], ...]) -> Iterator[Kind]:
    """The values of a keyword, wherever they are in a schema. A property of that name has a schema as its value."""
    inside = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    if isinstance(schema, dict) and isinstance(value := schema.get(keyword), kind):
        yield value
    for part in inside:
        yield from found(part, keyword, kind)


@lru_cache(maxsize=64)
def compiled(schema: str) -> str:
    from llguidance import LLMatcher

    try:
        grammar = LLMatcher.grammar_from_json_schema(schema, overrides=OPTIONS)
    except ValueError as error:
        raise refused("it is not valid") from error
    matcher = matcher_of(byte_tokenizer(), grammar, MAX_ITEMS)
    until = monotonic() + WALKS_S
    for preferred in PREFERRED:
        walk(matcher.deep_copy(), preferred, until)
    return str(grammar)


def walk(matcher: Any, preferred: bytes, until: float) -> None:
    """Write a text that the grammar allows: some grammars fail only in the middle of a text."""
    for step in range(STEPS):
        allowed = allowed_bytes(matcher)
        if matcher.is_stopped() and step:
            return
        if not allowed and not matcher.is_accepting():
            raise refused("no text satisfies it")
        if not allowed or monotonic() > until:
            return
        ranked = sorted(allowed, key=lambda byte: (preferred.find(byte) % 256, byte))
        matcher.consume_token(ranked[0])


def allowed_bytes(matcher: Any) -> list[int]:
    mask = matcher.compute_bitmask()
    if matcher.is_error():
        raise refused(reason(matcher.get_error()))
    return [byte for byte in range(256) if mask[byte >> 3] >> (byte & 7) & 1]


def refused(why: str) -> RequestError:
    return invalid(f"response_format: the schema cannot be followed: {why}; write a simpler one", PARAM)


def reason(error: str) -> str:
    """The keywords that are not implemented. Other errors repeat the schema, so they are not shown."""
    return error[:200] if error.startswith("Unimplemented keys: ") else "it is not valid, or too large"


class Bytes:
    """A vocabulary of the 256 bytes and an end, to look at a grammar without the vocabulary of a model."""

    eos_token_id, bos_token_id = 256, None
    tokens: Sequence[bytes] = (*(bytes([value]) for value in range(256)), b"<end>")
    special_token_ids = (256,)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


@lru_cache(maxsize=1)
def byte_tokenizer() -> Any:
    from llguidance import LLTokenizer, TokenizerWrapper

    return LLTokenizer(TokenizerWrapper(Bytes()))
