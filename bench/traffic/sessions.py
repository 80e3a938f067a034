"""From turns to Requests: each turn is sent with what was said before it, which is known in advance.

The history of a turn holds the file's answers, or words in their place, and not what the server said: so the bytes are
made before the clock runs, and all servers get the same. All turns of a session begin with the same words of the nonce,
so that a prefix cache finds what it would find of a real conversation: the prompt before, without its answer.

A sketch has all but the words that would be made up: what prompts begin with is said by name.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Protocol

from twofour.bench.load.records import Message, Part, Request
from twofour.bench.load.workload import NONCE_WORDS, words
from twofour.bench.traffic.conversations import Conversation
from twofour.bench.traffic.lengths import Pause
from twofour.bench.traffic.traces import BLOCK, Row


class Tokens(Protocol):
    def draw(self, draw: random.Random) -> int: ...


class Sizes(Protocol):
    """The lengths of a prompt and its answer, drawn together."""

    def __call__(self, draw: random.Random) -> tuple[int, int]: ...


@dataclass(frozen=True)
class Turn:
    """What a user says, and what is taken as its answer in the turns after it."""

    prompt: str
    prompt_tokens: int | None  # of this turn alone; None: unknown
    output_tokens: int
    answer: str = ""  # of the last turn, none is needed
    answer_tokens: int | None = None


@dataclass(frozen=True)
class Session:
    turns: Sequence[Turn]
    think_s: Sequence[float] = ()  # before each turn after the first
    system: str | None = None
    family: str | None = None  # see Request
    parts: Sequence[Part] = ()  # of its first prompt, likewise


def requests(session: Session, index: int, at_s: float) -> Iterator[Request]:
    """Those of one session; the first has this index and time."""
    family = session.family if session.family or len(session.turns) == 1 else str(index)
    history = () if session.system is None else (Message("system", session.system),)
    before: int | None = None if history else 0  # tokens
    for number, (turn, think_s) in enumerate(zip(session.turns, (0.0, *session.think_s), strict=True)):
        tokens = _sum(before, turn.prompt_tokens)
        after = index + number - 1 if number else None
        at_s, parts = (0.0, ()) if number else (at_s, session.parts)
        yield Request(
            *(index + number, at_s, turn.prompt, tokens, turn.output_tokens, after, think_s, history, family, parts)
        )
        history = (*history, Message("user", turn.prompt), Message("assistant", turn.answer))
        before = _sum(tokens, turn.answer_tokens)


def _sum(one: int | None, two: int | None) -> int | None:
    return None if one is None or two is None else one + two


def of_words(
    sizes: Sizes, turns: Tokens, think: Pause, share: float, prefixes: int, seed: int, texts: bool = True
) -> Iterator[Session]:
    """Sessions of plain words, without end. share: how much of each first prompt is one of so many shared texts."""
    names = ("lengths", "words", "turns", "think", "answers", "groups")
    draws = {name: random.Random(f"{seed}/{name}") for name in names}
    shared, write = dict[int, _Words](), words if texts else _unwritten
    while True:
        group = draws["groups"].randrange(prefixes)
        (prompt, answer), *later = [sizes(draws["lengths"]) for _ in range(turns.draw(draws["turns"]))]
        own = max(NONCE_WORDS + 1, prompt)
        if group not in shared:
            shared[group] = _Words(f"{seed}/prefix {group}")
        begin = max(0, min(round(share * own), own - 1) - NONCE_WORDS)
        known = shared[group].first(begin) if texts else []
        text = " ".join([*known, write(own - NONCE_WORDS - begin, draws["words"])])
        said = [Turn(text, own, answer), *(Turn(write(n, draws["words"]), n, answer) for n, answer in later)]
        answers = [write(turn.output_tokens, draws["answers"]) for turn in said[:-1]]
        answered = [
            replace(turn, answer=a, answer_tokens=turn.output_tokens) for turn, a in zip(said, answers, strict=False)
        ]
        thoughts = [think.draw(draws["think"]) for _ in later]
        family = f"prefix {group}" if share else None
        parts = () if texts or family is None else (Part(family, NONCE_WORDS + begin),)
        yield Session([*answered, said[-1]], thoughts, family=family, parts=parts)


def _unwritten(tokens: int, draw: random.Random) -> str:
    return ""


class _Words:
    """A text without end."""

    def __init__(self, seed: str) -> None:
        self._draw = random.Random(seed)
        self._words: list[str] = []

    def first(self, count: int) -> list[str]:
        missing = count - len(self._words)
        if missing > 0:
            self._words += words(missing, self._draw).split()
        return self._words[: max(0, count)]


def of_conversations(
    all_: Sequence[Conversation], answers: Tokens, turns: Tokens, think: Pause, keep_shared: bool, seed: int
) -> Iterator[Session]:
    """The conversations in the order of their file, again and again, each up to so many turns."""
    draws = {name: random.Random(f"{seed}/{name}") for name in ("lengths", "turns", "think")}
    for each in cycle(all_):
        said = each.turns[: turns.draw(draws["turns"])]
        lengths = [each.output_tokens or turn.answer_tokens or answers.draw(draws["lengths"]) for turn in said]
        made = [
            Turn(
                turn.said, _with_nonce(turn.said_tokens, turn is said[0]), tokens, turn.answer or "", turn.answer_tokens
            )
            for turn, tokens in zip(said, lengths, strict=True)
        ]
        thoughts = [think.draw(draws["think"]) for _ in made[1:]]
        yield Session(made, thoughts, each.system, "all" if keep_shared else None)


def _with_nonce(tokens: int | None, first: bool) -> int | None:
    return None if tokens is None else tokens + NONCE_WORDS * first


def of_trace(rows: Sequence[Row], seed: int, texts: bool = True) -> Iterator[Session]:
    """One request each, of plain words; where the trace says what prompts share, they share it."""
    draw = random.Random(f"{seed}/words")
    for row in rows:
        own = max(NONCE_WORDS + 1, row.prompt_tokens)
        family = f"block {row.blocks[0]}" if row.blocks else None
        text = _of_blocks(row, own, seed, draw) if texts else ""
        parts = () if texts else tuple(Part(f"block {block}", BLOCK) for block in row.blocks)
        yield Session([Turn(text, own, row.output_tokens)], family=family, parts=parts)


def _of_blocks(row: Row, tokens: int, seed: int, draw: random.Random) -> str:
    known = [word for block in row.blocks for word in _Words(f"{seed}/block {block}").first(BLOCK)]
    text = known[NONCE_WORDS:tokens]
    return " ".join([*text, *words(tokens - NONCE_WORDS - len(text), draw).split()])
