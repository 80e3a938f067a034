"""An engine process without a model: it repeats the tokens of the prompt, one in each step, as fast as it can.

`twofour.serve` starts it in the place of `serve.engine.child` and notices no difference: the protocol on the pipe is
the engine's, with a report for each step that holds a piece for each sequence under way. Nothing is computed.
"""

import sys
from collections import deque
from dataclasses import replace
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Any

from twofour.prune.format.folder import resolve
from twofour.serve.engine import child
from twofour.serve.engine.assembly.capacity import context_limit
from twofour.serve.engine.loop import HEARTBEAT_S
from twofour.serve.engine.messages import Cancel, Command, Report, decode_config, encode
from twofour.serve.engine.types import EngineConfig, EngineInfo, Finish, Piece, Prompt, Stats, StepRecord


class Script:
    """Who is being answered, and with how many tokens so far. First come, first served, `max_num_seqs` at a time."""

    def __init__(self, max_num_seqs: int) -> None:
        self._max_num_seqs = max_num_seqs
        self._waiting: deque[Prompt] = deque()
        self._running: dict[str, tuple[Prompt, int]] = {}
        self._steps = 0

    @property
    def busy(self) -> bool:
        return bool(self._running or self._waiting)

    def obey(self, command: Command) -> Piece | None:
        if isinstance(command, Prompt):
            self._waiting.append(command)
            return None
        return self._cancel(command)

    def step(self) -> list[Piece]:
        while self._waiting and len(self._running) < self._max_num_seqs:
            prompt = self._waiting.popleft()
            self._running[prompt.id] = prompt, 0
        self._steps += 1
        return [self._extend(prompt, said) for prompt, said in list(self._running.values())]

    def stats(self) -> Stats:
        running = len(self._running)
        return Stats(running=running, waiting=len(self._waiting), steps=self._steps, step_tokens=running)

    def _extend(self, prompt: Prompt, said: int) -> Piece:
        token = prompt.tokens[said % len(prompt.tokens)]
        self._running[prompt.id] = prompt, said + 1
        if said + 1 < prompt.sampling.max_tokens:
            return Piece(prompt.id, tokens=(token,))
        del self._running[prompt.id]
        return Piece(prompt.id, tokens=(token,), finish=Finish.LENGTH)

    def _cancel(self, command: Cancel) -> Piece | None:
        waiting = [prompt for prompt in self._waiting if prompt.id == command.id]
        if not waiting and command.id not in self._running:
            return None
        for prompt in waiting:
            self._waiting.remove(prompt)
        self._running.pop(command.id, None)
        return Piece(command.id, finish=Finish.ABORT)


def main() -> int:
    child.ignore_signals()
    pipe = Connection(int(sys.argv[1]))
    config = decode_config(pipe.recv_bytes())
    pipe.send_bytes(encode({"info": describe(config)}))
    script = Script(config.max_num_seqs)
    while (commands := child.receive(pipe, 0.0 if script.busy else HEARTBEAT_S)) is not None:
        begun = perf_counter()
        report = Report(tuple(filter(None, map(script.obey, commands))), script.stats())
        if script.busy:
            pieces = tuple(script.step())
            step = StepRecord(0, len(pieces), 0, perf_counter() - begun)
            report = replace(report, pieces=report.pieces + pieces, stats=script.stats(), step=step)
        child.send(pipe, report)
    return 0


def describe(config: EngineConfig) -> EngineInfo:
    """What an engine of that model would say, without its weights; the cache holds whatever may run at once."""
    from transformers import AutoConfig

    text: Any = AutoConfig.from_pretrained(str(resolve(config.model, config.revision))).get_text_config()
    context = min(context_limit(text), config.max_model_len or sys.maxsize)
    return EngineInfo(
        model=config.model,
        context_length=context,
        vocab_size=text.vocab_size,
        eos_token_ids=(),
        block_size=config.block_size,
        kv_tokens=context * config.max_num_seqs,
        weight_bytes=0,
        linear_bytes=0,
        kernels={},
        device="none",
        dtype="none",
        sparse=False,
        notes=("a scripted engine: it has no model",),
    )


if __name__ == "__main__":
    sys.exit(main())
