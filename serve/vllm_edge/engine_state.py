"""vLLM's engine, as the edge has to know it: what it serves, and whether it still answers.

All that we use of vLLM's own classes, but for the plugin's interface, is in this module.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from prometheus_client.registry import Collector
from starlette.types import Scope

ASK_S = 1.0  # between two questions
# A step of a large prompt may take as long on a CPU, and the engine answers between two steps.
HANG_S = 30.0


@dataclass(frozen=True)
class Model:
    vocab_size: int
    context: int  # tokens
    names: Mapping[str, frozenset[str]]  # path -> the names in a request that vLLM knows


def model_of(scope: Scope) -> Model:
    config = scope["app"].state.engine_client.model_config
    return Model(config.get_vocab_size(), config.max_model_len, known_names())


@cache
def known_names() -> Mapping[str, frozenset[str]]:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.serve.tokenize import protocol

    tokenize = (protocol.TokenizeCompletionRequest, protocol.TokenizeChatRequest)
    requests: dict[str, tuple[Any, ...]] = {
        "/v1/completions": (CompletionRequest,),
        "/v1/chat/completions": (ChatCompletionRequest,),
        "/tokenize": tokenize,
        "/detokenize": (protocol.DetokenizeRequest,),
    }
    return {path: frozenset().union(*(one.model_fields for one in ones)) for path, ones in requests.items()}


def metrics_registry() -> Collector:
    from vllm.v1.metrics.prometheus import get_prometheus_registry

    registry: Collector = get_prometheus_registry()
    return registry


class Heartbeat:
    """Asks the engine again and again: one that is frozen or dead answers no more."""

    def __init__(self, client: Any) -> None:
        self._client, self._answered_at, self._asleep = client, time.monotonic(), False
        self._task = asyncio.create_task(self._ask())

    @property
    def dead(self) -> bool:
        return bool(self._client.errored) or self._task.done()

    @property
    def age_s(self) -> float:
        return time.monotonic() - self._answered_at

    @property
    def answers(self) -> bool:
        return not self.dead and self.age_s < HANG_S

    @property
    def ready(self) -> bool:
        return self.answers and not self._asleep

    async def _ask(self) -> None:
        while True:
            self._asleep = bool(await self._client.is_sleeping())
            self._answered_at = time.monotonic()
            await asyncio.sleep(ASK_S)
