"""Conversations that a chat model writes alone, both sides of them, through its chat template (arXiv 2406.08464).

The text of a template around three markers gives what stands before the first turn, between a user's turn and the
answer, and between the answer and the next user's turn. These are forced, one token at a time; the model writes the
rest. A turn ends where the model draws a special token, whichever it is. What follows then comes from the template, so
every conversation has the form that the model was trained on. There are as many turns as a sample has room for.
"""

from dataclasses import dataclass
from itertools import cycle
from typing import Any

from twofour.prune.errors import TextError

MARKERS = ("first-question", "first-answer", "second-question")


@dataclass(frozen=True)
class Template:
    """What a chat template puts around turns, as token ids, and which tokens end a turn."""

    opening: list[int]  # before the first user's turn
    to_answer: list[int]
    to_question: list[int]
    special: frozenset[int]


class Conversation:
    """One sample, after its first token: takes what the model draws, and puts the template's tokens in between."""

    def __init__(self, template: Template) -> None:
        self._special = template.special
        self._forced = template.opening[1:]
        self._next = cycle((template.to_answer, template.to_question))

    def take(self, drawn: int) -> int:
        """Return the token that stands in the text where the model has drawn this one."""
        if not self._forced and drawn in self._special:
            self._forced = list(next(self._next))
        return self._forced.pop(0) if self._forced else drawn


def template(tokenizer: Any) -> Template:
    """Read the chat template of a tokenizer. Raises TextError where it has none that such text can follow."""
    if not getattr(tokenizer, "chat_template", None):
        raise TextError("the model has no chat template; calibrate on self, or on a file of conversations")
    added = tokenizer.added_tokens_decoder.items()
    special = frozenset(tokenizer.all_special_ids) | {token for token, about in added if about.special}
    pieces = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in _around_markers(tokenizer)]
    opening, to_answer, to_question = pieces
    if not opening or any(not piece or piece[0] not in special for piece in (to_answer, to_question)):
        raise TextError(
            "the model's chat template ends turns without a special token, so their end cannot be drawn; "
            "calibrate on self, or on a file of conversations"
        )
    return Template(opening, to_answer, to_question, special)


def _around_markers(tokenizer: Any) -> list[str]:
    """The text before the first, between the first and second, and between the second and third marker."""
    turns = zip(("user", "assistant", "user"), MARKERS, strict=True)
    rest = str(tokenizer.apply_chat_template([{"role": r, "content": c} for r, c in turns], tokenize=False))
    texts = []
    for marker in MARKERS:
        text, found, rest = rest.partition(marker)
        if not found:
            raise TextError("the model's chat template does not repeat what was said; calibrate on self or a file")
        texts.append(text)
    return texts
