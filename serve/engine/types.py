"""The nouns of the engine, shared by both sides of its pipe.

The API process sends `Prompt`s and cancels; the engine process answers with `Piece`s and `Stats`. All are plain data,
so that they cross the pipe as JSON. No text crosses it: the API process tokenises, detokenises and finds stop strings.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Protocol

STEP_TOKENS = 512


@dataclass(frozen=True)
class EngineConfig:
    """What the engine process is started with. None: it decides while it loads, and says how in `EngineInfo`."""

    model: str  # a folder or a hub id
    revision: str | None = None
    device: str | None = None
    dtype: str | None = None
    kernels: str = "auto"
    threads: int | None = None
    max_model_len: int | None = None
    max_num_seqs: int = 32
    max_num_batched_tokens: int | None = None
    block_size: int = 16  # tokens in one cache block
    kv_tokens: int | None = None  # capacity of the cache; None: max_num_seqs * max_model_len within a share of memory
    cuda_graphs: bool = True  # on a GPU, capture decode steps and replay them
    lm_head: str | None = None  # int8: rounded so at load
    dense_values: str | None = None  # of the other linears that are dense; int8: likewise
    prefix_cache: bool = True  # a prompt takes over what an earlier one with the same beginning has computed

    @property
    def step_tokens(self) -> int:
        """The most tokens of a step."""
        return self.max_num_batched_tokens or STEP_TOKENS


@dataclass(frozen=True)
class Sampling:
    """How to continue one prompt. Neutral values are the defaults."""

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0  # 0: greedy, ties to the lowest id
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None  # k: those of every sampled token and of the k likeliest
    prompt_logprobs: int | None = None  # the same for every prompt token but the first
    grammar: str | None = None  # which the text must follow, in the notation of llguidance

    @cached_property
    def adjusts(self) -> bool:
        """Some logits are changed before one is chosen, throughout."""
        penalties = (self.presence_penalty, self.frequency_penalty, self.repetition_penalty - 1)
        return any(penalties) or bool(self.logit_bias)


@dataclass(frozen=True)
class Prompt:
    """One sequence to continue. With `max_tokens` 0 it is only scored (prompt_logprobs)."""

    id: str
    tokens: tuple[int, ...]
    sampling: Sampling
    salt: str = ""  # prefix-cache hits are shared only under equal salts


class Finish(StrEnum):
    """Why a sequence ended. Every admitted prompt ends exactly once."""

    STOP = "stop"  # an end-of-text or stop token; it is the last of `Piece.tokens`, `Piece.stopped_by` says so
    LENGTH = "length"
    ABORT = "abort"  # cancelled by the client
    ERROR = "error"  # `Piece.error` says what


class Failure(StrEnum):
    """Errors of one sequence that its client gets by name; of others it learns only that there was one."""

    NOT_FINITE = "not_finite"  # the model's logits are NaN or infinity
    NOT_FOLLOWED = "not_followed"  # its grammar is too large for the model's tokens, or allows none of them


@dataclass(frozen=True)
class Logprob:
    """Natural-log probability of a token, with the likeliest alternatives, best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """What one step adds to one sequence."""

    id: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[Logprob, ...] = ()  # one per token, if asked for
    prompt_logprobs: tuple[Logprob | None, ...] = ()  # on the first piece only, if asked for; None for the first token
    finish: Finish | None = None
    stopped_by: int | None = None  # the end-of-text or stop token that ended it
    error: str | None = None  # for the log: it may hold paths
    failure: Failure | None = None  # which error it is, where it has a name
    cached_tokens: int = 0  # on the first piece: prompt tokens found in the prefix cache
    queue_s: float = 0.0  # on the first piece: waiting for the first step
    prefill_s: float = 0.0  # on the first piece: first step to first token


@dataclass(frozen=True)
class EngineInfo:
    """What was loaded; it is sent once, when the engine is ready."""

    model: str
    context_length: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    block_size: int
    kv_tokens: int  # capacity of the cache
    weight_bytes: int  # resident bytes of all weights
    linear_bytes: int  # of these, in the decoder linears
    kernels: Mapping[str, int]  # kernel name -> how many linears use it
    device: str
    dtype: str
    sparse: bool  # the checkpoint is 2:4
    notes: tuple[str, ...] = ()  # what a user must know: fallbacks, for instance
    cuda_graphs: int = 0  # captured decode steps; 0: no step is replayed
    cuda_graph_bytes: int = 0  # of device memory that they take
    runner: str = "generic"  # what computes the steps, and why
    runner_reason: str = ""
    head_values: str = ""  # what the weight of lm_head is held as, and those of the other linears that are dense
    dense_values: str = ""
    warm_step: "StepRecord | None" = None  # the largest of those that warmed it up, measured the second time
    max_num_seqs: int = 0  # this and the following limit a step: see the scheduler
    max_num_batched_tokens: int = 0
    piece: int = 0
    prefix_cache: bool = True


@dataclass(frozen=True)
class Stats:
    """The state after a step; also the heartbeat while idle."""

    running: int = 0
    waiting: int = 0
    kv_tokens_used: int = 0
    preemptions: int = 0  # this and the following are totals since the start
    prefix_queries: int = 0  # tokens looked up
    prefix_hits: int = 0  # tokens found
    steps: int = 0
    step_tokens: int = 0  # tokens computed by the last step
    not_finite: int = 0  # sequences that ended because their logits were NaN or infinite
    peak_device_bytes: int = 0
    replayed_steps: int = 0  # of `steps`, those that replayed a captured graph


@dataclass(frozen=True)
class StepRecord:
    """The step log's line on one step."""

    prefill_tokens: int  # computed for sequences with more than one token to go
    decodes: int  # sequences that computed one token
    kv_tokens: int  # in the cache after the step, of the sequences in it: those that were attended to
    seconds: float
    decode_kv_tokens: int = 0  # of these, those of the sequences that computed one token
    prefill_pairs: int = 0  # of a token of the others and a token that it attends to, itself included
    waiting: int = 0  # sequences that were not in it for lack of room
    started_at: float = 0.0  # seconds of the engine's clock, which only differences have a meaning of

    @property
    def tokens(self) -> int:
        return self.prefill_tokens + self.decodes


class Engine(Protocol):
    """The API process's view of an engine. Methods are called from its event loop."""

    @property
    def info(self) -> EngineInfo: ...

    @property
    def stats(self) -> Stats: ...

    @property
    def healthy(self) -> bool:
        """The engine process is alive: it loads or has loaded. False between its death and the next start."""

    @property
    def ready(self) -> bool:
        """Loaded, and its heartbeat is fresh."""

    @property
    def stalled(self) -> bool:
        """Loaded, and silent for longer than the step under way explains."""

    @property
    def heartbeat_age_s(self) -> float: ...

    @property
    def step_limit_s(self) -> float:
        """How old the heartbeat may be because of the step under way, judging by earlier steps; 0: there is no step."""

    @property
    def restarts(self) -> int:
        """Starts after the first one."""

    @property
    def steps(self) -> Sequence[StepRecord]:
        """The step log: the latest steps, oldest first, with those of earlier lives of the process."""

    @property
    def step_sizes(self) -> Mapping[int, int]:
        """How many steps computed how many tokens (tokens -> steps), in all lives of the process."""

    async def start(self) -> None:
        """Return when the model is loaded. Raises ServerError with the engine's own message if it cannot be.

        May be called again after its end.
        """

    async def death(self) -> str:
        """Wait until the engine process has ended; return how."""

    def kill(self) -> None:
        """End a process that does not listen. No effect on one that has ended."""

    def submit(self, prompt: Prompt) -> AsyncIterator[Piece]:
        """Queue a prompt. Closing the iterator early cancels it. Raises ServerError if the engine is not ready."""

    async def stop(self) -> None: ...


def default_name(model: str) -> str:
    """The name under which a model is served unless another is given: the folder's, or the hub id."""
    return Path(model).resolve().name if Path(model).is_dir() else model
