"""The loop with tiny models, whose own `generate` is the oracle."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from engine_loops import FAMILIES, MIXED, engine, generated, model, pieces_of, prompt, run, text
from torch import Tensor

from twofour.serve.engine.types import Prompt


@torch.inference_mode()
def scores(p: Prompt, output: Sequence[int]) -> Tensor:  # [tokens, vocabulary]
    logits: Tensor = model("llama")(torch.tensor([[*p.tokens, *output]])).logits[0]
    return logits.log_softmax(-1)


# Short prompts and long outputs: they are all placed at once and then outgrow a small cache.
GROWING = [prompt(str(i), 2 + i % 3, 17 * i, max_tokens=30, ignore_eos=True) for i in range(8)]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_is_that_of_generate_in_any_mix(family: str) -> None:
    """Chunked prefill (over 16 tokens), prefill beside decodes, and more prompts than may run at once."""
    expected = {p.id: generated(family, p) for p in MIXED}
    together = run(engine(family=family), [MIXED])
    trickling = run(engine(family=family), [[p] for p in reversed(MIXED)])
    for p in MIXED:
        assert text(together, p.id) == expected[p.id]
        assert text(trickling, p.id) == expected[p.id]
        assert text(run(engine(family=family), [[p]]), p.id) == expected[p.id]


def test_preemption_changes_no_text() -> None:
    roomy, tight = run(engine(), [GROWING]), run(engine(blocks=18), [GROWING])
    assert roomy[-1].stats.preemptions == 0
    assert tight[-1].stats.preemptions > 3
    assert all(text(tight, p.id) == text(roomy, p.id) for p in GROWING)


def test_a_seed_gives_the_same_text_alone_in_a_mix_and_after_preemption() -> None:
    seeded = [replace(p, sampling=replace(p.sampling, temperature=1.0, seed=i)) for i, p in enumerate(GROWING)]
    roomy, tight = run(engine(), [seeded]), run(engine(blocks=18), [seeded])
    assert tight[-1].stats.preemptions > 3
    for p in seeded:
        assert text(roomy, p.id) == text(tight, p.id) == text(run(engine(), [[p]]), p.id)


def test_without_a_seed_every_request_draws_for_itself() -> None:
    reports = run(engine(), [[prompt(str(i), 5, temperature=1.0, ignore_eos=True) for i in range(4)]])
    assert len({tuple(text(reports, str(i))) for i in range(4)}) > 1


def test_a_prefix_is_computed_once_and_changes_no_text() -> None:
    loop, first, second = engine(), prompt("first", 30), prompt("second", 30)
    longer = Prompt("longer", (*first.tokens, 9, 8), first.sampling)
    reports = run(loop, [[first], *[[]] * 20, [second, longer]])
    assert text(reports, "second") == text(reports, "first") == generated("llama", first)
    assert text(reports, "longer") == generated("llama", longer)
    assert pieces_of(reports, "first")[0].cached_tokens == 0
    assert pieces_of(reports, "second")[0].cached_tokens == 28
    assert reports[-1].stats.prefix_hits == 56


def test_steps_that_compute_part_of_a_prompt_are_announced() -> None:
    begun: list[int] = []
    arrivals = [[prompt("a", 20, max_tokens=3, ignore_eos=True)], [], [prompt("b", 5, 3, max_tokens=2)]]
    engine().run(
        lambda wait_s: arrivals.pop(0) if arrivals else None if wait_s else [], lambda report: None, begun.append
    )
    assert begun == [16, 4, 6], "of 16 tokens at most, the last beside a decode"


def test_logprobs_are_those_of_a_plain_forward() -> None:
    p = prompt("a", 6, logprobs=3)
    reports = run(engine(), [[prompt("other", 20, 5), p]])
    output, expected = text(reports, "a"), scores(p, text(reports, "a"))
    for i, piece in enumerate(pieces_of(reports, "a")):
        row, (entry,) = expected[len(p.tokens) - 1 + i], piece.logprobs
        assert entry.token == output[i] == entry.top[0][0]
        assert entry.logprob == pytest.approx(row[output[i]].item(), abs=1e-4)
        assert [value for _, value in entry.top] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)


@pytest.mark.parametrize(("max_tokens", "blocks"), [(0, 200), (4, 200), (4, 12)])
def test_a_prompt_is_scored_completely_and_once(max_tokens: int, blocks: int) -> None:
    """Also over several chunks, with a prefix in the cache that must not be used, and preempted half-way."""
    p = prompt("a", 35, max_tokens=max_tokens, prompt_logprobs=2)
    rival = prompt("rival", 9, 3, max_tokens=25)
    reports = run(engine(blocks=blocks), [[prompt("same", 35, max_tokens=1)], *[[]] * 4, [rival], [p]])
    first, expected = pieces_of(reports, "a")[0], scores(p, [])
    assert first.prompt_logprobs[0] is None
    assert len(first.prompt_logprobs) == 35
    for i, entry in enumerate(first.prompt_logprobs[1:]):
        assert entry is not None
        assert entry.token == p.tokens[i + 1]
        assert entry.logprob == pytest.approx(expected[i, p.tokens[i + 1]].item(), abs=1e-4)
        assert [value for _, value in entry.top] == pytest.approx(expected[i].topk(2).values.tolist(), abs=1e-4)
    assert all(not piece.prompt_logprobs for piece in pieces_of(reports, "a")[1:])
    assert len(text(reports, "a")) == max_tokens
