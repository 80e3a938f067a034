"""An engine that says what a script says, and a small tokenizer of bytes."""

import asyncio
import queue
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from twofour.prune.errors import ServerError
from twofour.serve.engine.types import EngineInfo, Failure, Finish, Logprob, Piece, Prompt, Stats, StepRecord

CONTEXT = 256
SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>"]
MERGES = [("h", "e"), ("l", "l"), ("o", "w"), ("he", "ll"), ("Ġ", "w")]
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['content'] == 'refuse me' %}{{ raise_exception('no') }}{% endif %}"
    "<|user|>{{ message['role'] }}: {{ message['content'] }}<|end|>{% endfor %}<|assistant|>"
)
REPLY = "hello wörld, 🤗 all"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, a few merges and three special tokens."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in MERGES)]
    vocab = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", chat_template=TEMPLATE)


@dataclass
class ScriptedEngine:
    """Says what the script says, one token a piece, and notes how each sequence ended."""

    vocab_size: int
    eos: int
    script: Callable[[Prompt], Sequence[int]]
    hold_after: int | None = None  # tokens, then wait for `release`
    fail_after: int | None = None  # tokens, then end with an error of this sequence alone
    failure: Failure | None = None  # of which the client is told
    leave_after: int | None = None  # tokens, then end without saying so: a defect
    kv_tokens: int = 4096
    healthy: bool = True
    ready: bool = True
    stalled: bool = False
    heartbeat_age_s: float = 0.1
    step_limit_s: float = 0.0
    stats: Stats = field(default_factory=Stats)
    prompts: list[Prompt] = field(default_factory=list)
    ended: "queue.Queue[str]" = field(default_factory=queue.Queue)
    started: "queue.Queue[str]" = field(default_factory=queue.Queue)  # first tokens, or waiting
    stopped: bool = False
    open: int = 0
    restarts: int = 0
    steps: list[StepRecord] = field(default_factory=list)
    step_sizes: dict[int, int] = field(default_factory=dict)
    scores: Callable[[int], Logprob] | None = None  # of a token; None: as `score` says

    def __post_init__(self) -> None:
        self._release, self._died = asyncio.Event(), asyncio.Event()
        self.loop: asyncio.AbstractEventLoop | None = None

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(
            model="/secret/path/model",
            context_length=CONTEXT,
            vocab_size=self.vocab_size,
            eos_token_ids=(self.eos,),
            block_size=16,
            kv_tokens=self.kv_tokens,
            weight_bytes=2000,
            linear_bytes=1500,
            kernels={"reference": 7, "dense": 2},
            device="cpu",
            dtype="float32",
            sparse=True,
            cuda_graphs=36,
            cuda_graph_bytes=5000,
            runner="fused",
            head_values="int8",
            dense_values="bfloat16",
            runner_reason="a reason",
            max_num_seqs=32,
            max_num_batched_tokens=2048,
            piece=256,
        )

    async def start(self) -> None:
        self.ready = self.healthy = True
        self._died.clear()

    async def stop(self) -> None:
        self.stopped = True

    async def death(self) -> str:
        await self._died.wait()
        return "the engine ended"

    def kill(self) -> None:
        self.die()

    def release(self) -> None:
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self._release.set)

    def die(self) -> None:
        self.healthy = self.ready = False
        self.release()
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self._died.set)

    async def submit(self, prompt: Prompt) -> AsyncIterator[Piece]:
        if not self.ready:
            raise ServerError("the engine at /secret/path is not ready")
        self.prompts.append(prompt)
        self.open += 1
        how = "cancelled"
        try:
            async for piece in self._pieces(prompt):
                yield piece
                if piece.finish is not None:
                    how = str(piece.finish)
        finally:
            self.open -= 1
            self.ended.put(how)

    async def _pieces(self, prompt: Prompt) -> AsyncIterator[Piece]:
        sampling = prompt.sampling
        first = Piece(prompt.id, queue_s=0.01, prefill_s=0.02, prompt_logprobs=scores_of_prompt(prompt))
        reply = [*self.script(prompt), self.eos][: sampling.max_tokens]
        if not reply:
            yield replace(first, finish=Finish.LENGTH)
        for position, token in enumerate(reply):
            await self._act(position)
            if position == self.leave_after:
                return
            if position == self.fail_after:
                yield Piece(prompt.id, finish=Finish.ERROR, error="it failed in /secret/path", failure=self.failure)
                return
            stops = token == self.eos
            last = position == len(reply) - 1
            piece = first if position == 0 else Piece(prompt.id)
            finish = Finish.STOP if stops else Finish.LENGTH if last else None
            scores = () if sampling.logprobs is None else (self._score(token, sampling.logprobs),)
            yield replace(piece, tokens=(token,), logprobs=scores, finish=finish, stopped_by=token if stops else None)

    def _score(self, token: int, k: int) -> Logprob:
        return score(token, k) if self.scores is None else self.scores(token)

    async def _act(self, position: int) -> None:
        await asyncio.sleep(0)
        if position == (self.hold_after or 0):
            self.started.put("here")
        if position == self.hold_after:
            await self._release.wait()
            if not self.healthy:
                raise ServerError("the engine at /secret/path has died")


def score(token: int, k: int) -> Logprob:
    """The token itself is the second likeliest."""
    likeliest = ((token + 1) % 256, -0.25)
    return Logprob(token, -1.5, tuple([likeliest, (token, -1.5), (0, float("-inf"))][:k]))


def scores_of_prompt(prompt: Prompt) -> tuple[Logprob | None, ...]:
    k = prompt.sampling.prompt_logprobs
    if k is None:
        return ()
    return (None, *(score(token, k) for token in prompt.tokens[1:]))
