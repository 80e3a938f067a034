"""From the bytes of a request to a checked model, or to an error that says which field is wrong."""

import json
from typing import NoReturn, TypeVar

from pydantic import ValidationError

from twofour.serve.edge.errors import invalid
from twofour.serve.openai.errors import from_pydantic
from twofour.serve.openai.protocol import Strict

Body = TypeVar("Body", bound=Strict)


def parse(raw: bytes, model: type[Body]) -> Body:
    document = parse_json(raw)
    if not isinstance(document, dict):
        raise invalid("the body must be a JSON object")
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise from_pydantic(error) from error


def parse_json(raw: bytes) -> object:
    """JSON as its standard says: no NaN, and nothing so deep or so long that Python refuses it."""
    try:
        return json.loads(raw.decode("utf-8"), parse_constant=refuse_constant, parse_float=number)
    except (ValueError, RecursionError) as error:
        raise invalid("the body is not valid JSON; check its syntax and encoding", code="invalid_json") from error


def number(text: str) -> int | float:
    """JSON has one kind of number: 4.0 is 4, which some languages write so."""
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
