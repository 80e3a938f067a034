"""The engine process; what a prompt holds decides what goes wrong in the step that computes it."""

import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from twofour.serve.engine import child
from twofour.serve.engine.runners import Chunk
from twofour.serve.engine.runners.generic import GenericRunner

# Tokens that no text of the tests has beside each other.
EXCEPTION, NAN = (300, 301), (302, 303)
forward = GenericRunner.forward


def hurt(runner: GenericRunner, chunks: Sequence[Chunk]) -> Tensor:
    if any(holds(chunk, EXCEPTION) for chunk in chunks):
        raise ArithmeticError("this prompt asked for it, in /secret/path")
    logits = forward(runner, chunks).clone()
    first = 0
    for chunk in chunks:
        if holds(chunk, NAN):
            logits[first : first + len(chunk.wanted)] = torch.nan
        first += len(chunk.wanted)
    return logits


def holds(chunk: Chunk, trigger: tuple[int, int]) -> bool:
    return trigger in zip(chunk.tokens, chunk.tokens[1:], strict=False)


GenericRunner.forward = hurt  # type: ignore[method-assign]
if __name__ == "__main__":
    sys.exit(child.main())
