"""Text that a grammar allows: each sequence has a matcher, which says before each token which ones may come.

The grammars are those of llguidance (the extra `json`), checked and compiled into their text form in the API process.
Its matchers know the vocabulary as bytes, so that one token may span several places of the grammar.
"""

import logging
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy
import torch
from torch import Tensor

from twofour.serve.engine.matching import matcher_of

GRAMMARS_KEPT = 64

log = logging.getLogger(__name__)


class NotFollowed(ValueError):
    """A grammar that is too large, or that allows no token."""


class Constraint:
    """How far one sequence is in its grammar."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._bits = numpy.zeros((vocab_size + 31) // 32, dtype=numpy.int32)
        self._vocab_size = vocab_size

    @property
    def done(self) -> bool:
        """The text is complete: nothing can follow."""
        return bool(self._matcher.is_stopped())

    def allowed(self) -> Tensor:  # [vocabulary], bool
        """The tokens that may come next; the end of text is one of them where the grammar may end."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._check()
        bits = numpy.unpackbits(self._bits.view(numpy.uint8), bitorder="little")
        return torch.from_numpy(bits[: self._vocab_size]).bool()

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise NotFollowed(f"the grammar cannot be followed: {self._matcher.get_error()[:200]}")


Constrain = Callable[[str], Constraint]


def grammars(model: str, revision: str | None, vocab_size: int, eos: tuple[int, ...]) -> Constrain:
    """Make constraints from grammars, for the model's tokenizer; preparing it takes seconds where it is large.

    vocab_size is that of the logits, which may be more than the tokenizer knows.
    """
    if find_spec("llguidance") is None:
        return no_grammars
    try:
        prepared = prepare(model, revision, vocab_size, eos)
    except Exception as error:  # a folder can hold anything; and text without a grammar needs no tokenizer here
        return unprepared(f"{type(error).__name__}: {error}")

    @lru_cache(maxsize=GRAMMARS_KEPT)
    def matcher(grammar: str) -> Any:
        return matcher_of(prepared, grammar)

    return lambda grammar: Constraint(matcher(grammar).deep_copy(), vocab_size)


def prepare(model: str, revision: str | None, vocab_size: int, eos: tuple[int, ...]) -> Any:
    from llguidance import LLTokenizer
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=False)
    return LLTokenizer(tokenizer.backend_tokenizer.to_str(), n_vocab=vocab_size, eos_token=list(eos) or None)


def any_object() -> str | None:
    """A grammar to warm up with; None: this engine follows no grammars."""
    if find_spec("llguidance") is None:
        return None
    from llguidance import LLMatcher

    return str(LLMatcher.grammar_from_json_schema('{"type": "object"}'))


def unprepared(why: str) -> Constrain:
    log.warning("no text can follow a grammar: the tokenizer cannot be prepared (%s)", why)

    def refuse(grammar: str) -> Constraint:
        raise ValueError(f"the tokenizer cannot be prepared for grammars: {why}")

    return refuse


def no_grammars(grammar: str) -> Constraint:
    raise ValueError('this engine follows no grammars; install twofour with the extra "json"')
