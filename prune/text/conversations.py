"""Conversations that a chat model writes alone, a question and its answer each (arXiv 2406.08464).

After what the chat template puts before a user's turn, the model draws the question, at temperature 1. The answer is
greedy: it is the one that the model gives when it is asked, and drawn ones are often odd. What is not fit to calibrate
on is dropped, and counted. A question is dropped that does not end, is empty or short, repeats words or another
question, or is one of those that models are judged on; an answer that is empty or goes round in a loop, the greedy
answers of small models do. One that is only long is kept without its end: of small models, the short answers alone are
mostly excuses.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from twofour.prune.errors import TextError
from twofour.prune.progress import Progress, silent
from twofour.prune.text import chat
from twofour.prune.text.chat import Packing, Template
from twofour.prune.text.questions import HELD_OUT, plain_words
from twofour.prune.text.writer import Passage, Writer, seed_of

QUESTION_TOKENS, ANSWER_TOKENS = 96, 256
ROUND_TOKENS = 96  # of the text that is missing, for each question that is drawn
ROUNDS = 8  # of questions, at most; none is smaller than a quarter of the first
SHORT_WORDS = 3  # a question has no fewer
NEAR = 0.7  # of the words of two questions are the same: they count as one
LOOP_TOKENS, LOOPS = 8, 0.2  # so large a share of an answer's runs of so many tokens stood in it before


@dataclass
class Counts:
    """How many questions were drawn, how many conversations kept, of these cut off, and what was dropped, and why."""

    questions: int = 0
    kept: int = 0
    cut: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        why = ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items()))
        return f"{self.kept} of {self.questions} kept; dropped: {why or 'none'}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"questions": self.questions, "kept": self.kept, "cut": self.cut, "dropped": dict(self.dropped)}


class Written(NamedTuple):
    """Windows full of conversations, int64 [at most as many as were asked for, length]."""

    windows: Tensor
    counts: Counts


def written(
    writer: Writer, tokenizer: Any, samples: int, length: int, seed: int, progress: Progress = silent
) -> Written:
    """Let the model write conversations, in rounds. Raises TextError without a fitting template, or room for a turn."""
    template = chat.template(tokenizer)
    if len(template.opening) >= length:
        raise TextError(
            f"the chat template takes {len(template.opening)} tokens before the first turn, a sample has {length}; "
            "give a greater length"
        )
    packing, sieve = Packing(samples, length), Sieve(tokenizer, template)
    for _ in range(ROUNDS):
        asked, kept = sieve.counts.questions, sieve.counts.kept
        count = max(_first_round(packing.missing, length), _first_round(samples, length) // 4)
        seeds = [seed_of(seed, "question", number) for number in range(asked, asked + count)]
        for conversation in _round(writer, template, seeds, length, sieve, progress):
            packing.add(conversation)
        if not packing.missing or sieve.counts.kept == kept:  # what yields nothing will not
            break
    return Written(packing.windows, sieve.counts)


def expected(samples: int, length: int) -> tuple[int, int]:
    """Return about how many texts of how many tokens are written: those of a first round, which mostly suffices."""
    return _first_round(samples, length), min(length, (QUESTION_TOKENS + ANSWER_TOKENS) // 2)


def _first_round(samples: int, length: int) -> int:
    """How many questions are drawn for so many windows."""
    return -(-samples * length // ROUND_TOKENS)


def _round(
    writer: Writer, template: Template, seeds: Sequence[int], length: int, sieve: "Sieve", progress: Progress
) -> Iterator[list[int]]:
    """Draw a question for each seed, have those that are fit answered, and give the conversations that are fit."""
    most = min(QUESTION_TOKENS, length - len(template.opening))
    drawn = writer.write([Passage(template.opening, most, seed, 1.0, template.special) for seed in seeds], progress)
    questions = [question[:-1] for question in drawn if sieve.takes_question(question)]
    answered = answers(writer, template, questions, length, ANSWER_TOKENS, progress)
    for question, answer in zip(questions, answered, strict=True):
        if sieve.takes_answer(answer):
            ended = answer[-1] in template.special
            yield [*asked(template, question), *(answer[:-1] if ended else answer), *template.closing]


def asked(template: Template, question: Sequence[int]) -> tuple[int, ...]:
    """Return what a model has before it when it answers."""
    return (*template.opening, *question, *template.to_answer)


def answers(
    writer: Writer,
    template: Template,
    questions: Sequence[Sequence[int]],
    length: int,
    most: int,
    progress: Progress = silent,
) -> list[list[int]]:
    """Let the model answer greedily, in at most so many tokens, and so that a conversation is no longer than `length`.

    An answer that ended has the token that ended it.
    """
    prompts = [asked(template, question) for question in questions]
    rooms = [max(0, min(most, length - len(prompt))) for prompt in prompts]
    passages = [Passage(prompt, room, 0, 0.0, template.special) for prompt, room in zip(prompts, rooms, strict=True)]
    return writer.write(passages, progress)


class Sieve:
    """Keeps what is fit, and counts; it knows the questions that passed before."""

    def __init__(self, tokenizer: Any, template: Template) -> None:
        self._tokenizer, self._template = tokenizer, template
        self._seen = list[frozenset[str]]()
        self.counts = Counts()

    def takes_question(self, ids: Sequence[int]) -> bool:
        """Whether a question as it was drawn is fit."""
        self.counts.questions += 1
        return self._takes(self._unfit_question(ids))

    def takes_answer(self, ids: Sequence[int]) -> bool:
        """Whether an answer as it was written is fit, and with it a conversation."""
        ended = bool(ids) and ids[-1] in self._template.special
        takes = self._takes(self._unfit_answer(ids[:-1] if ended else ids))
        self.counts.kept += takes
        self.counts.cut += takes and not ended
        return takes

    def _takes(self, why: str | None) -> bool:
        self.counts.dropped.update([why] if why else [])
        return why is None

    def _unfit_question(self, ids: Sequence[int]) -> str | None:
        if not ids or ids[-1] != self._template.to_answer[0]:
            return "questions without an end"
        words = plain_words(self._tokenizer.decode(ids[:-1]))
        if not words:
            return "empty questions"
        if len(words) < SHORT_WORDS:
            return "short questions"
        if words in HELD_OUT:
            return "questions of the judge"
        kinds = frozenset(words)
        if loops(ids[:-1]) or any(len(kinds & other) >= NEAR * len(kinds | other) for other in self._seen):
            return "repeated questions"
        self._seen.append(kinds)
        return None

    def _unfit_answer(self, ids: Sequence[int]) -> str | None:
        if not plain_words(self._tokenizer.decode(ids)):
            return "empty answers"
        return "answers in a loop" if loops(ids) else None


def loops(ids: Sequence[int]) -> bool:
    """Whether much of a text stood in it before."""
    runs = [tuple(ids[at : at + LOOP_TOKENS]) for at in range(len(ids) - LOOP_TOKENS + 1)]
    return len(runs) - len(set(runs)) > LOOPS * len(runs)
