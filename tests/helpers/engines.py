"""Which tests ask any server, and where vLLM behind our edge answers otherwise than our own engine: each with a reason.

    .venv/bin/pytest --engine vllm tests/serve tests/conformance tests/faults/test_hostile_bodies.py

A deviation is expected to fail (strictly: one that no longer holds must go). docs/serving.md has them for people.
"""

import re
from collections.abc import Mapping

import pytest

# Not asked: tests of our engine, whatever fixtures they have.
OWN: tuple[str, ...] = ()
# Part of the name of a test -> why vLLM may answer otherwise.
DEVIATIONS: Mapping[str, str] = {}


def choose(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests that ask whatever server there is; expect those that deviate to fail."""
    asking = [item for item in items if asks_any_server(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in asking])
    for item in asking:
        reasons = [reason for name, reason in DEVIATIONS.items() if re.search(name, item.nodeid)]
        if reasons:
            item.add_marker(pytest.mark.xfail(strict=True, reason=reasons[0]))
    items[:] = asking


def asks_any_server(item: pytest.Item) -> bool:
    fixtures = set(getattr(item, "fixturenames", ()))
    return (
        bool(fixtures & {"shared", "vllm_server"})
        and "launch" not in fixtures
        and not any(re.search(name, item.nodeid) for name in OWN)
    )
