"""The kernel against the rule in float64; and that what is beside a token changes no bit of it."""

from itertools import pairwise
from math import inf, nan

import pytest
import torch
from torch import Tensor

from twofour.prune.errors import InputError
from twofour.serve.kernels.cpu import extension
from twofour.serve.kernels.cpu.attention import LayerCache, takes
from twofour.serve.kernels.cpu.step import Chunks

pytestmark = pytest.mark.skipif(bool(extension.missing()), reason=f"no CPU kernel: {extension.missing()}")
SIZE, BLOCKS, TOKENS = 16, 24, 150
TABLE = [7, 3, 0, 9, 2, 8, 1, 6, 5, 4]
CASES = {  # heads, key heads, dim, window, cap
    "a key head each, of 16": (3, 3, 16, 0, 0.0),
    "5 on 1, of 48": (5, 1, 48, 0, 0.0),
    "6 on 2, a window of 70": (6, 2, 64, 70, 0.0),
    "2 on 1, a window of 1": (2, 1, 32, 1, 0.0),
    "4 on 2, of 256, a cap": (4, 2, 256, 0, 1.5),
    "a window of 65 and a cap": (4, 4, 80, 65, 3.0),
}


def rows(case: str) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [tokens, heads, dim]."""
    heads, key_heads, dim, _, _ = CASES[case]
    random = torch.Generator().manual_seed(dim)
    return tuple(torch.randn(TOKENS, n, dim, generator=random).bfloat16() for n in (heads, key_heads, key_heads))  # type: ignore[return-value]


def cache(case: str, left: float = nan) -> LayerCache:
    """What others have left in it is `left`."""
    _, key_heads, dim, _, _ = CASES[case]
    made = LayerCache(BLOCKS, SIZE, key_heads, dim)
    made.numbers.fill_(left)
    return made


def attend(to: LayerCache, case: str, start: int, stop: int, table: list[int] = TABLE) -> Tensor:
    _, _, dim, window, cap = CASES[case]
    query, key, value = (each[start:stop] for each in rows(case))
    return to.attend(Chunks([(start, stop - start, table)]), query, key, value, dim**-0.5, window, cap)


def expected(case: str) -> Tensor:
    heads, key_heads, dim, window, cap = CASES[case]
    query, key, value = (each.double().transpose(0, 1) for each in rows(case))
    key, value = (each.repeat_interleave(heads // key_heads, 0) for each in (key, value))
    scores = query @ key.mT * dim**-0.5
    scores = cap * (scores / cap).tanh() if cap else scores
    far = torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)
    scores = scores.masked_fill((far < 0) | (far >= (window or inf)), -inf)
    return (scores.softmax(-1) @ value).transpose(0, 1)


@pytest.mark.parametrize("case", CASES)
def test_a_prompt_is_attended_by_the_rule(case: str, isa: str) -> None:
    found = attend(cache(case), case, 0, TOKENS)
    assert found.shape == rows(case)[0].shape
    torch.testing.assert_close(found.double(), expected(case), rtol=0.004, atol=1e-4)  # half a unit of bfloat16


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("threads", [1, 2])
def test_chunks_batches_and_threads_change_no_bit(case: str, threads: int, isa: str) -> None:
    whole, before = attend(cache(case), case, 0, TOKENS), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for step in (1, 3, 64, 149):
            chunked = cache(case, left=3.0)
            cuts = [*range(0, TOKENS, step), TOKENS]
            parts = [attend(chunked, case, start, stop) for start, stop in pairwise(cuts)]
            assert torch.equal(torch.cat(parts), whole)
        assert torch.equal(_beside_others(case), whole[100:103])
    finally:
        torch.set_num_threads(before)


def _beside_others(case: str) -> Tensor:
    """Tokens 100 to 102, with two more sequences in the same call."""
    _, _, dim, window, cap = CASES[case]
    shared = cache(case)
    attend(shared, case, 0, 100)
    attend(shared, case, 0, 40, table=[20, 21, 22])
    chunks = Chunks([(40, 1, [20, 21, 22]), (100, 3, TABLE), (0, 30, [15, 14])])
    flat = [40, *range(100, 103), *range(30)]
    query, key, value = (each[flat] for each in rows(case))
    return shared.attend(chunks, query, key, value, dim**-0.5, window, cap)[1:4]


@pytest.mark.parametrize("case", CASES)
def test_numbers_that_are_missing_reach_only_who_sees_them(case: str, isa: str) -> None:
    _, _, dim, window, cap = CASES[case]
    query, key, value = rows(case)
    whole = attend(cache(case), case, 0, TOKENS)
    value[77] = nan
    found = cache(case).attend(Chunks([(0, TOKENS, TABLE)]), query, key, value, dim**-0.5, window, cap)
    last = 76 + window if window else TOKENS - 1
    assert found[77 : last + 1].isnan().all()
    assert torch.equal(found[:77], whole[:77]) and torch.equal(found[last + 1 :], whole[last + 1 :])


def test_a_prefix_of_another_sequence_is_attended_where_it_lies() -> None:
    case = "6 on 2, a window of 70"
    shared = cache(case)
    whole = attend(shared, case, 0, TOKENS)
    assert torch.equal(attend(shared, case, 64, 90, table=[*TABLE[:4], 20, 21]), whole[64:90])


@pytest.mark.parametrize(
    ("start", "table", "why"),
    [
        (0, [0], "fewer cache blocks"),
        (0, [0, BLOCKS], "not in the cache"),
        (0, [0, -1], "not in the cache"),
        (-1, [0, 1], "beyond"),
    ],
)
def test_what_is_not_in_the_cache_is_refused(start: int, table: list[int], why: str) -> None:
    case = "5 on 1, of 48"
    made, (query, key, value) = cache(case), (each[:20] for each in rows(case))
    with pytest.raises(InputError, match=why):
        made.attend(Chunks([(start, 20, table)]), query, key, value, 1.0)
    assert made.numbers.isnan().all()


def test_other_rows_are_refused() -> None:
    case = "6 on 2, a window of 70"
    made, chunks, (query, key, value) = cache(case), Chunks([(0, 20, [0, 1])]), (each[:20] for each in rows(case))
    for wrong in [
        (query[:19], key, value),
        (query, key.float(), value),
        (query, key, query),
        (query[:, :5], key, value),
    ]:
        with pytest.raises(InputError, match="rows of bfloat16"):
            made.attend(chunks, *wrong, 1.0)
    with pytest.raises(InputError, match="at least one token"):
        made.attend(Chunks([]), query[:0], key[:0], value[:0], 1.0)


@pytest.mark.parametrize(
    ("head_dim", "block_size", "dtype", "expected"),
    [
        (64, 16, torch.bfloat16, True),
        (256, 32, torch.bfloat16, True),
        (64, 24, torch.bfloat16, False),
        (8, 16, torch.bfloat16, False),
        (272, 16, torch.bfloat16, False),
        (64, 16, torch.float32, False),
    ],
)
def test_what_it_takes(head_dim: int, block_size: int, dtype: torch.dtype, expected: bool) -> None:
    assert takes(head_dim, block_size, dtype) is expected
