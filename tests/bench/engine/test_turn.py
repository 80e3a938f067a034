"""Every step that is timed decodes all sequences, by the sampler's own rules."""

import pytest
import torch

from twofour.bench.engine import turn
from twofour.bench.engine.turn import Around, StoredRunner, Way
from twofour.serve.engine import child
from twofour.serve.engine.messages import Report

STEPS = 5


@pytest.mark.parametrize("way", turn.WAYS)
def test_a_turn_decodes_all_sequences_and_only_decoding_counts(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    reports: list[Report] = []
    monkeypatch.setattr(child, "send", lambda pipe, report: (reports.append(report), pipe.send_bytes(b"{}")))
    ticks = iter(range(1000))
    monkeypatch.setattr(turn, "thread_time", lambda: next(ticks))
    decode = turn._turn(way, 320, torch.bfloat16, 20, STEPS)
    for _ in range(2):
        assert decode() == [1] * STEPS
    for report in reports[-STEPS:]:
        assert report.step and (report.step.decodes, report.step.prefill_tokens) == (way.sequences, 0)
        assert len(report.pieces) == way.sequences and not any(piece.error for piece in report.pieces)
    likeliest = StoredRunner(way.sequences, 320, torch.bfloat16).logits.argmax(1).tolist()
    generated = [[piece.tokens[0] for piece in report.pieces] for report in reports[-STEPS:]]
    assert all(tokens == likeliest for tokens in generated) is (way.top_p is None)


def test_stored_logits_know_their_best() -> None:
    runner = StoredRunner(3, 320, torch.bfloat16)
    assert torch.equal(runner.logits.argmax(1), torch.tensor(runner._likeliest))
    assert runner.logits.float().sort(1, descending=True).values[0, [0, 3]].tolist() == pytest.approx(
        [0, -2.08], abs=0.01
    )


def test_goals_are_for_the_likeliest_token() -> None:
    slow, fast, drawn = turn.document(
        [Around(Way(32, None), (6e-4, 7e-4)), Around(Way(1, None), (9e-5,)), Around(Way(32, 0.95), (1e-3,))]
    )
    assert (slow["median_s"], slow["goal_s"], slow["reached"]) == (pytest.approx(6.5e-4), 5e-4, False)
    assert fast["reached"] is True and drawn["reached"] is None
    shown = turn.lines([slow, fast, drawn])
    assert [line.rpartition(" ")[2] for line in shown[1:]] == ["MISSED", "reached", "ms"]
