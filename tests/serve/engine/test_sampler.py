import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from twofour.serve.engine.drawing import draw, ranked
from twofour.serve.engine.sampler import logprobs, sample, uniform
from twofour.serve.engine.sequence import Sequence
from twofour.serve.engine.types import Failure, Prompt, Sampling

VOCABULARY = 12
EOS = frozenset({0})


def sequence(prompt: tuple[int, ...] = (3, 4), output: tuple[int, ...] = (), seed: int = 7, **s: Any) -> Sequence:
    made = Sequence(Prompt("a", prompt, Sampling(**{"max_tokens": 99} | s)), seed=seed, arrived_at=0.0)
    made.tokens += output
    return made


def row(seed: int) -> Tensor:
    """Logits with many ties, as bfloat16 has them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-6, 7, (VOCABULARY,), generator=generator).float() / 2


def expected(logits: list[float], s: Sequence, u: float) -> int:
    """The module's docstring, token by token in plain Python."""
    o, output = s.sampling, s.output
    values = []
    for token, x in enumerate(logits):
        if token in s.tokens:
            x = x / o.repetition_penalty if x > 0 else x * o.repetition_penalty
        x -= o.frequency_penalty * output.count(token) + o.presence_penalty * (token in output)
        x += o.logit_bias.get(token, 0.0)
        stops = set(o.stop_token_ids) | (set() if o.ignore_eos else EOS)
        values.append(-math.inf if token in stops and len(output) < o.min_tokens else x)
    best = sorted(range(VOCABULARY), key=lambda token: (-values[token], token))
    if o.temperature == 0:
        return best[0]
    weights = [math.exp((x - values[best[0]]) / o.temperature) for x in values]
    kept = [token for token in best if weights[token] >= o.min_p]
    kept = kept[: o.top_k or None]
    goal, mass, nucleus = o.top_p * sum(weights[token] for token in kept), 0.0, list[int]()
    for token in kept:
        if mass < goal or not nucleus:
            nucleus.append(token)
        mass += weights[token]
    target, cumulative = u * sum(weights[token] for token in nucleus), 0.0
    for token in sorted(nucleus):
        cumulative += weights[token]
        if cumulative > target:
            return token
    raise AssertionError("u is below 1")


# Not round, so that no cumulative sum of halves falls on a limit, where float32 and float64 may differ.
@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(0, 2**64 - 1),
    st.lists(st.integers(0, VOCABULARY - 1), max_size=6),
    st.fixed_dictionaries(
        {
            "temperature": st.sampled_from([0, 0.37, 1.0, 1.9]),
            "top_k": st.sampled_from([0, 1, 3, 5, 99]),
            "top_p": st.sampled_from([0.1317, 0.5173, 0.9271, 1.0]),
            "min_p": st.sampled_from([0.0, 0.0713, 0.3371]),
            "presence_penalty": st.sampled_from([0.0, 0.7, -0.6]),
            "frequency_penalty": st.sampled_from([0.0, 0.3]),
            "repetition_penalty": st.sampled_from([1.0, 1.3, 0.8]),
            "logit_bias": st.sampled_from([{}, {5: 3.0, 1: -100.0}]),
            "min_tokens": st.sampled_from([0, 4]),
            "ignore_eos": st.booleans(),
            "stop_token_ids": st.sampled_from([(), (2, 7)]),
        }
    ),
)
def test_a_token_is_what_the_rules_say(number: int, seed: int, output: list[int], options: dict[str, Any]) -> None:
    s = sequence(output=tuple(output), seed=seed, **options)
    logits = row(number)
    wanted = expected(logits.tolist(), s, uniform(seed, len(s.tokens)))
    before = logits.clone()
    assert sample(logits[None], [s], EOS)[0].token == wanted
    assert torch.equal(logits, before), "the logits are still needed for the log probabilities"


def test_greedy_takes_the_lowest_of_equals() -> None:
    logits = torch.zeros(1, VOCABULARY)
    logits[0, [4, 9, 11]] = 2.5
    assert sample(logits.bfloat16(), [sequence(temperature=0)], EOS)[0].token == 4
    assert sample(logits, [sequence(temperature=1e-9)], EOS)[0].token == 4


def test_drawn_shares_are_the_probabilities() -> None:
    weights = torch.tensor([1.0, 0.0, 2.0, 5.0, 0.0])
    drawn = [draw(weights, uniform(11, position)) for position in range(20_000)]
    shares = [drawn.count(token) / len(drawn) for token in range(5)]
    assert shares == pytest.approx([0.125, 0, 0.25, 0.625, 0], abs=0.012)


@pytest.mark.parametrize(("u", "token"), [(0.0, 1), (0.2499, 1), (0.25, 3), (1 - 2.0**-53, 3)])
def test_a_token_without_probability_is_never_drawn(u: float, token: int) -> None:
    assert draw(torch.tensor([0.0, 1.0, 0.0, 3.0, 0.0]), u) == token


def test_the_same_seed_draws_the_same_whatever_else_is_in_the_batch() -> None:
    mine, others = sequence(seed=5), [sequence(seed=i, temperature=0.5 * i) for i in range(4)]
    logits = torch.stack([row(i) for i in range(5)])
    alone = sample(logits[4:], [mine], EOS)[0]
    assert sample(logits, [*others, mine], EOS)[4] == alone
    assert len({uniform(5, position) for position in range(100)}) == 100
    assert len({uniform(seed, 5) for seed in range(100)}) == 100
    assert uniform(-1, 3) == uniform(2**64 - 1, 3), "any int64 is a seed"


def test_known_best_tokens_change_nothing() -> None:
    ways = [{"temperature": 0}, {"top_p": 0.5}, {"temperature": 0, "logit_bias": {3: 9.0}}, {"temperature": 0}, {}]
    logits = torch.stack([row(i) for i in range(len(ways))])
    logits[3:, 2] = math.nan
    best = [*logits[:3].argmax(1).tolist(), -1, -1]
    expected, found = (sample(logits, [sequence(**way) for way in ways], EOS, known) for known in (None, best))
    assert found == expected and [one.failure for one in found[3:]] == [Failure.NOT_FINITE] * 2
    assert sample(logits * 0, [sequence(temperature=0)] * 5, EOS, best)[0].token == best[0], "which is not looked for"


def test_logprobs_are_the_models_own() -> None:
    logits, s = row(3), sequence(temperature=0.5, logit_bias={1: 9.0}, logprobs=4, top_k=2)
    sampled = sample(logits[None], [s], EOS)[0]
    scores = torch.log_softmax(logits.double(), 0).tolist()
    order = sorted(range(VOCABULARY), key=lambda token: (-logits[token].item(), token))
    assert sampled.logprob is not None
    assert sampled.logprob.logprob == pytest.approx(scores[sampled.token], abs=1e-6)
    assert [token for token, _ in sampled.logprob.top] == order[:4]
    assert [value for _, value in sampled.logprob.top] == pytest.approx([scores[t] for t in order[:4]], abs=1e-6)
    assert logprobs(logits[None], [2], 0)[0].top == ()


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(0, VOCABULARY + 3), st.integers(1, 3))
def test_ranked_is_a_stable_sort(number: int, count: int, rows: int) -> None:
    values = torch.stack([row(number + i) for i in range(rows)])
    order = values.argsort(dim=-1, descending=True, stable=True)[:, :count]
    best, ids = ranked(values, count)
    assert torch.equal(ids, order)
    assert torch.equal(best, values.gather(1, order))


@pytest.mark.parametrize("size", [100, 5000])
def test_a_wide_nucleus_is_found_too(size: int) -> None:
    """Wider than the few best that are looked at first."""
    drawn = {sample(torch.zeros(1, size), [sequence(seed=i, top_p=0.75)], EOS)[0].token for i in range(300)}
    assert max(drawn) < 0.75 * size
    assert max(drawn) > 0.6 * size


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_fault_ends_one_request_only(bad: float) -> None:
    logits = torch.stack([row(1), row(2), row(3)])
    logits[1, 5] = bad
    unbounded = sequence(logit_bias={VOCABULARY: 1.0})
    good, not_finite, failed = sample(logits, [sequence(), sequence(), unbounded], EOS)
    assert good == sample(row(1)[None], [sequence()], EOS)[0]
    assert not_finite.failure is Failure.NOT_FINITE
    assert failed.error is not None and failed.failure is None
    assert failed.error.startswith("sampling failed: IndexError")
