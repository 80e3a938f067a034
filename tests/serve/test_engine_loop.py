"""The loop with tiny models, whose own `generate` is the oracle, and with a runner that follows a script."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import count
from typing import Any

import pytest
import small_models
import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from twofour.serve.engine.blocks import Blocks
from twofour.serve.engine.loop import HEARTBEAT_S, Loop
from twofour.serve.engine.messages import Cancel, Command, Report
from twofour.serve.engine.runners import Chunk, Runner
from twofour.serve.engine.runners.generic import GenericRunner, attention_layers
from twofour.serve.engine.sampler import sample
from twofour.serve.engine.scheduler import Scheduler
from twofour.serve.engine.types import NOT_FINITE, EngineInfo, Finish, Piece, Prompt, Sampling

SIZE, EOS = 4, 0
SMALL = {**small_models.SMALL, "eos_token_id": EOS, "pad_token_id": 1}
VOCABULARY, CONTEXT = SMALL["vocab_size"], SMALL["max_position_embeddings"]
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=7)),
}


@cache
def model(family: str) -> Any:
    torch.manual_seed(1)
    return FAMILIES[family]().eval()


@cache
def twin(family: str) -> tuple[Any, Any]:
    made = FAMILIES[family]().eval()
    made.load_state_dict(model(family).state_dict())
    return made, attention_layers(made)


def engine(runner: Runner | None = None, family: str = "llama", blocks: int = 200, budget: int = 16) -> Loop:
    if runner is None:
        runner = GenericRunner(*twin(family), blocks, SIZE)
    info = EngineInfo(
        model="tiny", context_length=CONTEXT, vocab_size=VOCABULARY, eos_token_ids=(EOS,), block_size=SIZE,
        kv_tokens=blocks * SIZE, weight_bytes=0, linear_bytes=0, kernels={}, device="cpu", dtype="float32",
        sparse=False,
    )  # fmt: skip
    ticks = count()
    return Loop(runner, Scheduler(Blocks(blocks, SIZE), 8, budget), info, clock=lambda: float(next(ticks)))


def run(loop: Loop, arrivals: Sequence[Sequence[Command]]) -> list[Report]:
    """One list of commands per step, then nothing until all have ended."""
    script, reports, waits = list(arrivals), list[Report](), list[float]()

    def receive(timeout_s: float) -> list[Command] | None:
        waits.append(timeout_s)
        if script:
            return list(script.pop(0))
        return None if timeout_s else []

    loop.run(receive, reports.append)
    assert waits[-1] == HEARTBEAT_S, "it ends idle"
    return reports


def pieces_of(reports: Sequence[Report], id: str) -> list[Piece]:
    pieces = [piece for report in reports for piece in report.pieces if piece.id == id]
    assert [bool(piece.finish) for piece in pieces] == [False] * (len(pieces) - 1) + [True], "it ends exactly once"
    return pieces


def text(reports: Sequence[Report], id: str) -> list[int]:
    return [token for piece in pieces_of(reports, id) for token in piece.tokens]


def prompt(id: str, length: int, first: int = 0, **sampling: Any) -> Prompt:
    tokens = tuple((7 * i + first) % (VOCABULARY - 2) + 2 for i in range(length))
    return Prompt(id, tokens, Sampling(**{"max_tokens": 10, "temperature": 0} | sampling))


@torch.inference_mode()
def generated(family: str, p: Prompt) -> list[int]:
    tokens = torch.tensor([p.tokens])
    mask = torch.ones_like(tokens)
    out = model(family).generate(tokens, attention_mask=mask, max_new_tokens=p.sampling.max_tokens, do_sample=False)
    new: list[int] = out[0, len(p.tokens) :].tolist()
    return new


@torch.inference_mode()
def scores(p: Prompt, output: Sequence[int]) -> Tensor:  # [tokens, vocabulary]
    logits: Tensor = model("llama")(torch.tensor([[*p.tokens, *output]])).logits[0]
    return logits.log_softmax(-1)


LENGTHS = [1, 40, 3, 17, 8, 33, 2, 16, 5, 60, 9, 4]
MAX_TOKENS = [20, 5, 30, 1, 24, 12, 2, 16, 28, 9, 9, 18]
MIXED = [
    prompt(str(i), length, 13 * i, max_tokens=n) for i, (length, n) in enumerate(zip(LENGTHS, MAX_TOKENS, strict=True))
]


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


class Script:
    """A runner whose best token is chosen by position; `faults` are raised by one forward after another."""

    def __init__(self, next_token: Callable[[int], int] = lambda position: 5, faults: Sequence[Exception | None] = ()):
        self.next_token, self.faults, self.steps = next_token, list(faults), list[list[Chunk]]()

    def forward(self, chunks: Sequence[Chunk]) -> Tensor:
        self.steps.append(list(chunks))
        if self.faults and (fault := self.faults.pop(0)):
            raise fault
        positions = [chunk.start + offset for chunk in chunks for offset in chunk.wanted]
        logits = torch.zeros(len(positions), VOCABULARY)
        for row, position in zip(logits, positions, strict=True):
            row[self.next_token(position)] = 9.0
        return logits


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
    assert (piece.finish, piece.error) == (Finish.ERROR, NOT_FINITE)
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

    monkeypatch.setattr("twofour.serve.engine.sampler.draw", failing)
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


def test_idle_it_reports_too() -> None:
    reports = run(engine(Script()), [[], []])
    assert [report.pieces for report in reports] == [(), ()]
    assert all(report.step is None for report in reports)
