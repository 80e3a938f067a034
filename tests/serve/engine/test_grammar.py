"""Text that follows a schema, with a model that says anything at all."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from twofour.serve.engine.blocks import Blocks
from twofour.serve.engine.grammar import Constrain, grammars, no_grammars
from twofour.serve.engine.loop import Loop
from twofour.serve.engine.messages import Command, Report
from twofour.serve.engine.runners import Chunk
from twofour.serve.engine.scheduler import Scheduler
from twofour.serve.engine.types import EngineInfo, Failure, Finish, Piece, Prompt, Sampling
from twofour.serve.openai.formats import compiled

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
ROWS = 280  # of the logits: more than the tokenizer has tokens


class Babbler:
    """A runner whose model likes every token, seldom the one that fits."""

    best = None

    def __init__(self) -> None:
        self._draw = torch.Generator().manual_seed(0)

    def forward(self, chunks: Sequence[Chunk]) -> Tensor:
        return torch.randn(sum(len(chunk.wanted) for chunk in chunks), ROWS, generator=self._draw) * 3


@pytest.fixture(scope="module")
def tokenizer_folder(byte_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def constrain(byte_tokenizer: Any, tokenizer_folder: Path) -> Constrain:
    return grammars(str(tokenizer_folder), None, ROWS, (byte_tokenizer.eos_token_id,))


@pytest.fixture
def say(byte_tokenizer: Any, constrain: Constrain) -> Callable[..., dict[str, Piece]]:
    """All the text of each prompt, as one piece."""
    eos = byte_tokenizer.eos_token_id
    info = EngineInfo(
        model="m", context_length=256, vocab_size=ROWS, eos_token_ids=(eos,), block_size=4, kv_tokens=2048,
        weight_bytes=0, linear_bytes=0, kernels={}, device="cpu", dtype="float32", sparse=False,
    )  # fmt: skip

    def run(*prompts: Prompt, constrain: Constrain = constrain) -> dict[str, Piece]:
        loop = Loop(Babbler(), Scheduler(Blocks(512, 4), 8, 64), info, constrain=constrain)
        arrivals: list[list[Command]] = [list(prompts)]
        reports: list[Report] = []
        loop.run(lambda wait_s: arrivals.pop() if arrivals else None if wait_s else [], reports.append)
        return {prompt.id: whole([p for r in reports for p in r.pieces if p.id == prompt.id]) for prompt in prompts}

    return run


def whole(pieces: list[Piece]) -> Piece:
    last = pieces[-1]
    tokens = tuple(token for piece in pieces for token in piece.tokens)
    return Piece(
        last.id, tokens, finish=last.finish, stopped_by=last.stopped_by, error=last.error, failure=last.failure
    )


def ask(id: str, schema: Any, **sampling: Any) -> Prompt:
    grammar = None if schema is None else compiled(json.dumps(schema))
    return Prompt(id, (1, 2, 3), Sampling(**{"max_tokens": 100, "grammar": grammar} | sampling))


@pytest.mark.parametrize(
    "sampling", [{"temperature": 0}, {"seed": 1}, {"seed": 2, "top_p": 0.5}, {"top_k": 2}], ids=str
)
def test_every_answer_follows_its_schema(say: Any, byte_tokenizer: Any, sampling: dict[str, Any]) -> None:
    piece = say(ask("a", PERSON, **sampling))["a"]
    assert piece.finish is Finish.STOP
    person = json.loads(byte_tokenizer.decode(piece.tokens))
    assert set(person) == {"name", "age"}
    assert len(person["name"]) <= 5 and 0 <= person["age"] <= 99


def test_each_sequence_of_a_batch_follows_its_own(say: Any, byte_tokenizer: Any) -> None:
    colours = {"enum": ["red", "green", "blue"]}
    pieces = say(*(ask(f"c{i}", colours) for i in range(3)), ask("p", PERSON), ask("free", None))
    assert {json.loads(byte_tokenizer.decode(pieces[f"c{i}"].tokens)) for i in range(3)} <= {"red", "green", "blue"}
    assert set(json.loads(byte_tokenizer.decode(pieces["p"].tokens))) == {"name", "age"}
    assert not byte_tokenizer.decode(pieces["free"].tokens).startswith('{"name')


def test_it_ends_with_the_last_character(say: Any, byte_tokenizer: Any) -> None:
    """Whether or not the end of text is allowed, and without it as a last token."""
    for more in ({}, {"ignore_eos": True}, {"min_tokens": 50}):
        piece = say(ask("a", {"enum": ["red"]}, **more))["a"]
        assert (byte_tokenizer.decode(piece.tokens), piece.finish, piece.stopped_by) == ('"red"', Finish.STOP, None)


def test_where_it_may_end_the_model_decides(say: Any, byte_tokenizer: Any) -> None:
    eos = byte_tokenizer.eos_token_id
    piece = say(ask("a", {"type": "integer"}, logit_bias={eos: 100.0}))["a"]
    assert (piece.finish, piece.stopped_by) == (Finish.STOP, eos)
    assert int(byte_tokenizer.decode(piece.tokens[:-1])) < 10
    piece = say(ask("a", {"type": "integer"}, logit_bias={eos: -100.0}, max_tokens=7))["a"]
    assert (piece.finish, len(piece.tokens)) == (Finish.LENGTH, 7)


def test_a_form_of_1500_fields(say: Any, byte_tokenizer: Any) -> None:
    properties = {f"p{i}": {"type": "string", "maxLength": 1} for i in range(1500)}
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    piece = say(ask("a", schema, max_tokens=12, logit_bias={byte_tokenizer.convert_tokens_to_ids("}"): -100.0}))["a"]
    assert piece.error is None
    assert byte_tokenizer.decode(piece.tokens).startswith(('{"p', '{ "p'))


def test_a_grammar_that_cannot_be_followed_ends_its_own_sequence(say: Any) -> None:
    broken = Prompt("bad", (1, 2), Sampling(5, grammar='{"grammars": [{"lark_grammar": "start: ("}]}'))
    pieces = say(broken, ask("good", {"enum": ["red"]}))
    assert (pieces["bad"].finish, pieces["bad"].failure) == (Finish.ERROR, Failure.NOT_FOLLOWED)
    assert pieces["good"].finish is Finish.STOP


def test_without_the_library(say: Any, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    without = grammars(str(tokenizer_folder), None, ROWS, (0,))
    assert without is no_grammars
    piece = say(Prompt("a", (1,), Sampling(5, grammar="{}")), constrain=without)["a"]
    assert piece.finish is Finish.ERROR and "extra" in str(piece.error)
