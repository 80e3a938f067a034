"""A whole step against the same in torch, written down line by line with its roundings: every block of it is exercised.

One layer; the cache is read back in the order that src/cache.h draws.
"""

from array import array
from math import inf, nan

import pytest
import torch
from torch import Tensor

from twofour.serve.kernels.cpu import CpuWeight, extension
from twofour.serve.kernels.cpu.step import Chunks, StepLayer, StepLinear, StepModel, StepShape

pytestmark = pytest.mark.skipif(bool(extension.missing()), reason=f"no CPU kernel: {extension.missing()}")
SIZE, POSITIONS, VOCABULARY = 32, 96, 64


class Oracle:
    """A layer with its embeddings and its head. Every line rounds to bfloat16, as transformers does."""

    def __init__(self, heads: int, key_heads: int, dim: int, window: int, biased: bool, normed: bool) -> None:
        random = torch.Generator().manual_seed(heads * dim + window)

        def numbers(*shape: int, spread: float = 0.1, middle: float = 0.0) -> Tensor:
            return (middle + spread * torch.randn(*shape, generator=random)).bfloat16()

        hidden, inner = 64, 128
        rows = [heads * dim, key_heads * dim, key_heads * dim, hidden, inner, inner, hidden]
        columns = [hidden, hidden, hidden, heads * dim, hidden, hidden, inner]
        self.weights = [numbers(n, k) for n, k in zip(rows, columns, strict=True)]
        self.biases = [numbers(n) if biased else None for n in rows]
        self.norms = [numbers(hidden, middle=1.0) for _ in range(3)]
        self.head_norms = [numbers(dim, middle=1.0) if normed else None for _ in range(2)]
        self.embeddings, self.head = numbers(VOCABULARY, hidden, spread=1.0), numbers(VOCABULARY, hidden)
        angles = torch.arange(POSITIONS)[:, None] / 10 ** torch.linspace(0, 2, dim // 2)
        self.cosines, self.sines = angles.cos().bfloat16(), angles.sin().bfloat16()
        self.heads, self.key_heads, self.dim, self.window = heads, key_heads, dim, window

    def step_model(self, head_bias: Tensor | None = None) -> StepModel:
        linears = [StepLinear(CpuWeight.from_dense(w), b) for w, b in zip(self.weights, self.biases, strict=True)]
        angles = self.cosines, self.sines
        layer = StepLayer(*self.norms[:2], None, None, *self.head_norms, linears, angles, self.window)
        shape = StepShape(64, 128, self.heads, self.key_heads, self.dim, VOCABULARY, False, 1e-5, self.dim**-0.5, 1.0)
        head = StepLinear(CpuWeight.from_dense(self.head), head_bias)
        return StepModel(shape, [layer], self.embeddings, self.norms[2], head, 4, SIZE)

    def __call__(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, and the keys and values that are kept [key heads, tokens, dim]."""
        x = self.embeddings[tokens]
        query, key, value = (self._heads(self._linear(i, self._normed(x, self.norms[0]))) for i in range(3))
        query, key = (self._turned(each, norm) for each, norm in zip((query, key), self.head_norms, strict=True))
        attended = self._attended(query, key, value).transpose(0, 1).flatten(1)
        x = x + self._linear(3, attended)
        normed = self._normed(x, self.norms[1])
        gate, up = self._linear(4, normed), self._linear(5, normed)
        x = x + self._linear(6, torch.nn.functional.silu(gate) * up)
        return (self._normed(x, self.norms[2]).float() @ self.head.float().T).bfloat16(), key, value

    def _linear(self, index: int, x: Tensor) -> Tensor:
        bias = self.biases[index]
        product = x.float() @ self.weights[index].float().T
        return (product if bias is None else product + bias.float()).bfloat16()

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        exact = x.float()
        return weight * (exact * (exact.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt()).bfloat16()

    def _heads(self, x: Tensor) -> Tensor:  # [tokens, heads * dim] -> [heads, tokens, dim]
        return x.unflatten(1, (-1, self.dim)).transpose(0, 1)

    def _turned(self, x: Tensor, norm: Tensor | None) -> Tensor:
        x = x if norm is None else self._normed(x, norm)
        first, second = x.chunk(2, -1)
        cosines, sines = self.cosines[: x.shape[1]], self.sines[: x.shape[1]]
        return torch.cat([first * cosines - second * sines, second * cosines + first * sines], -1)

    def _attended(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        sharing = self.heads // self.key_heads
        keys, values = (each.float().repeat_interleave(sharing, 0) for each in (key, value))
        at = torch.arange(query.shape[1])
        far = at[:, None] - at[None]
        hidden = (far < 0) | (far >= (self.window or inf))
        scores = (query.float() @ keys.mT * self.dim**-0.5).masked_fill(hidden, -inf)
        return (scores.softmax(-1) @ values).bfloat16()


CASES = {
    "one head of 16": (1, 1, 16, 0, False, False),
    "5 heads on 1": (5, 1, 64, 0, False, False),
    "6 heads of 48 on 2, biases": (6, 2, 48, 0, True, False),
    "2 heads of 128, normed": (2, 2, 128, 0, False, True),
    "a window of 7": (4, 2, 32, 7, False, False),
    "a window of 64, 2 heads of 256": (2, 1, 256, 64, True, True),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("count", [1, 2, 31, 65, 96])
def test_a_layer_is_what_torch_computes(case: str, count: int, isa: str) -> None:
    oracle = Oracle(*CASES[case])
    tokens = torch.arange(count) * 7 % VOCABULARY
    expected, _, _ = oracle(tokens)
    logits, best = oracle.step_model().step(tokens.tolist(), Chunks([(0, count, [2, 0, 3])]), range(count))
    error = (logits.float() - expected.float()).norm(dim=1) / expected.float().norm(dim=1)
    assert error.max() < 0.01  # a rounding that falls the other way, here and there
    assert best == logits.float().argmax(1).tolist()


@pytest.mark.parametrize("case", CASES)
def test_keys_and_values_lie_in_their_blocks(case: str, isa: str) -> None:
    oracle = Oracle(*CASES[case])
    tokens = torch.arange(70) * 5 % VOCABULARY
    _, key, value = oracle(tokens)
    model = oracle.step_model()
    model.step(tokens.tolist(), Chunks([(0, 70, array("i", [2, 0, 3]))]), [])
    heads, dim = oracle.key_heads, oracle.dim
    keys = model.cache[0, 0].view(4, heads, SIZE // 16, dim // 2, 16, 2)[[2, 0, 3]]
    values = model.cache[0, 1].view(4, heads, SIZE // 2, dim, 2)[[2, 0, 3]]
    found_keys = keys.permute(1, 0, 2, 4, 3, 5).reshape(heads, -1, dim)[:, :70]
    found_values = values.permute(1, 0, 2, 4, 3).reshape(heads, -1, dim)[:, :70]
    assert (found_keys.float() - key.float()).norm() < 0.002 * key.float().norm()
    assert (found_values.float() - value.float()).norm() < 0.002 * value.float().norm()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("bad", "least"), [({0: nan}, -1), ({63: nan, 5: inf}, -1), ({9: inf}, -1), ({9: -inf}, 0), ({range(64): -inf}, -1)]
)
def test_a_row_whose_best_is_not_finite_has_none(
    bad: dict[int | range, float], least: int, threads: int, isa: str
) -> None:
    bias = torch.zeros(VOCABULARY, dtype=torch.bfloat16)
    for at, value in bad.items():
        bias[at] = value
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = Oracle(*CASES["5 heads on 1"]).step_model(bias)
        logits, best = model.step(range(3), Chunks([(0, 3, [0])]), range(3))
    finally:
        torch.set_num_threads(before)
    assert best == (logits.float().argmax(1).tolist() if least == 0 else [-1] * 3)


def test_of_equal_logits_the_lowest_token_is_best_whichever_thread_meets_it_last(isa: str) -> None:
    oracle = Oracle(*CASES["5 heads on 1"])
    oracle.head.zero_()
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        model = oracle.step_model()
        found = [model.step([3], Chunks([(0, 1, [0])]), [0])[1] for _ in range(500)]
    finally:
        torch.set_num_threads(before)
    assert found == [[0]] * 500


@pytest.mark.parametrize("code", ["b", "q"])
def test_a_table_in_an_array_of_other_integers_is_read_as_its_numbers(code: str) -> None:
    oracle = Oracle(*CASES["5 heads on 1"])
    tokens, table = [t * 7 % VOCABULARY for t in range(70)], [2, 0, 3]
    expected, _ = oracle.step_model().step(tokens, Chunks([(0, 70, table)]), [69])
    found, _ = oracle.step_model().step(tokens, Chunks([(0, 70, array(code, table))]), [69])
    assert torch.equal(found, expected)
