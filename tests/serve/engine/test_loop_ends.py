"""How sequences end in the loop: by themselves, by a cancel, by a fault of their own or of the step."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from engine_loops import (
    EOS,
    MIXED,
    SIZE,
    VOCABULARY,
    Script,
    engine,
    generated,
    pieces_of,
    prompt,
    run,
    text,
    twin,
)
from torch import Tensor

from twofour.serve.engine.messages import Cancel
from twofour.serve.engine.runners import Chunk
from twofour.serve.engine.runners.generic import GenericRunner
from twofour.serve.engine.sampler import sample
from twofour.serve.engine.types import Failure, Finish, Piece, Prompt, Sampling


def ends_at(token: int, position: int) -> Callable[[int], int]:
    return lambda at: token if at == position else 5


@pytest.mark.parametrize(("stop", "sampling"), [(EOS, {}), (33, {"stop_token_ids": (33,)})])
def test_an_end_of_text_or_stop_token_ends_a_sequence_and_is_named(stop: int, sampling: dict[str, Any]) -> None:
    last = pieces_of(run(engine(Script(ends_at(stop, 4))), [[prompt("a", 3, **sampling)]]), "a")[-1]
    assert (last.finish, last.tokens, last.stopped_by) == (Finish.STOP, (stop,), stop)


def test_ignore_eos_and_min_tokens() -> None:
    ignoring = run(engine(Script(ends_at(EOS, 4))), [[prompt("a", 3, ignore_eos=True)]])
    assert text(ignoring, "a") == [5, 5, EOS, 5, 5, 5, 5, 5, 5, 5]
    patient = run(engine(Script(lambda position: EOS)), [[prompt("a", 3, min_tokens=4)]])
    assert text(patient, "a") == [1, 1, 1, 1, EOS], "the best token but the end of text"


def test_a_cancelled_sequence_ends_and_frees_its_blocks() -> None:
    loop = engine(Script())
    reports = run(loop, [[prompt("a", 9), prompt("b", 3)], [], [Cancel("a"), Cancel("unknown")], [Cancel("a")]])
    assert pieces_of(reports, "a")[-1] == Piece("a", finish=Finish.ABORT)
    assert text(reports, "b") == [5] * 10
    assert reports[1].stats.kv_tokens_used > reports[2].stats.kv_tokens_used
    assert reports[-1].stats.kv_tokens_used == reports[-1].stats.running == 0


def test_a_waiting_sequence_can_be_cancelled() -> None:
    crowd = [prompt(str(i), 1) for i in range(9)]
    reports = run(engine(Script()), [crowd, [Cancel("8")]])
    assert (reports[0].stats.running, reports[0].stats.waiting) == (8, 1)
    assert pieces_of(reports, "8") == [Piece("8", finish=Finish.ABORT)]


def test_what_can_never_finish_is_refused_and_the_next_is_served() -> None:
    reports = run(engine(Script()), [[prompt("big", 120, max_tokens=9), prompt("small", 3)]])
    (piece,) = pieces_of(reports, "big")
    assert piece.finish is Finish.ERROR
    assert piece.error is not None
    assert "do not fit into 128" in piece.error
    assert text(reports, "small") == [5] * 10


def test_a_failed_step_ends_those_that_fail_alone_too() -> None:
    memory = torch.OutOfMemoryError("no memory")
    runner = Script(faults=[None, memory, None, memory])
    reports = run(engine(runner), [[prompt("a", 3), prompt("b", 3)], [], [], [prompt("c", 3)]])
    assert pieces_of(reports, "b")[-1].error == "the step failed: OutOfMemoryError: no memory"
    assert text(reports, "a") == text(reports, "c") == [5] * 10


def test_a_step_that_is_done_again_changes_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = GenericRunner(*twin("llama"), 200, SIZE)
    forward, faults = runner.forward, [None, None, MemoryError(), *[None] * 15, MemoryError()]

    def failing(chunks: Sequence[Chunk]) -> Tensor:
        logits = forward(chunks)
        if faults and (fault := faults.pop(0)):
            raise fault
        return logits

    monkeypatch.setattr(runner, "forward", failing)
    reports = run(engine(runner), [MIXED])
    assert not faults
    assert all(text(reports, p.id) == generated("llama", p) for p in MIXED)


def test_a_device_in_an_undefined_state_ends_the_loop() -> None:
    with pytest.raises(torch.AcceleratorError):
        run(engine(Script(faults=[torch.AcceleratorError("illegal memory access")])), [[prompt("a", 3)]])


def test_a_request_with_a_fault_leaves_its_neighbours_alone() -> None:
    bad = prompt("bad", 3, logit_bias={VOCABULARY + 1: 1.0})
    reports = run(engine(Script()), [[prompt("a", 3), bad, prompt("c", 3)]])
    assert pieces_of(reports, "bad")[-1].finish is Finish.ERROR
    assert text(reports, "a") == text(reports, "c") == [5] * 10


@pytest.mark.parametrize("asked", [{}, {"prompt_logprobs": 1}, {"temperature": 1.0, "seed": 3}])
def test_logits_that_are_not_finite_end_their_request_only(asked: dict[str, Any]) -> None:
    """And what it left in the cache is used by nobody: the same prompt is well once the cause is gone."""
    poison, healthy = 63, [p for p in MIXED if 63 not in p.tokens]
    bad = Prompt("bad", (*range(2, 12), poison, *range(2, 30)), Sampling(max_tokens=5, **{"temperature": 0} | asked))
    loop, (poisoned, _) = engine(), twin("llama")
    row = poisoned.model.embed_tokens.weight.data[poison]
    kept = row.clone()
    row.fill_(torch.nan)
    try:
        reports = run(loop, [[healthy[0], bad, *healthy[1:]]])
    finally:
        row.copy_(kept)
    (piece,) = pieces_of(reports, "bad")
    assert (piece.finish, piece.failure) == (Finish.ERROR, Failure.NOT_FINITE)
    assert len(healthy) > 6
    assert all(text(reports, p.id) == generated("llama", p) for p in healthy)
    assert reports[-1].stats.not_finite == 1
    well = replace(bad, sampling=Sampling(max_tokens=5, temperature=0))
    assert text(run(loop, [[well]]), "bad") == generated("llama", well)


def test_sampling_that_fails_for_the_whole_batch_ends_those_that_were_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    faults = iter([None, torch.OutOfMemoryError("no memory"), *[None] * 99])

    def failing(*arguments: Any) -> Any:
        if fault := next(faults):
            raise fault
        return sample(*arguments)

    monkeypatch.setattr("twofour.serve.engine.loop.sample", failing)
    reports = run(engine(Script()), [[prompt("a", 3)], [], [], [prompt("b", 3)]])
    assert pieces_of(reports, "a")[-1].error == "sampling failed: OutOfMemoryError: no memory"
    assert text(reports, "b") == [5] * 10


def test_a_device_that_fails_while_sampling_ends_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> Any:
        raise torch.AcceleratorError("illegal memory access")

    monkeypatch.setattr("twofour.serve.engine.sampler.drawn", failing)
    with pytest.raises(torch.AcceleratorError):
        run(engine(Script()), [[prompt("a", 3, temperature=1.0)]])


def test_a_prompt_that_is_none_ends_itself_only() -> None:
    senseless = Prompt("bad", (5, None), Sampling(max_tokens=3))  # type: ignore[arg-type]
    reports = run(engine(Script()), [[senseless, prompt("a", 3)]])
    assert "the prompt cannot be read: TypeError" in (pieces_of(reports, "bad")[-1].error or "")
    assert text(reports, "a") == [5] * 10


def test_the_first_piece_tells_the_times_and_the_log_each_step() -> None:
    reports = run(engine(Script()), [[prompt("a", 20), prompt("b", 1)]])
    first = pieces_of(reports, "a")[0]
    assert (first.queue_s, first.prefill_s) == (2.0, 3.0)  # of a clock that ticks when it is looked at
    assert all(piece.prefill_s == 0 for piece in pieces_of(reports, "a")[1:])
    steps = [report.step for report in reports if report.step]
    assert [(s.prefill_tokens, s.decodes, s.kv_tokens) for s in steps[:3]] == [
        (16, 0, 16),
        (4, 1, 21),
        (0, 2, 23),
    ]
    assert reports[-1].stats.steps == len(steps)


def test_the_log_tells_what_attends_to_what_and_who_waits() -> None:
    others = [prompt(str(i), 1) for i in range(12)]  # 8 at most run
    reports = run(engine(Script()), [[prompt("a", 20), prompt("b", 1), *others]])
    steps = [report.step for report in reports if report.step]
    whole = [pair for query in range(20) for pair in range(query + 1)]
    assert steps[0].prefill_pairs + steps[1].prefill_pairs == len(whole)
    assert [(s.prefill_pairs, s.decode_kv_tokens, s.waiting) for s in steps[:2]] == [(136, 0, 13), (74, 7, 6)]
    assert all(s.kv_tokens == s.decode_kv_tokens for s in steps[2:] if not s.prefill_tokens)
    ends = [s.started_at + s.seconds for s in steps]
    assert all(end <= later.started_at for end, later in zip(ends, steps[1:], strict=False))


def test_idle_it_reports_too() -> None:
    reports = run(engine(Script()), [[], []])
    assert [report.pieces for report in reports] == [(), ()]
    assert all(report.step is None for report in reports)
