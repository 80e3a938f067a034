"""Conversations in the form of a model's chat template, as token ids, and windows packed with them.

The text of a template around two markers gives what stands before the first user's turn, between that and the answer,
and after the answer. Conversations of a data set are rendered whole. A window begins with the beginning of a
conversation and goes on with others, the last of them cut off where the window ends.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from twofour.prune.errors import TextError

MARKERS = ("first-question", "first-answer")

Messages = Sequence[Mapping[str, Any]]  # [{"role": "user", "content": "..."}, ...]


@dataclass(frozen=True)
class Template:
    """What a chat template puts around a question and its answer, as token ids.

    opening: before the question, a system's turn that the template adds included. closing: after the answer; its first
    token ends the turn. special: the tokens that never stand inside of a turn.
    """

    opening: tuple[int, ...]
    to_answer: tuple[int, ...]
    closing: tuple[int, ...]
    special: frozenset[int]


def template(tokenizer: Any) -> Template:
    """Read the chat template of a tokenizer. Raises TextError where it has none that such text can follow."""
    _require_template(tokenizer)
    added = tokenizer.added_tokens_decoder.items()
    special = frozenset(tokenizer.all_special_ids) | {token for token, about in added if about.special}
    opening, to_answer, closing = (_ids(tokenizer, text) for text in _around_markers(tokenizer))
    if not opening or any(not piece or piece[0] not in special for piece in (to_answer, closing)):
        raise TextError(
            "the model's chat template ends turns without a special token, so their end cannot be drawn; "
            "calibrate on self, or on a file of conversations"
        )
    return Template(opening, to_answer, closing, special)


def is_chat(tokenizer: Any) -> bool:
    """Whether a model is one for conversations: its tokenizer has a chat template that text can follow."""
    try:
        template(tokenizer)
    except TextError:
        return False
    return True


def rendered(tokenizer: Any, messages: object, place: str) -> list[int]:
    """Return a conversation as the chat template has it. Raises TextError, naming the place, where it is none."""
    _require_template(tokenizer)
    if not _are_messages(messages):
        raise TextError(f'{place} holds no conversation; give a list of {{"role": ..., "content": ...}}')
    try:
        return list(_ids(tokenizer, tokenizer.apply_chat_template(messages, tokenize=False)))
    except Exception as error:  # a template is a program: it refuses roles and their order in its own ways
        reason = str(error).partition("\n")[0]
        raise TextError(f"the chat template refuses the conversation at {place} ({reason}); leave it out") from error


class Packing:
    """Windows that are filled with conversations, one after the other."""

    def __init__(self, samples: int, length: int) -> None:
        self._samples, self._length = samples, length
        self._windows, self._window = list[list[int]](), list[int]()

    @property
    def missing(self) -> int:
        """How many windows are not full yet."""
        return self._samples - len(self._windows)

    @property
    def windows(self) -> Tensor:  # int64 [at most samples, length]
        """The windows that are full."""
        return torch.tensor(self._windows, dtype=torch.int64).view(-1, self._length)

    def filled(self, name: str) -> Tensor:  # int64 [samples, length]
        """Return all windows. Raises TextError where what is called `name` did not fill them."""
        if self.missing:
            raise TextError(
                f"the conversations of {name} fill {len(self._windows)} windows of {self._length} tokens, "
                f"{self._samples} are asked for; give more text or fewer samples"
            )
        return self.windows

    def add(self, conversation: Sequence[int]) -> None:
        """Put a conversation into the window that is open; what has no room there is left out."""
        self._window += conversation
        if self.missing and len(self._window) >= self._length:
            self._windows.append(self._window[: self._length])
            self._window = []


def _are_messages(messages: object) -> bool:
    return (
        isinstance(messages, list)
        and bool(messages)
        and all(isinstance(each, dict) and {"role", "content"} <= each.keys() for each in messages)
    )


def _require_template(tokenizer: Any) -> None:
    if not getattr(tokenizer, "chat_template", None):
        raise TextError("the model has no chat template; calibrate on self, or on a file of text")


def _ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _around_markers(tokenizer: Any) -> list[str]:
    """The text before the first marker, between the markers, and after the second."""
    turns = zip(("user", "assistant"), MARKERS, strict=True)
    try:
        rest = str(tokenizer.apply_chat_template([{"role": r, "content": c} for r, c in turns], tokenize=False))
    except Exception as error:  # a template is a program
        reason = str(error).partition("\n")[0]
        raise TextError(f"the model's chat template fails ({reason}); calibrate on self, or on a file") from error
    texts = []
    for marker in MARKERS:
        text, found, rest = rest.partition(marker)
        if not found:
            raise TextError("the model's chat template does not repeat what was said; calibrate on self or a file")
        texts.append(text)
    return [*texts, rest]
