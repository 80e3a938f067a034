"""With whom an answer's prefix is shared: only who has the same API key and the same cache_salt may find it."""

from collections.abc import Callable
from typing import Any

import pytest

from twofour.serve.edge.auth import digest
from twofour.serve.edge.harden import EdgeConfig
from twofour.serve.openai.serving import salt_of

Refused = Callable[..., dict[str, Any]]
KEYS = (digest(b"first"), digest(b"second"))


def salt(server: Any, key: str = "", **fields: Any) -> str:
    """What the engine is given for a request."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    ask = {"model": "m", "prompt": "hi", "max_tokens": 1, **fields}
    assert server.client.post("/v1/completions", json=ask, headers=headers).status_code == 200
    return str(server.engine.prompts[-1].salt)


def test_without_keys_and_salts_all_share(shared: Any) -> None:
    assert salt(shared) == salt(shared, cache_salt=None) == ""
    assert salt(shared, cache_salt="a") == salt(shared, cache_salt="a") != salt(shared, cache_salt="b") != ""


def test_keys_share_nothing(launch: Any) -> None:
    server = launch(edge=EdgeConfig(api_keys=KEYS))
    given = [salt(server, key, **fields) for key in ("first", "second") for fields in ({}, {"cache_salt": "a"})]
    assert len(set(given)) == 4 and "" not in given
    assert given[0] == salt(server, "first")
    # Where the keys stand in their file is nothing that lasts.
    assert given[0] == salt(launch(edge=EdgeConfig(api_keys=KEYS[::-1])), "first")


def test_no_two_pairs_look_alike() -> None:
    salts = [None, *(text * length for length in (1, 31, 32, 33) for text in ("+", "a", "\x20"))]
    pairs = [(key, given) for key in (b"", b" " * 32, b"+" * 32, b"a" * 32) for given in salts]
    assert len({salt_of(*pair) for pair in pairs}) == len(pairs)


@pytest.mark.parametrize("value", ["", 5, "x" * 1025, ["a"]], ids=["empty", "a number", "long", "a list"])
def test_bad_salts(shared: Any, refused: Refused, value: Any) -> None:
    refused(shared.complete(cache_salt=value), 400, None, "cache_salt")
