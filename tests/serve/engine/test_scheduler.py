from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twofour.serve.engine.blocks import Blocks
from twofour.serve.engine.scheduler import Scheduler, Turn, refusal
from twofour.serve.engine.sequence import Sequence
from twofour.serve.engine.types import Prompt, Sampling

SIZE, BLOCKS, BUDGET, MAX_SEQS = 4, 8, 7, 3


def new(id: str, length: int, max_tokens: int, first: int = 0, scores: int | None = None) -> Sequence:
    tokens = tuple((first + i) % 97 for i in range(length))
    sampling = Sampling(max_tokens=max_tokens, prompt_logprobs=scores)
    return Sequence(Prompt(id, tokens, sampling), seed=0, arrived_at=0.0)


def scheduler(blocks: int = BLOCKS, budget: int = BUDGET) -> Scheduler:
    return Scheduler(Blocks(blocks, SIZE), MAX_SEQS, budget)


def play(scheduler: Scheduler, turns: list[Turn]) -> list[Sequence]:
    """Do what a step does: every sequence that has computed all gets a token. Return those that are done."""
    done = []
    for turn in turns:
        samples = turn.sequence.samples(turn.tokens)
        turn.sequence.prompt_logprobs += [None] * (len(turn.sequence.wanted(turn.tokens)) - samples)
        scheduler.computed(turn)
        if samples:
            turn.sequence.tokens.append(50 + turn.sequence.generated)
        if not turn.sequence.pending or turn.sequence.generated == turn.sequence.sampling.max_tokens:
            scheduler.end(turn.sequence)
            done.append(turn.sequence)
    return done


def check(scheduler: Scheduler, turns: list[Turn]) -> None:
    scheduler.blocks.check()
    assert sum(turn.tokens for turn in turns) <= scheduler.max_num_batched_tokens
    assert len(scheduler.running) <= scheduler.max_num_seqs
    writers: list[int] = []
    for sequence, count in turns:
        assert sequence in scheduler.running
        assert len(sequence.blocks) * SIZE >= sequence.computed + count
        writers += sequence.blocks[sequence.computed // SIZE : -(-(sequence.computed + count) // SIZE)]
    assert len(writers) == len(set(writers)), "two sequences would write to the same block"
    assert all(not s.blocks and not s.computed for s in scheduler.waiting)


def test_a_long_prompt_runs_in_chunks_and_decodes_go_first() -> None:
    s = scheduler()
    short, long = new("short", 2, 9), new("long", 16, 2, first=50)
    s.add(short)
    s.add(long)
    assert s.next_step() == [(short, 2), (long, 5)]
    play(s, [Turn(short, 2), Turn(long, 5)])
    assert s.next_step() == [(short, 1), (long, 6)]
    play(s, [Turn(short, 1), Turn(long, 6)])
    assert s.next_step() == [(short, 1), (long, 5)]


def test_decodes_go_before_an_older_prompt() -> None:
    s = scheduler()
    older, younger = new("older", 20, 2), new("younger", 2, 9, first=50)
    s.add(older)
    s.add(younger)
    for _ in range(3):
        play(s, s.next_step())
    older.computed, older.tokens = 12, older.tokens[:20]  # as after a smaller chunk
    assert s.next_step()[0] == (younger, 1)


def test_first_come_first_served() -> None:
    s = scheduler()
    big, small = new("big", 30, 2), new("small", 1, 2, first=50)
    s.add(new("first", 4, 9, first=70))
    s.add(big)
    s.add(small)
    assert [turn.sequence.id for turn in s.next_step()] == ["first"]
    assert list(s.waiting) == [big, small], "a small one must not overtake: the big one would starve"


def test_the_newest_is_preempted_and_goes_to_the_front_of_the_queue() -> None:
    s = scheduler(blocks=3)
    old, newest, waiting = new("old", 4, 8), new("newest", 4, 8, first=30), new("waiting", 4, 4, first=60)
    s.add(old)
    play(s, s.next_step())
    s.running.append(newest)  # placed without a block to spare
    newest.blocks, newest.computed, newest.tokens = s.blocks.take(1), 4, [*newest.tokens, 50]
    s.add(waiting)
    while newest in s.running:
        turns = s.next_step()
        check(s, turns)
        assert old in [turn.sequence for turn in turns]
        play(s, turns)
    assert list(s.waiting) == [newest, waiting]
    assert s.preemptions == 1
    assert newest.generated >= 1, "what was generated is kept"
    assert newest.pending == len(newest.tokens)


def test_a_known_prefix_is_not_computed_again_but_the_last_token_is() -> None:
    s = scheduler(budget=100)
    first = new("first", 8, 1)
    s.add(first)
    play(s, s.next_step())
    again = new("again", 8, 1)
    s.add(again)
    assert s.next_step() == [(again, 4)], "the last of its two full blocks holds the token whose logits are wanted"
    assert (again.cached_tokens, s.prefix_queries, s.prefix_hits) == (4, 16, 4)


def test_a_prefix_is_known_only_under_its_own_salt() -> None:
    s = scheduler(budget=100)
    cached = {}
    for i, salt in enumerate(["a", "", "b", "a", "b"]):
        sequence = new(str(i), 8, 1)
        sequence.prompt = replace(sequence.prompt, salt=salt)
        s.add(sequence)
        play(s, s.next_step())
        cached[i] = sequence.cached_tokens
    assert cached == {0: 0, 1: 0, 2: 0, 3: 4, 4: 4}


def test_without_a_prefix_cache_everything_is_computed_and_nothing_is_kept() -> None:
    s = Scheduler(Blocks(BLOCKS, SIZE), MAX_SEQS, 100, prefix_cache=False)
    for id in ("first", "again"):
        s.add(sequence := new(id, 8, 1))
        assert s.next_step() == [(sequence, 8)]
        play(s, [Turn(sequence, 8)])
        assert s.blocks.match(sequence.keys) == []
    assert (sequence.cached_tokens, s.prefix_queries, s.prefix_hits) == (0, 0, 0)


@pytest.mark.parametrize(("shares_output", "found"), [(True, 12), (False, 4)])
def test_sampled_tokens_are_shared_only_if_they_may_be(shares_output: bool, found: int) -> None:
    s = Scheduler(Blocks(BLOCKS, SIZE), MAX_SEQS, 100, shares_output=shares_output)
    s.add(first := new("first", 6, 8))
    while s.busy:
        play(s, s.next_step())
    again = new("again", 0, 1)
    again.tokens = [*first.tokens, 9]
    s.add(again)
    s.next_step()
    assert again.cached_tokens == found


def test_a_prompt_to_be_scored_is_computed_completely() -> None:
    s = scheduler(budget=100)
    s.add(new("first", 8, 1))
    play(s, s.next_step())
    scored = new("scored", 8, 1, scores=0)
    s.add(scored)
    assert s.next_step() == [(scored, 8)]
    assert scored.wanted(8) == range(0, 8)


@pytest.mark.parametrize(
    ("max_tokens", "wanted"),
    [(0, [range(0, 3), range(0, 3), range(0, 1)]), (1, [range(0, 3), range(0, 3), range(0, 2)])],
)
def test_a_scored_prompt_wants_every_position_once(max_tokens: int, wanted: list[range]) -> None:
    sequence, seen = new("a", 8, max_tokens, scores=0), []
    for count in (3, 3, 2):
        seen.append(sequence.wanted(count))
        scored = len(seen[-1]) - sequence.samples(count)
        sequence.prompt_logprobs += [None] * scored
        sequence.computed += count
    assert seen == wanted


def test_a_preempted_prompt_is_not_scored_twice() -> None:
    sequence = new("a", 8, 1, scores=0)
    sequence.prompt_logprobs += [None] * 3  # the first four tokens have their scores
    assert sequence.wanted(5) == range(3, 5)
    assert sequence.wanted(2) == range(3, 3)


def prompt(tokens: tuple[int, ...], max_tokens: int) -> Prompt:
    return Prompt("a", tokens, Sampling(max_tokens=max_tokens))


@pytest.mark.parametrize(
    ("tokens", "max_tokens", "why"),
    [
        ((), 1, "no tokens"),
        ((1, 2, 3), 6, "3 prompt tokens and max_tokens 6 do not fit into 8"),
        ((1, 10), 1, "vocabulary size 10"),
        ((-1,), 1, "vocabulary size 10"),
        ((1, 2, 3), 5, None),
    ],
)
def test_what_cannot_finish_is_refused(tokens: tuple[int, ...], max_tokens: int, why: str | None) -> None:
    for context_length, kv_tokens in ((8, 100), (100, 8)):
        reason = refusal(prompt(tokens, max_tokens), context_length, kv_tokens, vocab_size=10)
        assert reason is None if why is None else reason is not None and why in reason


SHAPES = st.tuples(st.integers(1, 20), st.integers(0, 12), st.sampled_from([0, 0, 50]), st.sampled_from([None, 0]))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(SHAPES, st.integers(0, 30), st.none()), max_size=40))
def test_whatever_comes_and_goes_everyone_ends_exactly_once(
    events: list[tuple[int, int, int, int | None] | int | None],
) -> None:
    """An event is an arrival, the cancelling of some sequence, or a step."""
    s, ended, arrived = scheduler(), list[Sequence](), list[Sequence]()
    for event in events:
        if isinstance(event, tuple):
            length, max_tokens, first, scores = event
            arrived.append(new(str(len(arrived)), length, max_tokens, first, scores))
            s.add(arrived[-1])
        elif isinstance(event, int):
            alive = [sequence for sequence in arrived if sequence not in ended]
            if alive:
                ended.append(alive[event % len(alive)])
                s.end(ended[-1])
        else:
            turns = s.next_step()
            check(s, turns)
            ended += play(s, turns)
    for _ in range(2000):
        if not s.busy:
            break
        turns = s.next_step()
        check(s, turns)
        assert turns, "a busy scheduler makes progress in every step"
        ended += play(s, turns)
    assert sorted(ended, key=id) == sorted(arrived, key=id)
    assert all(len(q.prompt_logprobs) in (0, len(q.prompt.tokens)) for q in ended if q.generated)
    s.check_idle()


def test_a_leak_is_noticed_when_idle() -> None:
    s = scheduler()
    s.blocks.take(1)
    with pytest.raises(RuntimeError, match="1 cache blocks are in use by nobody"):
        s.check_idle()


@pytest.mark.parametrize(
    ("decodes", "budget", "tokens"),
    [
        (0, 512, 64),
        (1, 512, 64),
        (16, 512, 64),
        (17, 512, 128),
        (80, 512, 128),
        (81, 512, 192),
        (0, 40, 40),
        (17, 100, 100),
    ],
)
def test_a_step_is_whole_pieces_with_room_for_prompts(decodes: int, budget: int, tokens: int) -> None:
    s = Scheduler(Blocks(1000, SIZE), 100, budget, piece=64)
    for i in range(decodes):
        s.add(new(str(i), 1, 9, first=i))
    while any(sequence.pending > 1 or not sequence.generated for sequence in [*s.running, *s.waiting]):
        play(s, s.next_step())
    prompts = [new(f"p{i}", 150, 1, first=50 + i) for i in range(2)]
    for prompt in prompts:
        s.add(prompt)
    turns = s.next_step()
    assert [turn.tokens for turn in turns] == [1] * decodes + [tokens - decodes]
    assert turns[-1].sequence is prompts[0], "the first come is served first, by itself"
