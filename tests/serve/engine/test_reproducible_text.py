"""What docs/serving.md promises of reproducible text, to the last bit: equal tokens with equal log probabilities."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_loops import run

from twofour.serve.engine.assembly import assemble
from twofour.serve.engine.messages import Command, Report
from twofour.serve.engine.types import EngineConfig, Piece, Prompt, Sampling
from twofour.serve.kernels import select
from twofour.serve.model.loading import load_model

LENGTHS = (5, 66, 130, 333)  # shorter and longer than a tile, than two of them, and than many chunks


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model is slower on several, above all where other work holds the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=["dense", "2:4", "2:4 int8"])
def model(request: pytest.FixtureRequest, large_heads_folders: dict[str, Path]) -> tuple[Path, Any]:
    folder = large_heads_folders[request.param]
    return folder, load_model(str(folder), "cpu")


class Server:
    """An engine, which remembers. It is told what to do by steps: one list of prompts for each."""

    def __init__(self, model: tuple[Path, Any], **config: int) -> None:
        folder, loaded = model
        options: dict[str, Any] = {"device": "cpu", "kv_tokens": 8192} | config
        self.loop, self.info = assemble.assemble(EngineConfig(str(folder), **options), loaded)

    def __call__(self, *steps: Sequence[Prompt]) -> dict[str, list[Piece]]:
        arrivals: list[Sequence[Command]] = list(steps)
        self.reports: list[Report] = run(self.loop, arrivals)
        pieces: dict[str, list[Piece]] = {}
        for piece in (piece for report in self.reports for piece in report.pieces):
            pieces.setdefault(piece.id, []).append(piece)
        return pieces


def prompt(id: str, length: int, first: int = 3, after: Sequence[int] = (), max_tokens: int = 10) -> Prompt:
    tokens = (*after, *((37 * i * i + first * i + first) % 300 + 10 for i in range(length)))
    sampling = Sampling(max_tokens, temperature=0.8, seed=first, ignore_eos=True, logprobs=2)
    return Prompt(id, tokens, sampling)


PROMPTS = [prompt(str(length), length, first=length) for length in LENGTHS]


def said(pieces: list[Piece]) -> list[Any]:
    assert pieces[-1].error is None
    return [(piece.tokens, piece.logprobs) for piece in pieces]


def output(pieces: list[Piece]) -> list[int]:
    return [token for piece in pieces for token in piece.tokens]


@pytest.fixture(scope="module")
def alone(model: tuple[Path, Any]) -> dict[str, list[Any]]:
    """Each prompt by itself, in an engine that has seen no other."""
    return {p.id: said(Server(model)([p])[p.id]) for p in PROMPTS}


def test_on_a_warm_cache(model: tuple[Path, Any], alone: dict[str, list[Any]]) -> None:
    server = Server(model)
    for p in PROMPTS:
        server([Prompt("same beginning", (*p.tokens[: len(p.tokens) // 2], 9, 9), p.sampling)])
        for _ in range(2):  # half of it is known, then all
            pieces = server([p])[p.id]
            assert said(pieces) == alone[p.id]
        assert pieces[0].cached_tokens == (len(p.tokens) - 1) // 16 * 16


def test_beside_others_and_in_any_chunks(model: tuple[Path, Any], alone: dict[str, list[Any]]) -> None:
    for budget in (512, 50):
        pieces = Server(model, max_num_batched_tokens=budget)(PROMPTS[:2], [], PROMPTS[2:3], [], [], PROMPTS[3:])
        assert {id: said(own) for id, own in pieces.items()} == alone, budget


def test_computed_again_after_a_preemption(model: tuple[Path, Any]) -> None:
    crowd = [prompt(str(i), 60 + i, first=i, max_tokens=30) for i in range(4)]
    server = Server(model, kv_tokens=320, max_model_len=320)
    pieces, roomy = server(crowd), Server(model)(crowd)
    assert server.reports[-1].stats.preemptions
    assert all(said(pieces[p.id]) == said(roomy[p.id]) for p in crowd)


@pytest.mark.parametrize(("block_size", "cached"), [(16, 160), (8, 128)], ids=["fused", "generic"])
def test_an_answer_becomes_part_of_the_next_prompt(model: tuple[Path, Any], block_size: int, cached: int) -> None:
    first = prompt("first", 130, max_tokens=40)
    server = Server(model, block_size=block_size)
    answer = output(server([first])[first.id])
    second = prompt("second", 20, after=(*first.tokens, *answer))
    warm = server([second])["second"]
    # On the generic runner what was sampled has other bits than a prompt.
    assert warm[0].cached_tokens == cached
    assert said(warm) == said(Server(model, block_size=block_size)([second])["second"])


def test_the_engine_says_where_none_of_this_is_promised(
    model: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Server(model).info.notes == () and Server(model, block_size=8).info.notes == ()
    folder, _ = model
    for values in select.CROSSOVERS["cpu"]:
        monkeypatch.setitem(select.CROSSOVERS["cpu"], values, 511)  # as a race might find
    raced = folder, load_model(str(folder), "cpu")
    assert Server(raced).info.notes == (), "the fused runner has one order, whatever a race of single linears finds"
    (note,) = Server(raced, block_size=8).info.notes  # which the generic runner takes
    assert "15 of 15 linears" in note and "--kernels cpu" in note
    assert Server(raced, block_size=8, max_num_batched_tokens=511).info.notes == ()
    assert Server((folder, load_model(str(folder), "cpu", dtype="float32"))).info.notes != ()
