"""The engine's loop over a model that prune has in memory: many texts at a time, a step in one call of C++.

The fused runner reads the weights where they lie, so there is no second copy of the model, and computes every token by
itself in one order of additions: text is the same to the last bit, whatever is written beside it and on any number of
threads. Texts that end make room for others. Where torch has AMX tiles, its own products of many tokens are as quick,
and prune's own writer has them; so have models that the runner does not take.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from twofour.prune.errors import InputError, ModelError
from twofour.prune.progress import Progress, silent
from twofour.prune.text.plain import PlainWriter, batch_samples, refuse_length
from twofour.prune.text.writer import Passage, Writer, meter, not_finite
from twofour.serve.engine.blocks import Blocks
from twofour.serve.engine.loop import Loop
from twofour.serve.engine.messages import Command, Report
from twofour.serve.engine.runners.choice import has_tiles
from twofour.serve.engine.runners.fused import FusedRunner, misfit
from twofour.serve.engine.runners.generic import attention_layers
from twofour.serve.engine.scheduler import Scheduler
from twofour.serve.engine.types import STEP_TOKENS, EngineInfo, Failure, Finish, Piece, Prompt, Sampling

BLOCK = 16  # tokens in one cache block
SEQUENCES = 128  # at a time, at most; more of them are no faster
TRIAL_TOKENS = 32

log = logging.getLogger(__name__)


def new_writer(model: nn.Module) -> Writer:
    """Return the quickest that writes with a model where it is."""
    if has_tiles() or (why := misfit(model, BLOCK)):
        log.info("transformers writes: %s", "torch has AMX tiles" if has_tiles() else why)
        return PlainWriter(model)
    try:
        with fused(model, TRIAL_TOKENS // BLOCK, TRIAL_TOKENS) as runner:
            runner.verify()
    except ModelError as error:
        log.warning("transformers writes, not the fused runner: %s", error)
        return PlainWriter(model)
    return FusedWriter(model)


@contextmanager
def fused(model: Any, blocks: int, positions: int) -> Iterator[FusedRunner]:
    """A runner over a model in memory, which has its own attention again afterwards."""
    before = model.config._attn_implementation
    try:
        yield FusedRunner(model, attention_layers(model), blocks, BLOCK, positions)
    finally:
        model.set_attn_implementation(before)


class FusedWriter:
    """Writes with a model that the fused runner takes."""

    name = "twofour's engine, fused runner"

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def write(self, passages: Sequence[Passage], progress: Progress = silent) -> list[list[int]]:
        """See `Writer`."""
        longest = max((len(passage.prompt) + passage.tokens for passage in passages), default=0)
        refuse_length(self._model, longest)
        asked = {str(number): passage for number, passage in enumerate(passages) if passage.tokens > 0}
        texts: dict[str, list[int]] = {str(number): [] for number in range(len(passages))}
        if asked:
            self._run(asked, texts, longest, meter(passages, progress))
        return list(texts.values())

    def _run(
        self, asked: dict[str, Passage], texts: dict[str, list[int]], longest: int, report: Callable[[int], None]
    ) -> None:
        most = sequences(self._model, longest, len(asked))
        blocks = most * -(-longest // BLOCK) + most  # the scheduler keeps one for each that runs
        left, arrivals = len(asked), [[_prompt(id, passage) for id, passage in asked.items()]]

        def receive(timeout_s: float) -> list[Command] | None:
            return list(arrivals.pop()) if arrivals else [] if left else None

        def send(step: Report) -> None:
            nonlocal left
            for piece in step.pieces:
                texts[piece.id] += piece.tokens
                report(_done(piece, asked[piece.id], texts[piece.id]))
                left -= piece.finish is not None

        with fused(self._model, blocks, longest) as runner:
            scheduler = Scheduler(Blocks(blocks, BLOCK), most, STEP_TOKENS, piece=runner.piece)
            Loop(runner, scheduler, _info(self._model, blocks, longest)).run(receive, send)


def sequences(model: nn.Module, length: int, texts: int) -> int:
    """How many texts of this length are written at a time: fewer where their keys and values would take much memory."""
    return min(SEQUENCES, texts, batch_samples(model, length + BLOCK))


def _prompt(id: str, passage: Passage) -> Prompt:
    ends = tuple(sorted(passage.ends))
    sampling = Sampling(
        passage.tokens, temperature=passage.temperature, seed=passage.seed, stop_token_ids=ends, ignore_eos=True
    )
    return Prompt(id, passage.prompt, sampling)


def _done(piece: Piece, passage: Passage, text: Sequence[int]) -> int:
    """How many more tokens are done; those that an ended text is without count, too."""
    if piece.finish is Finish.ERROR:
        if piece.failure is Failure.NOT_FINITE:
            raise not_finite(len(passage.prompt) + len(text) - 1)
        raise InputError(f"the engine cannot write the text ({piece.error}); give fewer samples, or free memory")
    return len(piece.tokens) + (passage.tokens - len(text) if piece.finish else 0)


def _info(model: Any, blocks: int, longest: int) -> EngineInfo:
    """What the loop asks of a model that was not loaded for it."""
    return EngineInfo(
        model="",
        context_length=longest,
        vocab_size=model.config.vocab_size,
        eos_token_ids=(),
        block_size=BLOCK,
        kv_tokens=blocks * BLOCK,
        weight_bytes=0,
        linear_bytes=0,
        kernels={},
        device="cpu",
        dtype="bfloat16",
        sparse=False,
    )
