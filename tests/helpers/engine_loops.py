"""Loops over tiny models and over a runner that follows a script, run step by step to their end."""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import count
from typing import Any

import small_models
import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from twofour.serve.engine.blocks import Blocks
from twofour.serve.engine.loop import HEARTBEAT_S, Loop
from twofour.serve.engine.messages import Command, Report
from twofour.serve.engine.runners import Chunk, Runner
from twofour.serve.engine.runners.generic import GenericRunner, attention_layers
from twofour.serve.engine.scheduler import Scheduler
from twofour.serve.engine.types import EngineInfo, Piece, Prompt, Sampling

SIZE, EOS = 4, 0
SMALL = {**small_models.SMALL, "eos_token_id": EOS, "pad_token_id": 1}
VOCABULARY, CONTEXT = SMALL["vocab_size"], SMALL["max_position_embeddings"]
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=7)),
}


@cache
def model(family: str) -> Any:
    torch.manual_seed(1)
    return FAMILIES[family]().eval()


@cache
def twin(family: str) -> tuple[Any, Any]:
    made = FAMILIES[family]().eval()
    made.load_state_dict(model(family).state_dict())
    return made, attention_layers(made)


def engine(runner: Runner | None = None, family: str = "llama", blocks: int = 200, budget: int = 16) -> Loop:
    if runner is None:
        runner = GenericRunner(*twin(family), blocks, SIZE)
    info = EngineInfo(
        model="tiny", context_length=CONTEXT, vocab_size=VOCABULARY, eos_token_ids=(EOS,), block_size=SIZE,
        kv_tokens=blocks * SIZE, weight_bytes=0, linear_bytes=0, kernels={}, device="cpu", dtype="float32",
        sparse=False,
    )  # fmt: skip
    ticks = count()
    return Loop(runner, Scheduler(Blocks(blocks, SIZE), 8, budget), info, clock=lambda: float(next(ticks)))


def run(loop: Loop, arrivals: Sequence[Sequence[Command]]) -> list[Report]:
    """One list of commands per step, then nothing until all have ended."""
    script, reports, waits = list(arrivals), list[Report](), list[float]()

    def receive(timeout_s: float) -> list[Command] | None:
        waits.append(timeout_s)
        if script:
            return list(script.pop(0))
        return None if timeout_s else []

    loop.run(receive, reports.append)
    assert waits[-1] == HEARTBEAT_S, "it ends idle"
    return reports


def pieces_of(reports: Sequence[Report], id: str) -> list[Piece]:
    pieces = [piece for report in reports for piece in report.pieces if piece.id == id]
    assert [bool(piece.finish) for piece in pieces] == [False] * (len(pieces) - 1) + [True], "it ends exactly once"
    return pieces


def text(reports: Sequence[Report], id: str) -> list[int]:
    return [token for piece in pieces_of(reports, id) for token in piece.tokens]


def prompt(id: str, length: int, first: int = 0, **sampling: Any) -> Prompt:
    tokens = tuple((7 * i + first) % (VOCABULARY - 2) + 2 for i in range(length))
    return Prompt(id, tokens, Sampling(**{"max_tokens": 10, "temperature": 0} | sampling))


@torch.inference_mode()
def generated(family: str, p: Prompt) -> list[int]:
    tokens = torch.tensor([p.tokens])
    mask = torch.ones_like(tokens)
    out = model(family).generate(tokens, attention_mask=mask, max_new_tokens=p.sampling.max_tokens, do_sample=False)
    new: list[int] = out[0, len(p.tokens) :].tolist()
    return new


LENGTHS = [1, 40, 3, 17, 8, 33, 2, 16, 5, 60, 9, 4]
MAX_TOKENS = [20, 5, 30, 1, 24, 12, 2, 16, 28, 9, 9, 18]
MIXED = [
    prompt(str(i), length, 13 * i, max_tokens=n) for i, (length, n) in enumerate(zip(LENGTHS, MAX_TOKENS, strict=True))
]


class Script:
    """A runner whose best token is chosen by position; `faults` are raised by one forward after another."""

    best = None

    def __init__(self, next_token: Callable[[int], int] = lambda position: 5, faults: Sequence[Exception | None] = ()):
        self.next_token, self.faults, self.steps = next_token, list(faults), list[list[Chunk]]()

    def forward(self, chunks: Sequence[Chunk]) -> Tensor:
        self.steps.append(list(chunks))
        if self.faults and (fault := self.faults.pop(0)):
            raise fault
        positions = [chunk.start + offset for chunk in chunks for offset in chunk.wanted]
        logits = torch.zeros(len(positions), VOCABULARY)
        for row, position in zip(logits, positions, strict=True):
            row[self.next_token(position)] = 9.0
        return logits
