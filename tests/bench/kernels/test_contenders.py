"""The contenders do the work: right products by weights that are as large and as sparse as they claim."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from twofour.bench.kernels import contenders
from twofour.bench.kernels.contenders import (
    Contender,
    Form,
    Product,
    activations,
    dense_forms,
    require_right,
    sparse_forms,
    with_copies,
)
from twofour.prune.errors import TwofourError
from twofour.prune.format import pattern
from twofour.prune.format.packed import pack, validate
from twofour.serve.kernels.cpu import extension
from twofour.serve.kernels.reference import ReferenceKernel
from twofour.serve.kernels.select import Choice

pytestmark = pytest.mark.skipif(bool(extension.missing()), reason=f"no CPU kernel: {extension.missing()}")

MATRIX = (48, 128)  # rows, columns
RING = 100_000


@pytest.fixture(scope="module")
def found() -> list[Contender]:
    return with_copies([*sparse_forms(MATRIX, 0), *dense_forms(MATRIX, 0)], RING)


def named(found: list[Contender], name: str) -> Contender:
    return next(each for each in found if each.name == name)


def test_all_take_part(found: list[Contender]) -> None:
    names = ["served", "2:4 bf16", "2:4 int8", "torch bf16", "torch int8", "dense twin"]
    assert [each.name for each in found] == names


@pytest.mark.parametrize("tokens", [1, 3, 64, 300])
def test_every_copy_of_every_contender_is_right(found: list[Contender], tokens: int) -> None:
    x = activations(tokens, MATRIX[1], 0)
    for each in found:
        for product in each.products:
            require_right([replace(each, products=(product,))], x)


def test_bytes_are_those_of_the_layout(found: list[Contender]) -> None:
    weights = MATRIX[0] * MATRIX[1]
    nbytes = {each.name: each.weight_bytes for each in found}
    assert nbytes["2:4 bf16"] == 1.125 * weights and nbytes["2:4 int8"] == 0.625 * weights + 4 * MATRIX[0]
    assert nbytes["torch bf16"] == nbytes["dense twin"] == 2 * weights
    assert nbytes["torch int8"] == weights + 2 * MATRIX[0]  # bfloat16 scales


def test_copies_fill_the_ring_and_share_no_memory(found: list[Contender]) -> None:
    addresses: list[int] = []
    for each in found:
        assert len(each.products) == -(-RING // each.weight_bytes)
    for name, keyword in (("torch bf16", "weight"), ("2:4 bf16", "weight"), ("dense twin", "weight")):
        copies = [product.keywords[keyword] for product in named(found, name).products]  # type: ignore[attr-defined]
        addresses += [(copy if isinstance(copy, Tensor) else copy.data).data_ptr() for copy in copies]
    assert len(set(addresses)) == len(addresses)


def test_copies_are_made_by_turns() -> None:
    made: list[str] = []

    def copies(name: str) -> Iterator[Product]:
        while True:
            made.append(name)
            yield torch.abs

    def form(name: str, weight_bytes: int) -> Form:
        return Form(Contender(name, "a kernel", weight_bytes, (), (), torch.empty(0)), copies(name))

    found = with_copies([form("large", 100), form("small", 50)], 199)
    assert made == ["large", "small", "small", "large", "small", "small"]
    assert [len(each.products) for each in found] == [2, 4]


def test_random_weights_are_2_4_canonical_and_drawn_from_the_seed() -> None:
    packed = contenders.random_packed((16, 64), 0)
    validate(packed, "weight")
    dense = packed.unpack()
    assert pattern.first_violation(dense) is None and int((dense != 0).sum()) == 16 * 32
    assert torch.equal(pack(dense).positions, packed.positions)
    assert len(packed.positions.unique()) > 20  # of 36 pairs of nibbles
    assert torch.equal(contenders.random_packed((16, 64), 0).values, packed.values)
    assert not torch.equal(contenders.random_packed((16, 64), 1).values, packed.values)
    validate(contenders.random_integers((16, 64), 0), "weight")


@pytest.mark.parametrize("name", ["served", "2:4 int8", "torch bf16"])
def test_one_weight_in_the_wrong_place_is_not_timed(found: list[Contender], name: str) -> None:
    contender = named(found, name)
    wrong = contender.weight.clone()
    column = int(wrong[3].abs().argmax())
    other = int((wrong[3].abs() - wrong[3, column].abs() / 2).abs().argmin())
    wrong[3, [column, other]] = wrong[3, [other, column]]
    with pytest.raises(TwofourError, match=f"{name} .* multiplies wrongly"):
        require_right([replace(contender, weight=wrong)], activations(4, MATRIX[1], 0))


def test_a_product_that_is_no_number_is_wrong(found: list[Contender]) -> None:
    broken = replace(found[0], products=(lambda x: torch.full((len(x), MATRIX[0]), torch.nan),))
    with pytest.raises(TwofourError, match="multiplies wrongly: nan"):
        require_right([broken], activations(1, MATRIX[1], 0))


@pytest.mark.parametrize("splits", [1, 4, 16])
def test_sums_of_splits_may_be_rounded_before_they_are_added_up(splits: int) -> None:
    """As cuSPARSELt may; at the longest row of an 8B model this is more than another order of float32 sums is."""
    columns = 14_336
    packed = contenders.random_packed((64, columns), 0)
    weight, x = packed.unpack(), activations(4, columns, 0)
    served = contenders.served(packed, "reference").contender

    def split(x: Tensor) -> Tensor:
        parts = zip(x.float().chunk(splits, -1), weight.float().chunk(splits, -1), strict=True)
        total = torch.zeros(len(x), len(weight)).bfloat16()
        for own, of in parts:
            total = total + (own @ of.t()).bfloat16()
        return total

    contender = replace(served, products=(split,), summing=contenders.SPLIT_SUMMING)
    require_right([contender], x)
    if splits == 16:
        with pytest.raises(TwofourError, match="multiplies wrongly"):
            require_right([replace(contender, summing=contenders.SUMMING)], x)
    lost = replace(contender, products=(lambda x: split(x.index_fill(1, torch.arange(0, columns, 16), 0)),))
    with pytest.raises(TwofourError, match="multiplies wrongly"):
        require_right([lost], x)


def test_what_is_known_against_the_library_stands_beside_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = contenders.random_packed(MATRIX, 0)
    stand_in = ReferenceKernel.from_packed(packed)
    monkeypatch.setattr(ReferenceKernel, "name", "cusparselt")
    monkeypatch.setattr(contenders.select, "choose", lambda *_: Choice(stand_in, dropped=("triton: no compiler",)))
    monkeypatch.setattr(torch.backends.cusparselt, "version", lambda: 800)
    form = contenders.served(packed)
    assert form.contender.note is not None and form.contender.summing == contenders.SPLIT_SUMMING
    assert "triton: no compiler; cuSPARSELt 0.8.0 is slow" in form.contender.note
