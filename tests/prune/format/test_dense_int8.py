"""A dense weight in int8, against the rule written out by hand."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from twofour.prune.errors import CheckpointError, NonFiniteError
from twofour.prune.format import dense_int8
from twofour.prune.format.dense_int8 import RUN, int8_bytes, to_dense_int8, validate


@pytest.mark.parametrize("columns", [64, 128, 72, 8])
def test_it_is_the_rule_by_hand(columns: int) -> None:
    weight = torch.randn(5, columns, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight[2, :64] = 0
    packed = to_dense_int8(weight)
    assert packed.scales.shape == (5, -(-columns // RUN))
    for row in range(5):
        for run, begin in enumerate(range(0, columns, RUN)):
            inside = range(begin, min(begin + RUN, columns))
            scale = max(abs(float(weight[row, i])) for i in inside) / 127
            assert float(packed.scales[row, run]) == pytest.approx(scale, rel=1e-6)
            for i in inside:
                assert int(packed.values[row, i]) == (round(float(weight[row, i]) / scale) if scale else 0)


def test_what_is_read_back_is_within_half_a_scale() -> None:
    weight = torch.randn(16, 192, generator=torch.Generator().manual_seed(1))
    packed = to_dense_int8(weight)
    allowed = packed.scales.repeat_interleave(RUN, dim=1) * 0.5001
    assert bool(((packed.unpack() - weight).abs() <= allowed).all())
    again = to_dense_int8(packed.unpack())
    assert torch.equal(again.values, packed.values)


def test_not_finite_is_named() -> None:
    with pytest.raises(NonFiniteError, match="lm_head"):
        to_dense_int8(torch.full((2, 64), torch.nan), "lm_head")


def test_it_is_the_same_in_chunks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(11, 72, generator=torch.Generator().manual_seed(2)).bfloat16()
    whole = to_dense_int8(weight)
    unpacked = whole.unpack(torch.bfloat16)
    monkeypatch.setattr(dense_int8, "CHUNK_BYTES", 3 * 72 * 4)
    parts = to_dense_int8(weight)
    assert torch.equal(parts.values, whole.values) and torch.equal(parts.scales, whole.scales)
    assert torch.equal(parts.unpack(torch.bfloat16), unpacked) and unpacked.dtype == torch.bfloat16
    assert parts.nbytes == int8_bytes(11, 72) == 11 * (72 + 2 * 4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"values": torch.ones(4, 72)}, r"head has values torch\.float32 \[4, 72\], not torch\.int8"),
        ({"values": torch.ones(288, dtype=torch.int8)}, r"head has values torch\.int8 \[288\]"),
        ({"scales": torch.ones(4, 2).half()}, r"head has scales torch\.float16 \[4, 2\], not torch\.float32 \[4, 2\]"),
        ({"scales": torch.ones(4, 1)}, r"head has scales torch\.float32 \[4, 1\], not torch\.float32 \[4, 2\]"),
        ({"scales": torch.tensor([[1, 1], [1, torch.nan]] * 2)}, "head has the scale nan at row 1, number 1"),
        ({"scales": torch.full((4, 2), torch.inf)}, "head has the scale inf at row 0, number 0"),
        ({"scales": torch.full((4, 2), -0.5)}, "head has the scale -0.5 at row 0"),
        ({"values": torch.full((4, 72), -128, dtype=torch.int8)}, "head has the value -128 at row 0, column 0"),
    ],
)
def test_damage_is_named(change: dict[str, Any], words: str) -> None:
    packed = to_dense_int8(torch.randn(4, 72))
    validate(packed, "head")
    with pytest.raises(CheckpointError, match=words):
        validate(replace(packed, **change), "head")
