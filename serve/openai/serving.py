"""What every endpoint needs, in one value."""

import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TypeVarTuple

from twofour.serve.config import ServeConfig
from twofour.serve.edge.errors import RequestError
from twofour.serve.edge.lifecycle import Lifecycle
from twofour.serve.engine.types import Engine, EngineInfo, Prompt, Sampling
from twofour.serve.openai.admission import Admission
from twofour.serve.openai.answers.choice import Delta
from twofour.serve.openai.answers.generation import Job
from twofour.serve.openai.engine_metrics import EngineMetrics
from twofour.serve.openai.handlers import engine_unavailable
from twofour.serve.openai.parameters import refuse_unserved
from twofour.serve.openai.parsing import Checked, parse
from twofour.serve.openai.prompts.threads import LARGE
from twofour.serve.openai.prompts.vocabulary import Tokens, Vocabulary
from twofour.serve.openai.protocol import GenerationRequest, check_together
from twofour.serve.openai.sampling import nth, stops_of

SMALL_AT_A_TIME = 16
FEW_SCORES = 16  # of tokens: written at once, without a thread

Arguments = TypeVarTuple("Arguments")


@dataclass(frozen=True)
class Caller:
    """Who asks: which request this is, since when, with which key."""

    request_id: str
    arrived_at: float
    key: int | None = None  # which API key it has, of those in the file


@dataclass(frozen=True)
class Serving:
    engine: Engine
    config: ServeConfig
    vocabulary: Vocabulary
    metrics: EngineMetrics
    lifecycle: Lifecycle
    admission: Admission
    numbers: Iterator[int] = field(default_factory=itertools.count)
    small_turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(SMALL_AT_A_TIME))
    large_turn: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))

    @property
    def info(self) -> EngineInfo:
        if not self.engine.ready:
            raise engine_unavailable()
        return self.engine.info

    @property
    def context_limit(self) -> int:
        """Tokens of prompt and answer together, by the model and by the size of the cache."""
        return min(self.info.context_length, self.info.kv_tokens)

    def turn(self, body_bytes: int) -> asyncio.Semaphore:
        """Hold it while a body becomes tokens: meanwhile it takes many times its bytes of memory."""
        return self.large_turn if body_bytes > LARGE else self.small_turns

    async def parsed(self, raw: bytes, model: type[Checked]) -> Checked:
        return await self.vocabulary.threads.run_if_large(len(raw), self._checked, raw, model)

    def _checked(self, raw: bytes, model: type[Checked]) -> Checked:
        body = parse(raw, model)
        refuse_unserved(body)
        if getattr(body, "model", None) not in (None, self.config.served_model_name):
            raise model_not_found()
        check_together(body)
        return body

    def job(self, caller: Caller, body: GenerationRequest, prompts: Sequence[tuple[Tokens, Sampling]]) -> Job:
        n = body.n or 1
        self.admission.check_sequences(len(prompts) * n)
        self.metrics.observe("request_params_n", n)
        digests = self.config.edge.api_keys
        salt = salt_of(b"" if caller.key is None else digests[caller.key], body.cache_salt)
        sequences = tuple(
            self._prompt(tokens, nth(sampling, i), salt) for tokens, sampling in prompts for i in range(n)
        )
        return Job(caller.request_id, caller.arrived_at, sequences, n, stops_of(body))

    async def written(
        self, deltas: Sequence[Delta], function: Callable[[*Arguments], bytes], *arguments: *Arguments
    ) -> bytes:
        """The result of a function of deltas; it runs in a thread if they hold the scores of many tokens."""
        scores = sum(len(delta.logprobs) + len(delta.prompt_logprobs) for delta in deltas)
        return function(*arguments) if scores <= FEW_SCORES else await asyncio.to_thread(function, *arguments)

    def _prompt(self, tokens: Tokens, sampling: Sampling, salt: str) -> Prompt:
        # Not the request id, which a client may use twice.
        return Prompt(f"{next(self.numbers)}", tokens, sampling, salt)


def salt_of(key: bytes, given: str | None) -> str:
    """Cached prefixes are shared by requests of one key and one salt. Empty: by all that have neither.

    `key` is a digest, so it has one length or is empty, and no two pairs give the same text to hash.
    """
    if not key and given is None:
        return ""
    salted = b"" if given is None else b"+" + given.encode()
    return sha256(len(key).to_bytes(1, "big") + key + salted).hexdigest()


def model_not_found() -> RequestError:
    message = "no such model is served here; GET /v1/models lists what is"
    return RequestError(404, message, code="model_not_found", param="model")
