"""What is tested with the real vLLM, which has an environment of its own: elsewhere nothing here is collected."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from vllm_runs import Vllm, started

collect_ignore_glob = [] if find_spec("vllm") else ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """vLLM and what it imports warn about themselves."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session")
def vllm() -> Iterator[Vllm]:
    """One process for all models that fit into one."""
    with started() as child:
        yield child
