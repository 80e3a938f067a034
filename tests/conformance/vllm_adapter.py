"""A pytest plugin with which vLLM's own test files ask the server at TWOFOUR_URL instead of starting vLLM.

vLLM need not be installed. What its tests import of it is a mock, but for what they use to ask a server.
"""

import os
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest
from openai import AsyncOpenAI, OpenAI
from transformers import AutoConfig, AutoTokenizer

LONGEST_ANSWER_S = 600


class RemoteOpenAIServer:
    """The server that runs already, whatever model and flags the test asks for."""

    DUMMY_API_KEY = "none"

    def __init__(self, *asked: Any, **how: Any) -> None:
        self.url_root = os.environ["TWOFOUR_URL"]

    def __enter__(self) -> "RemoteOpenAIServer":
        return self

    def __exit__(self, *raised: object) -> None:
        pass

    def url_for(self, *parts: str) -> str:
        return "/".join([self.url_root, *parts])

    def get_client(self, **options: Any) -> OpenAI:
        return OpenAI(**self._options(options))

    def get_async_client(self, **options: Any) -> AsyncOpenAI:
        return AsyncOpenAI(**self._options(options))

    def _options(self, options: dict[str, Any]) -> dict[str, Any]:
        ours = {"base_url": self.url_for("v1"), "api_key": self.DUMMY_API_KEY, "max_retries": 0}
        return {**ours, "timeout": LONGEST_ANSWER_S, **options}


def get_tokenizer(tokenizer_name: str, **options: Any) -> Any:
    return AutoTokenizer.from_pretrained(tokenizer_name)


class ModelConfig:
    def __init__(self, model: str, **how: Any) -> None:
        self._model = model

    def get_vocab_size(self) -> int:
        size: int = AutoConfig.from_pretrained(self._model).vocab_size
        return size


REAL: dict[str, Any] = {"get_tokenizer": get_tokenizer, "ModelConfig": ModelConfig}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of vLLM's own classes: they ask no server."""
    asking = [item for item in items if "server" in getattr(item, "fixturenames", ())]
    config.hook.pytest_deselected(items=[item for item in items if item not in asking])
    items[:] = asking


class Mocks(MetaPathFinder, Loader):
    """Every module of the package vllm."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] == "vllm" else None

    def exec_module(self, module: ModuleType) -> None:
        module.__getattr__ = attribute  # type: ignore[method-assign]


def attribute(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return REAL.get(name) or MagicMock(name=name)


sys.meta_path.insert(0, Mocks())
sys.modules["tests.utils"] = sys.modules[__name__]
