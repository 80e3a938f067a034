"""A chat model asked questions that calibration never saw, and compared with the dense model's own greedy answers."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twofour.prune.errors import InputError, TextError
from twofour.prune.label.answers import Answered, AnswerQuality, judge
from twofour.prune.label.quality import Logits
from twofour.prune.progress import Progress, silent
from twofour.prune.text import chat, corpus
from twofour.prune.text.questions import PLAIN
from twofour.prune.text.writer import Passage
from twofour.serve.writing.fused_writer import new_writer

ANSWER_TOKENS = 128  # at most: what a long answer goes on with is mostly what it said before


@dataclass(frozen=True)
class Questions:
    """What is asked: a file with a question, or a conversation, on each line; None: the plain ones."""

    file: Path | None = None

    @property
    def name(self) -> str:
        """What the label calls them."""
        return f"{len(PLAIN)} plain questions" if self.file is None else self.file.name

    def read(self) -> list[list[dict[str, Any]]]:
        """Return them as conversations that lack the answer."""
        if self.file is None:
            return [_asked(question) for question in PLAIN]
        lines = [line for line in corpus.read_text(self.file).splitlines() if line.strip()]
        if not lines:
            raise TextError(f"{self.file} holds no question; give one a line")
        if self.file.suffix != ".jsonl":
            return [_asked(line.strip()) for line in lines]
        return [_messages(line, f"{self.file} line {number}") for number, line in enumerate(lines, start=1)]


def judged(
    questions: Questions,
    dense: Any,
    logits: Logits,
    dense_logits: Logits,
    tokenizer: Any,
    progress: Progress = silent,
) -> AnswerQuality | None:
    """Ask the dense model, and judge by its answers. None where it is not for conversations and no file was named."""
    if not chat.is_chat(tokenizer):
        if questions.file is None:
            return None
        raise InputError("the baseline has no chat template that can be followed; leave --questions out")
    prompts = [_prompt(tokenizer, asked) for asked in questions.read()]
    ends = chat.template(tokenizer).special
    written = new_writer(dense).write([Passage(each, ANSWER_TOKENS, 0, 0.0, ends) for each in prompts], progress)
    answered = [Answered(prompt, answer) for prompt, answer in zip(prompts, written, strict=True)]
    return judge(logits, dense_logits, answered, progress)


def _prompt(tokenizer: Any, asked: list[dict[str, Any]]) -> tuple[int, ...]:
    """What stands before an answer, as a server has it."""
    text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _asked(question: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}]


def _messages(line: str, place: str) -> list[dict[str, Any]]:
    """The messages of a line up to the last that a user wrote."""
    try:
        messages = json.loads(line)["messages"]
        last = max(at for at, message in enumerate(messages) if message["role"] == "user")
        return list(messages[: last + 1])
    except (ValueError, KeyError, TypeError) as error:
        raise TextError(f'{place} is no JSON object with "messages" of a user; give one a line') from error
