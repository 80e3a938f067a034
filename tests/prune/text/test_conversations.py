"""Conversations of a model that follows a script: which are kept, how they are packed, and what is counted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from twofour.prune import PruneConfig
from twofour.prune.errors import TextError
from twofour.prune.progress import Progress, silent
from twofour.prune.text import chat, conversations, corpus, sources
from twofour.prune.text.conversations import Sieve, loops, written
from twofour.prune.text.questions import PLAIN, plain_words
from twofour.prune.text.writer import Passage

END = "<|im_end|>"


@pytest.fixture(scope="module")
def tokenizer(tiny_model_folder: Path) -> Any:
    """One token a byte; <|im_start|> is 1, <|im_end|> 2."""
    return AutoTokenizer.from_pretrained(tiny_model_folder)


class Scripted:
    """A writer that draws questions from a list, one after the other, and answers by a rule."""

    name = "a script"

    def __init__(self, tokenizer: Any, questions: Sequence[str], answer: str = "Because. " + END) -> None:
        self._tokenizer, self._questions, self._answer = tokenizer, list(questions), answer
        self.asked = list[Passage]()

    def write(self, passages: Sequence[Passage], progress: Progress = silent) -> list[list[int]]:
        self.asked += passages
        return [self._ids(passage)[: passage.tokens] for passage in passages]

    def _ids(self, passage: Passage) -> list[int]:
        text = self._questions.pop(0) if passage.temperature else self._answer
        ids: list[int] = self._tokenizer(text)["input_ids"]
        return ids


def numbered(count: int) -> list[str]:
    return [f"What is {number} plus {number * number}?{END}" for number in range(count)]


def test_questions_are_drawn_and_answers_greedy(tokenizer: Any) -> None:
    writer, template = Scripted(tokenizer, numbered(99)), chat.template(tokenizer)
    found = written(writer, tokenizer, 3, 128, seed=5)
    drawn = [passage for passage in writer.asked if passage.temperature]
    greedy = [passage for passage in writer.asked if not passage.temperature]
    assert {passage.prompt for passage in drawn} == {template.opening} and {each.temperature for each in drawn} == {1.0}
    assert len({passage.seed for passage in drawn}) == len(drawn)
    question = tokenizer("What is 0 plus 0?")["input_ids"]
    assert greedy[0].prompt == (*template.opening, *question, *template.to_answer)
    assert found.windows.shape == (3, 128) and found.counts.kept == len(greedy)
    said = [{"role": "user", "content": "What is 0 plus 0?"}, {"role": "assistant", "content": "Because. "}]
    assert tokenizer.decode(found.windows[0]).startswith(tokenizer.apply_chat_template(said, tokenize=False))


def test_another_seed_asks_other_questions(tokenizer: Any) -> None:
    seeds = []
    for seed in (0, 0, 1):
        writer = Scripted(tokenizer, numbered(99))
        written(writer, tokenizer, 2, 128, seed)
        seeds.append([passage.seed for passage in writer.asked])
    assert seeds[0] == seeds[1] != seeds[2]


def test_what_is_not_fit_is_dropped_and_counted(tokenizer: Any) -> None:
    sieve = Sieve(tokenizer, chat.template(tokenizer))
    questions = {
        f"How do I boil rice well?{END}": None,
        "How do I boil rice": "questions without an end",
        "How do I boil<|endoftext|>": "questions without an end",
        END: "empty questions",
        f"?!{END}": "empty questions",
        f"Boil rice!{END}": "short questions",
        f"how do I boil RICE well{END}": "repeated questions",
        f"so so so and so so so and so so so and so so so and{END}": "repeated questions",
        f"what is the capital of france{END}": "questions of the judge",
    }
    for text, why in questions.items():
        assert sieve.takes_question(tokenizer(text)["input_ids"]) is (why is None), text
    answers = {f"In water.{END}": None, "In much water": None, END: "empty answers", "over and over " * 9: "loop"}
    assert [sieve.takes_answer(tokenizer(text)["input_ids"]) for text in answers] == [True, True, False, False]
    assert sieve.counts.as_dict() == {
        "questions": 9,
        "kept": 2,
        "cut": 1,
        "dropped": {
            "questions without an end": 2,
            "empty questions": 2,
            "short questions": 1,
            "repeated questions": 2,
            "questions of the judge": 1,
            "empty answers": 1,
            "answers in a loop": 1,
        },
    }


def test_loops_are_runs_that_come_again() -> None:
    assert not loops([]) and not loops([1] * 7) and loops([1] * 12)
    assert not loops(list(range(100))) and loops([*range(20), *range(20)])
    text = [*range(100), *range(20)]  # 13 of its 113 runs of 8
    assert not loops(text) and loops(text + text[:30])


def test_the_judge_asks_plain_questions_that_differ() -> None:
    assert len({plain_words(question) for question in PLAIN}) == len(PLAIN) == 48
    assert plain_words("Don't 你好?") == ("don", "t", "你", "好")


def test_more_rounds_where_the_first_is_not_enough(tokenizer: Any) -> None:
    odd = [text if number % 3 else "no end" for number, text in enumerate(numbered(99))]
    found = written(Scripted(tokenizer, odd), tokenizer, 4, 128, 0)
    assert len(found.windows) == 4 and found.counts.questions > 6
    assert found.counts.kept + sum(found.counts.dropped.values()) == found.counts.questions


def test_what_yields_nothing_is_not_asked_again(tokenizer: Any) -> None:
    writer = Scripted(tokenizer, ["no end"] * 99)
    found = written(writer, tokenizer, 4, 128, 0)
    assert found.windows.shape == (0, 128) and found.counts.questions == len(writer.asked) == 6
    assert str(found.counts) == "0 of 6 kept; dropped: 6 questions without an end"


def test_an_answer_has_no_more_room_than_a_window(tokenizer: Any) -> None:
    writer = Scripted(tokenizer, numbered(99), "word " * 40)
    written(writer, tokenizer, 1, 128, 0)
    greedy = [passage for passage in writer.asked if not passage.temperature]
    assert all(len(passage.prompt) + passage.tokens == 128 for passage in greedy)
    with pytest.raises(TextError, match="takes 6 tokens before the first turn, a sample has 6; give a greater length"):
        written(writer, tokenizer, 1, 6, 0)


def test_the_models_own_text_fills_the_place_of_conversations(tokenizer: Any) -> None:
    class Little(Scripted):
        def _ids(self, passage: Passage) -> list[int]:
            is_own_text = passage.temperature and not passage.ends
            return [5] * passage.tokens if is_own_text else super()._ids(passage)

    def config(*names: str) -> PruneConfig:
        return PruneConfig(calibration=names, samples=4, length=128)

    found = sources.tokens(lambda: Little(tokenizer, ["no end"] * 9), tokenizer, config("self", "chat"))
    assert found.ids.shape == (4, 128) and (found.ids[:, 1:] == 5).all()
    assert found.notes == [
        "2 of 2 samples of conversations are text as of self: too few were fit (0 of 3 kept; dropped: 3 questions "
        "without an end)"
    ]
    assert found.about["chat"]["conversations"]["dropped"] == {"questions without an end": 3}
    assert found.about["self"] == {"written_by": "a script"}
    with pytest.raises(TextError, match=r"no conversations that are fit to calibrate on \(0 of 6 kept"):
        sources.tokens(lambda: Little(tokenizer, ["no end"] * 9), tokenizer, config("chat"))


def test_the_default_has_conversations_where_the_model_can_and_windows_have_room(
    tiny_model_folder: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(**asked: Any) -> tuple[str, ...]:
        return sources.settled(PruneConfig(**asked), tiny_model_folder).sources

    assert found() == ("self", "chat") and found(length=64) == found(samples=1, preset="fast") == ("self",)
    assert found(calibration="self") == ("self",) and found(calibration=("chat",)) == ("chat",)
    tokenizer.chat_template, before = None, tokenizer.chat_template
    try:
        monkeypatch.setattr(corpus, "load_tokenizer", lambda folder: tokenizer)
        assert found() == ("self",)
    finally:
        tokenizer.chat_template = before


def test_expected_text_is_that_of_a_first_round() -> None:
    assert conversations.expected(32, 512) == (171, 176) and conversations.expected(1, 100) == (2, 100)
