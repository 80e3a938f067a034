"""From the engine's pieces to what a client may see. Leaving a Generation ends its sequences in the engine."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Self, cast

from twofour.prune.errors import ServerError
from twofour.serve.edge.errors import RequestError, internal, not_finite, not_followed
from twofour.serve.engine.types import Engine, Failure, Finish, Piece, Prompt
from twofour.serve.openai.answers.choice import Choice
from twofour.serve.openai.answers.detokenize import Decode, Spell
from twofour.serve.openai.engine_metrics import EngineMetrics, Timeline
from twofour.serve.openai.handlers import engine_unavailable

log = logging.getLogger("twofour.openai")


@dataclass(frozen=True)
class Job:
    """One HTTP request, checked and tokenised."""

    request_id: str
    arrived_at: float
    prompts: tuple[Prompt, ...]  # one for each choice: n for each prompt that was sent, next to each other
    n: int
    stops: tuple[str, ...]

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts that were sent, each counted once."""
        return sum(len(prompt.tokens) for prompt in self.prompts[:: self.n])

    @property
    def most_tokens(self) -> int:
        """Of prompts and of answers at their longest."""
        return self.prompt_tokens + sum(prompt.sampling.max_tokens for prompt in self.prompts)


class Feed:
    """The pieces of several sequences, in the order in which they arrive. Leaving it cancels those that still run."""

    def __init__(self, engine: Engine, prompts: Sequence[Prompt]) -> None:
        self._engine, self._prompts = engine, prompts
        self._arrivals: asyncio.Queue[tuple[int, Piece | Exception]] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self.tokens = 0  # that have arrived, taken by next() or not

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._follow(index, prompt)) for index, prompt in enumerate(self._prompts)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def next(self) -> list[tuple[int, Piece]]:
        """Everything that has arrived since the last call: a slow reader gets more at a time."""
        arrived = [await self._arrivals.get()]
        while not self._arrivals.empty():
            arrived.append(self._arrivals.get_nowait())
        return [(index, unless_error(piece)) for index, piece in arrived]

    def cancel(self, index: int) -> None:
        self._tasks[index].cancel()

    async def _follow(self, index: int, prompt: Prompt) -> None:
        finish: Finish | None = None
        try:
            # `Engine.submit` promises an iterator that can be closed early, which cancels the sequence.
            pieces = cast(AsyncGenerator[Piece, None], self._engine.submit(prompt))
            async with aclosing(pieces):
                async for piece in pieces:
                    finish = piece.finish
                    self.tokens += len(piece.tokens)
                    self._arrivals.put_nowait((index, piece))
            if finish is None:
                raise ServerError("the engine left a sequence without an end")
        except Exception as error:
            self._arrivals.put_nowait((index, error))


def unless_error(piece: Piece | Exception) -> Piece:
    if isinstance(piece, Exception):
        raise piece
    return piece


class Generation:
    """A job under way. `advance` until it is `done`."""

    def __init__(self, job: Job, engine: Engine, metrics: EngineMetrics, decode: Decode, spell: Spell) -> None:
        self.job = job
        self.choices = [Choice(i, prompt, job.stops, decode, spell) for i, prompt in enumerate(job.prompts)]
        self.timelines = [Timeline(metrics, prompt, job.arrived_at) for prompt in job.prompts]
        self._engine = engine
        self._feed = Feed(engine, job.prompts)
        self._open = len(self.choices)

    @property
    def done(self) -> bool:
        return self._open == 0

    @property
    def used_tokens(self) -> int:
        """With those that were generated and not taken."""
        return self.job.prompt_tokens + self._feed.tokens

    async def __aenter__(self) -> Self:
        await self._feed.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._feed.__aexit__(kind, error, trace)
        unfinished = "error" if isinstance(error, Exception) else "abort"
        for choice, timeline in zip(self.choices, self.timelines, strict=True):
            timeline.end(choice.finish or unfinished)

    async def advance(self) -> list[Choice]:
        """Wait for pieces; return the choices that got some, in order."""
        touched = set()
        for index, piece in await self._next():
            choice = self.choices[index]
            if choice.finish is None:
                self._accept(choice, piece)
                touched.add(index)
        return [self.choices[index] for index in sorted(touched)]

    async def _next(self) -> list[tuple[int, Piece]]:
        try:
            return await self._feed.next()
        except ServerError as error:
            log.error("request %s: %s", self.job.request_id, error)
            raise engine_unavailable() from error

    def _accept(self, choice: Choice, piece: Piece) -> None:
        self.timelines[choice.index].saw(piece)
        if piece.finish in (Finish.ERROR, Finish.ABORT):
            raise self._failure(piece)
        choice.accept(piece)
        if choice.finish is not None:
            self._open -= 1
            if piece.finish is None:  # it ended at a stop string: the engine knows of none
                self._feed.cancel(choice.index)

    def _failure(self, piece: Piece) -> RequestError:
        """The engine gave this sequence up. Its words may hold paths: they are for the log."""
        log.error("request %s: %s: %s", self.job.request_id, piece.finish, piece.error)
        if piece.failure is Failure.NOT_FINITE:
            return not_finite()
        if piece.failure is Failure.NOT_FOLLOWED:
            return not_followed()
        return internal(self.job.request_id) if self._engine.ready else engine_unavailable()
