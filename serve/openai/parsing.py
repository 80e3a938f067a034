"""From the bytes of a request to a checked model, or to an error that says which field is wrong.

Bytes become objects many times their size: eight million bytes "[1,1,1," are four million numbers. So before a body
is parsed, the signs between its values are counted, and with too many it is refused unparsed. The others hold a few
long texts or some hundred thousand small values; parsing them takes a moment, in which no other thread runs.
"""

from typing import TypeVar

from pydantic import ValidationError
from pydantic_core import from_json

from twofour.serve.edge.errors import RequestError, invalid
from twofour.serve.openai.handlers import from_pydantic
from twofour.serve.openai.protocol import Strict

MAX_SIGNS = 1 << 18  # commas of two contexts of 128 Ki token ids, or those in 10 MB of prose
SIGNS = (b",", b":", b"[", b"{")
MAX_WIDE_BYTES = 6 << 20
WIDE = (b"\xf0", b"\xf1", b"\xf2", b"\xf3", b"\xf4", b"\\ud", b"\\uD")  # begin characters beyond U+FFFF

Checked = TypeVar("Checked", bound=Strict)


def parse(raw: bytes, model: type[Checked]) -> Checked:
    check_amount(raw)
    document = parse_json(raw)
    if not isinstance(document, dict):
        raise invalid("the body must be a JSON object")
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise from_pydantic(error) from error


def check_amount(raw: bytes) -> None:
    if sum(map(raw.count, SIGNS)) > MAX_SIGNS:
        message = (
            f"more than {MAX_SIGNS} of , : [ and {{ in the body; send text instead of token ids, or several requests"
        )
        raise too_large(message)
    # One of these makes all characters of its text take four bytes.
    if len(raw) > MAX_WIDE_BYTES and any(sign in raw for sign in WIDE):
        raise too_large(f"more than {MAX_WIDE_BYTES} bytes with characters beyond U+FFFF; send several requests")


def too_large(message: str) -> RequestError:
    return RequestError(413, message, code="request_too_large")


def parse_json(raw: bytes) -> object:
    """JSON as its standard has it: no NaN, no half characters, at most 200 levels."""
    try:
        return whole(from_json(raw, allow_inf_nan=False, cache_strings="none"))
    except ValueError as error:
        raise not_json(str(error)) from error


def not_json(why: str) -> RequestError:
    if "hex escape" in why:  # only a broken one, or half of a surrogate pair, gives this error
        why = "invalid unicode in a string"
    return invalid(f"the body is not valid JSON: {why}; check its syntax and encoding", code="invalid_json")


def whole(value: object) -> object:
    """JSON has one kind of number: some languages write 4 as 4.0. Lists and objects are changed in place."""
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if isinstance(value, list):
        value[:] = map(whole, value)
    if isinstance(value, dict):
        for name, item in value.items():
            value[name] = whole(item)
    return value
