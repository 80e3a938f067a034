"""What people said, from a file: JSON lines, or one JSON list.

Each entry is a prompt, `{"prompt": ...}`; a chat as OpenAI's API has it, `{"messages": [{"role", "content"}, ...]}`; or
a conversation as ShareGPT's files have it, `{"conversations": [{"from", "value"}, ...]}`. An entry with `output_tokens`
says how long its answers are. What the user says last may lack its answer. Entries where user and assistant do not take
turns, or say nothing, are left out and counted. With a tokenizer, answers are as long as those of the file.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from twofour.prune.errors import InputError

_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bard": "assistant", "bing": "assistant"}


@dataclass(frozen=True)
class Turn:
    said: str
    answer: str | None  # None: the file has none
    said_tokens: int | None = None  # this and the next: None without a tokenizer
    answer_tokens: int | None = None


@dataclass(frozen=True)
class Conversation:
    system: str | None
    turns: Sequence[Turn]
    output_tokens: int | None = None  # of each answer; None: the file does not say


@dataclass(frozen=True)
class Conversations:
    name: str
    all: Sequence[Conversation]
    left_out: int

    @property
    def has_lengths(self) -> bool:
        """Of some answers, at least."""
        return any(each.output_tokens or each.turns[0].answer_tokens for each in self.all)


def read(path: Path, tokenizer: Path | None = None) -> Conversations:
    """tokenizer: a tokenizer.json, or the folder of one, to count with."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        whole = text.lstrip().startswith("[")
        entries = json.loads(text) if whole else [json.loads(line) for line in text.split("\n") if line.strip()]
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}); give JSON lines, or one JSON list") from None
    found = [_conversation(entry, f"{path}, entry {number}") for number, entry in enumerate(entries, 1)]
    usable = [each for each in found if each]
    if not usable:
        raise InputError(f"{path} has no prompt that can be sent; see docs/load-testing.md for what it may hold")
    count = None if tokenizer is None else _counter(tokenizer)
    return Conversations(path.name, [_counted(each, count) for each in usable], len(found) - len(usable))


def _counter(tokenizer: Path) -> Callable[[str], int]:
    from tokenizers import Tokenizer

    file = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
    try:
        known = Tokenizer.from_file(str(file))
    except Exception as error:  # that is what it raises
        raise InputError(
            f"{file} cannot be read as a tokenizer ({error}); give a tokenizer.json or its folder"
        ) from None
    return lambda text: len(known.encode(text, add_special_tokens=False).ids)


def _counted(conversation: Conversation, count: Callable[[str], int] | None) -> Conversation:
    if count is None:
        return conversation
    turns = [
        replace(turn, said_tokens=count(turn.said), answer_tokens=None if turn.answer is None else count(turn.answer))
        for turn in conversation.turns
    ]
    return replace(conversation, turns=turns)


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _conversation(entry: Any, where: str) -> Conversation | None:
    try:
        if "prompt" in entry:
            said = [("user", _string(entry["prompt"]))]
        elif "messages" in entry:
            said = [(message["role"], _text(message["content"], where)) for message in entry["messages"]]
        else:
            said = [(_ROLES.get(each["from"], each["from"]), each["value"]) for each in entry["conversations"]]
    except (TypeError, KeyError):
        raise InputError(
            f'{where} has no "prompt", "messages" or "conversations" that can be read; see docs/load-testing.md'
        ) from None
    return _turns(said, _length(entry, where))


def _turns(said: Sequence[tuple[str, str]], output_tokens: int | None) -> Conversation | None:
    """None unless user and assistant take turns, and each says something."""
    system = said[0][1] if said and said[0][0] == "system" else None
    talk = said[system is not None :]
    users, answers = talk[::2], talk[1::2]
    in_turns = all(role == "user" for role, _ in users) and all(role == "assistant" for role, _ in answers)
    if not (users and in_turns and all(text.strip() for _, text in talk)):
        return None
    known = [text for _, text in answers] + [None] * (len(users) - len(answers))
    return Conversation(
        system, [Turn(text, answer) for (_, text), answer in zip(users, known, strict=True)], output_tokens
    )


def _text(content: Any, where: str) -> str:
    """The text of a message; pictures and sound are not sent."""
    if isinstance(content, str):
        return content
    if any(part.get("type") != "text" for part in content):
        raise InputError(f"{where} holds more than text, which is not sent; leave it out of the file")
    return "".join(part["text"] for part in content)


def _length(entry: Mapping[str, Any], where: str) -> int | None:
    length = entry.get("output_tokens")
    if length is not None and not (isinstance(length, int) and length > 0):
        raise InputError(f"{where} says output_tokens {length!r}; give a number above 0, or leave it out")
    return length
