"""Who writes text with the dense model: a protocol, so that whoever stands above this floor can hand in a quicker one.

A text depends on its passage alone: its prompt, its seed, its temperature and the tokens that end it; not on what is
written beside it, but for last bits. So the same passages give the same text on the same kind of machine. Two writers
differ in last bits, and so in their text: the label says who wrote.
"""

import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol

from torch import nn

from twofour.prune.errors import NonFiniteError
from twofour.prune.progress import Progress, Step, silent

STAGE = "writing text"  # of progress, in tokens


@dataclass(frozen=True)
class Passage:
    """What a text begins with, and how it goes on.

    prompt: at least one token. tokens: the most that are written. temperature: 0 is greedy. ends: the tokens that end
    it; without any, it has all its tokens.
    """

    prompt: tuple[int, ...]
    tokens: int
    seed: int
    temperature: float = 1.0
    ends: frozenset[int] = frozenset()


class Writer(Protocol):
    """Goes on with passages, many at a time."""

    @property
    def name(self) -> str:
        """By what it computes, for the label."""

    def write(self, passages: Sequence[Passage], progress: Progress = silent) -> list[list[int]]:
        """Return what stands after each prompt; of a text that was ended, the last is the token that ended it.

        Raises InputError where a passage does not fit into the model's context, NonFiniteError where the model fails.
        """


NewWriter = Callable[[nn.Module], Writer]  # of the dense model, where it lies in memory; it must stay there unchanged


def seed_of(seed: int, *place: int | str) -> int:
    """Return a seed of its own for each place in a run: the same for the same place, unrelated to all others."""
    parts = [part.encode() if isinstance(part, str) else struct.pack("<Q", part) for part in place]
    digest = blake2b(struct.pack("<Q", seed) + b"\0".join(parts), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # below 2^63


def meter(passages: Sequence[Passage], progress: Progress) -> Callable[[int], None]:
    """Return what is told how many more tokens are done; those that a text ended without count as done."""
    started, done, total = time.perf_counter(), 0, sum(passage.tokens for passage in passages)

    def report(tokens: int) -> None:
        nonlocal done
        done += tokens
        progress(Step(STAGE, done, total, time.perf_counter() - started))

    return report


def not_finite(position: int) -> NonFiniteError:
    """Return the error of a model that cannot write. position: of the token after which it failed."""
    return NonFiniteError(
        f"the model's logits are NaN or infinite at position {position} of its own text; check its weights and "
        "dtype, or calibrate on a file, which names the first linear"
    )
