"""Tokens of all rows at once are those of the definition, row by row (engine/drawing.py)."""

import itertools
import random

import pytest
import torch
from torch import Tensor

from twofour.serve.engine import drawing
from twofour.serve.kernels.cpu import extension, sampling
from twofour.serve.kernels.cpu.sampling import Draw

pytestmark = pytest.mark.skipif(bool(extension.missing()), reason=f"no CPU kernel: {extension.missing()}")
module = extension.loaded()
ISAS = module.isas() if module else []


def defined(logits: Tensor, how: Draw) -> int:
    row = logits[how.row].float()
    return drawing._one(row, how, row.max().item(), int(row.argmax()))


def draws(count: int, vocabulary: int, seed: int) -> list[Draw]:
    """Options that are not round: no sum of ties falls on a limit, where roundings decide."""
    chance = random.Random(seed)
    options = [
        *([0.37, 1.0, 1.9], [0.0, 0.0713], [0, 1, 3, 50, vocabulary, 9 * vocabulary]),
        *([0.1317, 0.5173, 0.9271, 0.99917, 1.0],),
    ]
    return [Draw(row, *(chance.choice(some) for some in options), chance.random()) for row in range(count)]  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("vocabulary", [1, 12, 255, 256, 257, 3001, 20000])
def test_a_token_is_that_of_the_definition(isa: str, dtype: torch.dtype, vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    logits = (torch.randn(60, vocabulary, generator=generator) * 3).to(dtype)  # bfloat16 has many ties
    for seed in range(3):
        asked = draws(len(logits), vocabulary, seed)
        assert sampling.draw(logits, asked) == [defined(logits, how) for how in asked]


def test_every_range_of_u_has_its_token(isa: str) -> None:
    weights = torch.tensor([0.0, 1.0, 0.0, 3.0, 0.0])
    drawn = {
        u: sampling.draw(weights.log()[None], [Draw(0, 1.0, 0.0, 0, 1.0, u)]) for u in (0.0, 0.24, 0.26, 1 - 2**-53)
    }
    assert drawn == {0.0: [1], 0.24: [1], 0.26: [3], 1 - 2**-53: [3]}


def test_the_lowest_of_equals_is_the_best_and_is_kept_first(isa: str) -> None:
    logits = torch.zeros(1, 1000, dtype=torch.bfloat16)
    logits[0, 700:] = 1.0
    assert sampling.draw(logits, [Draw(0, 0.0, 0.0, 0, 1.0, 0.5)]) == [700]
    top = [sampling.draw(logits, [Draw(0, 1.0, 0.0, 3, 1.0, u)])[0] for u in (0.1, 0.5, 0.9)]
    assert top == [700, 701, 702]
    flat = torch.zeros(1, 1000)
    nucleus = [sampling.draw(flat, [Draw(0, 1.0, 0.0, 0, 0.0105, u)])[0] for u in (0.0, 0.5, 0.999)]
    assert nucleus == [0, 5, 10]  # 11 of 1000, the first of which that is not needed is the twelfth


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 254, 255, 299])
def test_a_row_that_is_not_finite_says_so(isa: str, bad: float, place: int) -> None:
    logits = torch.randn(3, 300)
    logits[1, place] = bad
    drawn = sampling.draw(
        logits, [Draw(row, temperature, 0.0, 0, 0.9, 0.3) for row, temperature in enumerate((0.0, 1.0, 1.0))]
    )
    assert drawn[1] == -1 and min(drawn[0], drawn[2]) >= 0
    assert sampling.draw(torch.full((1, 300), -torch.inf), [Draw(0, 0.0, 0.0, 0, 1.0, 0.3)]) == [-1]


def test_rows_threads_and_instruction_sets_do_not_matter() -> None:
    assert module is not None
    before, threads = module.isa(), torch.get_num_threads()
    logits = torch.randn(17, 5000, generator=torch.Generator().manual_seed(1)).mul(3).bfloat16()
    asked, found = draws(len(logits), 5000, 4), set[tuple[int, ...]]()
    try:
        for name, count in itertools.product(ISAS, (1, 2)):
            module.force(name)
            torch.set_num_threads(count)
            found.add(tuple(sampling.draw(logits, asked)))
            found.add(tuple(sampling.draw(logits, [how])[0] for how in asked))
    finally:
        module.force(before)
        torch.set_num_threads(threads)
    assert len(found) == 1


def test_what_no_kernel_takes_is_drawn_by_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(4, 300)
    asked = draws(4, 300, 0)
    expected = drawing.drawn(logits, asked)
    assert not sampling.takes(logits.half()) and not sampling.takes(logits.t())
    monkeypatch.setattr(sampling, "takes", lambda logits: False)
    assert drawing.drawn(logits, asked) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("vocabulary", [1, 12, 255, 256, 257, 3001, 20000])
def test_scores_are_the_log_probabilities(isa: str, dtype: torch.dtype, vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    logits = (torch.randn(9, vocabulary, generator=generator) * 3).to(dtype)
    logits[3] *= 100  # most are so unlikely that they have no weight
    tokens = torch.randint(vocabulary, (9,), generator=generator).tolist()
    scores = logits.double().log_softmax(-1)
    for top in (0, 1, 5, 20):
        order = logits.argsort(dim=-1, descending=True, stable=True)[:, :top]
        chosen, ids, values = sampling.score(logits, tokens, top)
        assert chosen == pytest.approx(
            scores.gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist(), abs=1e-6, rel=1e-6
        )
        assert ids == order.tolist()
        assert torch.allclose(torch.tensor(values).double(), scores.gather(1, order), atol=1e-6, rtol=1e-6)


def test_scores_of_a_row_that_is_not_finite_are_none(isa: str) -> None:
    logits = torch.randn(2, 300)
    logits[0, 299] = float("nan")
    chosen, _, values = sampling.score(logits, [3, 3], 2)
    assert (
        torch.tensor([chosen[0], *values[0]]).isnan().all() and torch.tensor([chosen[1], *values[1]]).isfinite().all()
    )


@pytest.mark.parametrize("tokens", [[0], [0, 300], [0, -1]])
def test_tokens_outside_the_vocabulary_are_refused(tokens: list[int]) -> None:
    with pytest.raises(IndexError, match="for 2 rows, each below 300"):
        sampling.score(torch.zeros(2, 300), tokens, 0)
