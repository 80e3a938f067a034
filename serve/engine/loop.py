"""The step loop of the engine process.

A fault in one request ends that request: a refused prompt, logits that are not finite, sampling that fails. A forward
that fails, for lack of memory for instance, is done again for each of its requests alone, and ends those that fail
again. A device in an undefined state ends the process; its parent then ends all requests.
"""

import logging
import secrets
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter

import torch
from torch import Tensor

from twofour.prune.errors import NonFiniteError
from twofour.serve.engine.grammar import Constrain, no_grammars
from twofour.serve.engine.messages import Cancel, Command, Report
from twofour.serve.engine.runners import Chunk, Runner
from twofour.serve.engine.sampler import Sampled, ends, sample, score_prompt
from twofour.serve.engine.scheduler import Scheduler, Turn, refusal
from twofour.serve.engine.sequence import Sequence
from twofour.serve.engine.types import EngineInfo, Failure, Finish, Piece, Prompt, Stats, StepRecord

HEARTBEAT_S = 0.25

log = logging.getLogger(__name__)


class Loop:
    """Owns every sequence from its arrival to its one end."""

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        info: EngineInfo,
        clock: Callable[[], float] = perf_counter,
        peak_device_bytes: Callable[[], int] = lambda: 0,
        constrain: Constrain = no_grammars,
        replayed_steps: Callable[[], int] = lambda: 0,
    ) -> None:
        self._runner, self._scheduler, self._info = runner, scheduler, info
        self._clock, self._peak_device_bytes, self._replayed_steps = clock, peak_device_bytes, replayed_steps
        self._constrain = constrain
        self._eos = frozenset(info.eos_token_ids)
        self._sequences: dict[str, Sequence] = {}
        self._steps = self._step_tokens = self._not_finite = 0

    def run(
        self,
        receive: Callable[[float], list[Command] | None],
        send: Callable[[Report], None],
        begin: Callable[[int], None] = lambda tokens: None,
    ) -> None:
        """Serve until `receive` gives None. While idle it waits there for a heartbeat's time, while busy not at all.

        `begin` is called before a step that computes part of a prompt, with the number of its tokens.
        """
        while (commands := receive(0.0 if self._scheduler.busy else HEARTBEAT_S)) is not None:
            pieces = self._obey(commands)
            send(self._step(pieces, begin) if self._scheduler.busy else Report(tuple(pieces), self._stats()))

    def _step(self, pieces: list[Piece], begin: Callable[[int], None]) -> Report:
        begun = self._clock()
        turns = self._scheduler.next_step()
        if (tokens := sum(turn.tokens for turn in turns)) > len(turns):
            begin(tokens)
        self._note_start(turns, begun)
        chunks, waiting = [_chunk(turn) for turn in turns], len(self._scheduler.waiting)
        pieces += self._compute(turns, chunks)
        self._scheduler.check_idle()
        self._steps, self._step_tokens = self._steps + 1, tokens
        step = _record(chunks, begun, self._clock() - begun, waiting)
        return Report(tuple(pieces), self._stats(), step)

    def _compute(self, turns: list[Turn], chunks: list[Chunk]) -> list[Piece]:
        """One forward for all; if it fails, one for each, to find whose fault it was."""
        try:
            logits = self._runner.forward(chunks)
        except torch.AcceleratorError:
            raise
        except Exception as error:
            log.exception("a step of %d sequences failed", len(turns))
            if len(turns) == 1:
                return [self._fail(turns[0].sequence, f"the step failed: {type(error).__name__}: {error}")]
            return [piece for t, c in zip(turns, chunks, strict=True) for piece in self._compute([t], [c])]
        return self._advance(turns, chunks, logits)

    def _obey(self, commands: list[Command]) -> list[Piece]:
        pieces = [self._cancel(c.id) if isinstance(c, Cancel) else self._add(c) for c in commands]
        return [piece for piece in pieces if piece]

    def _add(self, prompt: Prompt) -> Piece | None:
        grammar = prompt.sampling.grammar
        try:
            why = refusal(prompt, self._info.context_length, self._info.kv_tokens, self._info.vocab_size)
            constraint = self._constrain(grammar) if grammar and not why else None
        except Exception as error:
            why = f"the prompt cannot be read: {type(error).__name__}: {error}"
        if why:
            return Piece(prompt.id, finish=Finish.ERROR, error=why)
        seed = prompt.sampling.seed if prompt.sampling.seed is not None else secrets.randbits(64)
        sequence = self._sequences[prompt.id] = Sequence(prompt, seed, self._clock(), constraint=constraint)
        self._scheduler.add(sequence)
        return None

    def _cancel(self, id: str) -> Piece | None:
        """The sequence may have ended while the cancel was on its way."""
        sequence = self._sequences.get(id)
        return self._end(sequence, Piece(id, finish=Finish.ABORT)) if sequence else None

    def _fail(self, sequence: Sequence, error: str, failure: Failure | None = None) -> Piece:
        self._not_finite += failure is Failure.NOT_FINITE
        self._scheduler.blocks.withdraw(sequence.blocks)  # they may hold NaN, which others must not take over
        return self._end(sequence, Piece(sequence.id, finish=Finish.ERROR, error=error, failure=failure))

    def _end(self, sequence: Sequence, piece: Piece) -> Piece:
        del self._sequences[sequence.id]
        self._scheduler.end(sequence)
        return piece

    def _note_start(self, turns: list[Turn], now: float) -> None:
        for turn in turns:
            if turn.sequence.started_at is None:
                turn.sequence.started_at = now

    def _advance(self, turns: list[Turn], chunks: list[Chunk], logits: Tensor) -> list[Piece]:
        """Use the logits of a step: score prompt tokens, and sample for sequences that have computed all of theirs."""
        pieces: list[Piece] = []
        ready: list[Sequence] = []
        rows: list[int] = []
        end = 0
        for turn, chunk in zip(turns, chunks, strict=True):
            sequence, wanted = turn.sequence, len(chunk.wanted)
            samples = sequence.samples(turn.tokens)
            end += wanted
            self._scheduler.computed(turn)
            only_samples = wanted == 1 and samples
            if not only_samples and (piece := self._score(sequence, logits[end - wanted : end - samples])):
                pieces.append(piece)
            elif samples:
                ready.append(sequence)
                rows.append(end - 1)
        sampled = self._sample(logits, rows, ready) if ready else []
        return pieces + [self._extend(*both) for both in zip(ready, sampled, strict=True)]

    def _sample(self, logits: Tensor, rows: list[int], ready: list[Sequence]) -> list[Sampled]:
        try:
            best = self._runner.best
            if len(rows) < len(logits):  # others score prompts
                logits, best = logits[rows], best and [best[row] for row in rows]
            return sample(logits, ready, self._eos, best)
        except torch.AcceleratorError:
            raise
        except Exception as error:  # lack of memory, for instance; `sample` handles the faults of one sequence
            return [Sampled(error=f"sampling failed: {type(error).__name__}: {error}")] * len(ready)

    def _score(self, sequence: Sequence, rows: Tensor) -> Piece | None:
        """Note the logprobs of prompt tokens; end a sequence that asked for nothing else."""
        try:
            score_prompt(sequence, rows)
        except torch.AcceleratorError:
            raise
        except NonFiniteError as error:
            return self._fail(sequence, str(error), Failure.NOT_FINITE)
        except Exception as error:
            return self._fail(sequence, f"scoring the prompt failed: {type(error).__name__}: {error}")
        if sequence.pending or sequence.sampling.max_tokens:
            return None
        return self._end(sequence, self._first(sequence, Piece(sequence.id, finish=Finish.LENGTH)))

    def _extend(self, sequence: Sequence, sampled: Sampled) -> Piece:
        """Append a sequence's next token, and end it if that was the last."""
        if sampled.error:
            return self._fail(sequence, sampled.error, sampled.failure)
        sequence.tokens.append(sampled.token)
        piece = _grown(sequence, sampled, self._eos)
        if sequence.generated == 1:
            piece = self._first(sequence, piece)
        return self._end(sequence, piece) if piece.finish else piece

    def _first(self, sequence: Sequence, piece: Piece) -> Piece:
        started_at = sequence.started_at or sequence.arrived_at
        return replace(
            piece,
            prompt_logprobs=tuple(sequence.prompt_logprobs),
            cached_tokens=sequence.cached_tokens,
            queue_s=started_at - sequence.arrived_at,
            prefill_s=self._clock() - started_at,
        )

    def _stats(self) -> Stats:
        scheduler = self._scheduler
        return Stats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            kv_tokens_used=scheduler.blocks.in_use * scheduler.blocks.size,
            preemptions=scheduler.preemptions,
            prefix_queries=scheduler.prefix_queries,
            prefix_hits=scheduler.prefix_hits,
            steps=self._steps,
            step_tokens=self._step_tokens,
            not_finite=self._not_finite,
            peak_device_bytes=self._peak_device_bytes(),
            replayed_steps=self._replayed_steps(),
        )


def _chunk(turn: Turn) -> Chunk:
    sequence, start, stop = turn.sequence, turn.sequence.computed, turn.sequence.computed + turn.tokens
    prompt = max(0, min(stop, len(sequence.prompt.tokens)) - start)
    return Chunk(sequence.tokens[start:stop], start, sequence.blocks, sequence.wanted(turn.tokens), prompt)


def _grown(sequence: Sequence, sampled: Sampled, eos: frozenset[int]) -> Piece:
    token, ended = sampled.token, ends(sampled.token, sequence.sampling, eos)
    full = sequence.generated == sequence.sampling.max_tokens
    complete = sequence.constraint is not None and sequence.constraint.done
    return Piece(
        sequence.id,
        tokens=(token,),
        logprobs=(sampled.logprob,) if sampled.logprob else (),
        finish=Finish.STOP if ended or complete else Finish.LENGTH if full else None,
        stopped_by=token if ended else None,
    )


def _record(chunks: list[Chunk], begun: float, seconds: float, waiting: int) -> StepRecord:
    prefilled = decodes = kv_tokens = decode_kv_tokens = pairs = 0
    for chunk in chunks:  # once, as this is part of every step
        start, count = chunk.start, len(chunk.tokens)
        kv_tokens += start + count
        if count == 1:
            decodes += 1
            decode_kv_tokens += start + 1
        else:
            prefilled += count
            pairs += count * start + count * (count + 1) // 2
    return StepRecord(
        prefill_tokens=prefilled,
        decodes=decodes,
        kv_tokens=kv_tokens,
        seconds=seconds,
        decode_kv_tokens=decode_kv_tokens,
        prefill_pairs=pairs,
        waiting=waiting,
        started_at=begun,
    )
