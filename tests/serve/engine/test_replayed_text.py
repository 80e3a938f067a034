"""The engine with decode steps that are replayed, against the engine without: the same text, whatever happens.

Here a replay calls the captured function again, on the inputs of the step; in runners/test_graphs.py without Python.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from twofour.serve.engine.assembly import assemble
from twofour.serve.engine.loop import Loop
from twofour.serve.engine.messages import Command, Report
from twofour.serve.engine.runners.graphs import Captured, shapes, try_capture
from twofour.serve.engine.types import EngineConfig, EngineInfo, Failure, Prompt, Sampling
from twofour.serve.model.loading import load_model

POISON = 300
PREFIX = [(11 * i + 5) % 250 for i in range(13)]
GROWING = [
    Prompt(str(i), (*PREFIX[: 13 - i], *range(40 + i, 43 + 2 * i)), Sampling(30, temperature=0, ignore_eos=True))
    for i in range(7)
]


@pytest.fixture(scope="module")
def model(tiny_float32_folder: Path) -> Any:
    return load_model(str(tiny_float32_folder), "cpu", kernels="reference")


def engine(model: Any, monkeypatch: pytest.MonkeyPatch, replaying: bool, kv_tokens: int) -> tuple[Loop, EngineInfo]:
    config = EngineConfig(
        model.config.name_or_path, device="cpu", max_num_seqs=7, block_size=4, kv_tokens=kv_tokens, max_model_len=72
    )

    def stand_in(config: EngineConfig, model: Any, runner: Any, room: Any) -> Captured:
        steps = shapes(config.max_num_seqs, room.context_length, config.block_size, kv_tokens // config.block_size)
        return try_capture(runner, steps, lambda launch: launch, lambda: 0)

    with monkeypatch.context() as patch:
        if replaying:
            patch.setattr(assemble, "_decode_graphs", stand_in)
        return assemble.assemble(config, model)


def run(loop: Loop, arrivals: list[list[Command]]) -> tuple[dict[str, list[int]], dict[str, str], Report]:
    """One list of commands per step: the text of each, the errors, the last report."""
    reports: list[Report] = []
    script: Iterator[list[Command]] = iter(arrivals)

    def receive(timeout_s: float) -> list[Command] | None:
        return next(script, None if timeout_s else [])

    loop.run(receive, reports.append)
    pieces = [piece for report in reports for piece in report.pieces]
    texts: dict[str, list[int]] = {piece.id: [] for piece in pieces}
    for piece in pieces:
        texts[piece.id] += piece.tokens
    return texts, {piece.id: str(piece.failure or piece.error) for piece in pieces if piece.error}, reports[-1]


@pytest.mark.parametrize("kv_tokens", [1000, 88])
def test_greedy_text_is_the_same_with_and_without(model: Any, monkeypatch: pytest.MonkeyPatch, kv_tokens: int) -> None:
    """Prompts that join while others decode and share their beginning; in the small cache they preempt each other."""
    arrivals: list[list[Command]] = [[GROWING[0]], [], [], list(GROWING[1:4]), [], list(GROWING[4:])]
    expected, _, without = run(engine(model, monkeypatch, False, kv_tokens)[0], arrivals)
    loop, info = engine(model, monkeypatch, True, kv_tokens)
    texts, errors, last = run(loop, arrivals)
    assert texts == expected and not errors
    assert [len(tokens) for tokens in texts.values()] == [30] * 7
    assert (last.stats.preemptions > 3) == (kv_tokens == 88)
    assert last.stats.prefix_hits > 0
    assert (without.stats.steps, without.stats.replayed_steps) == (last.stats.steps, 0)
    assert last.stats.replayed_steps > 20 and info.cuda_graphs == 4


def test_logits_that_are_not_finite_end_their_request_only(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a replayed step: the request is made to choose the token whose embedding is NaN, and decodes it."""
    bad = Prompt("bad", (1, 2, 3), Sampling(30, temperature=0, logit_bias={POISON: 1e4}))
    arrivals: list[list[Command]] = [[bad, *GROWING[:4]]]
    expected, _, _ = run(engine(model, monkeypatch, False, 1000)[0], [list(GROWING[:4])])
    loop, _ = engine(model, monkeypatch, True, 1000)
    row = model.model.embed_tokens.weight.data[POISON]
    kept = row.clone()
    row.fill_(torch.nan)
    try:
        texts, errors, last = run(loop, arrivals)
    finally:
        row.copy_(kept)
    assert errors == {"bad": Failure.NOT_FINITE} and texts.pop("bad") == [POISON]
    assert texts == expected
    assert last.stats.replayed_steps == last.stats.steps - 1
