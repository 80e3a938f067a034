"""Packing against the layout written out by hand, and every way in which stored tensors can be wrong."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from twofour.prune.errors import CheckpointError, NonFiniteError, PatternError
from twofour.prune.format import pattern
from twofour.prune.format.packed import VALID_NIBBLES, Packed, join_nibbles, pack, split_nibbles, validate

FLOATS = (torch.bfloat16, torch.float16, torch.float32)


def pack_by_hand(weight: Tensor) -> tuple[list[list[float]], list[list[int]]]:
    """Follow the words of the format, one group at a time."""
    all_values, all_bytes = [], []
    for row in weight.tolist():
        values, nibbles = [], []
        for start in range(0, len(row), 4):
            group = row[start : start + 4]
            kept = [i for i in range(4) if group[i] != 0]
            kept += [i for i in range(4) if i not in kept]  # the lowest free indices
            first, second = sorted(kept[:2])
            values += [group[first] or 0.0, group[second] or 0.0]
            nibbles.append(first | second << 2)
        nibbles += [0] * (len(nibbles) % 2)
        all_values.append(values)
        all_bytes.append([low | high << 4 for low, high in zip(nibbles[::2], nibbles[1::2], strict=True)])
    return all_values, all_bytes


def sparse(rows: int, groups: int, seed: int, dtype: torch.dtype) -> Tensor:
    """A random 2:4 weight with empty, half-empty and negative-zero slots."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, 4 * groups, generator=generator).to(dtype)
    weight *= pattern.mask_from_scores(torch.rand(rows, 4 * groups, generator=generator))
    return torch.where(torch.rand(weight.shape, generator=generator) < 0.3, -torch.zeros_like(weight), weight)


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


def test_the_example_of_the_docstring() -> None:
    packed = pack(torch.tensor([[0.0, 1.5, 0.0, 2.5, 0.0, 0.0, -3.0, 0.0]]))
    assert packed.values.tolist() == [[1.5, 2.5, 0.0, -3.0]]
    assert packed.positions.tolist() == [[0x8D]]


def test_every_group_of_at_most_two() -> None:
    weights = [group for group in itertools.product((0.0, -0.0, 1.0, -2.0), repeat=4) if sum(map(bool, group)) <= 2]
    weight = torch.tensor(weights)
    packed = pack(weight)
    values, positions = pack_by_hand(weight)
    assert packed.values.tolist() == values and packed.positions.tolist() == positions
    assert not torch.signbit(packed.values[packed.values == 0]).any()
    assert set(packed.positions.flatten().tolist()) == set(VALID_NIBBLES)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 2**32), st.sampled_from(FLOATS))
def test_round_trip(rows: int, groups: int, seed: int, dtype: torch.dtype) -> None:
    weight = sparse(rows, groups, seed, dtype)
    packed = pack(weight)
    validate(packed, "w")
    values, positions = pack_by_hand(weight)
    assert packed.values.tolist() == values and packed.positions.tolist() == positions
    assert packed.values.dtype == dtype and packed.shape == tuple(weight.shape)
    unpacked = packed.unpack()
    assert torch.equal(bits(unpacked), bits(weight + 0.0))  # the same bits, -0.0 made +0.0
    again = pack(unpacked)
    assert torch.equal(bits(again.values), bits(packed.values)) and torch.equal(again.positions, packed.positions)


def test_the_smallest_numbers_survive() -> None:
    weight = torch.tensor([[torch.finfo(torch.float32).tiny / 2, 0, 0, -torch.finfo(torch.float32).max]])
    assert torch.equal(pack(weight).unpack(), weight)


@pytest.mark.parametrize("groups", [1, 2, 3, 7])
def test_an_odd_number_of_groups_ends_in_a_zero_nibble(groups: int) -> None:
    positions = pack(torch.zeros(2, 4 * groups)).positions
    assert positions.shape == (2, (groups + 1) // 2)
    assert (positions[:, -1] >> 4 == (0 if groups % 2 else 4)).all()


def test_nbytes_counts_what_is_stored() -> None:
    packed = pack(torch.zeros(16, 64, dtype=torch.bfloat16))
    assert packed.nbytes == 16 * 64 * 9 // 8  # 1.125 bytes a dense weight


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_not_packed(bad: float) -> None:
    weight = torch.zeros(2, 8)
    weight[1, 3] = bad
    with pytest.raises(NonFiniteError, match="q_proj holds NaN or infinity"):
        pack(weight, "q_proj")


def test_what_is_not_2_of_4_is_not_packed() -> None:
    with pytest.raises(PatternError, match="q_proj is not 2:4 at row 0, columns 4-7"):
        pack(torch.tensor([[1.0, 1, 0, 0, 1, 1, 1, 0]]), "q_proj")
    with pytest.raises(PatternError, match="divisible by 4, got 6"):
        pack(torch.zeros(1, 6))


@pytest.mark.parametrize("nibble", [n for n in range(16) if n not in VALID_NIBBLES])
@pytest.mark.parametrize("group", [0, 1, 2])
def test_every_invalid_nibble_is_named(nibble: int, group: int) -> None:
    packed = pack(torch.zeros(2, 12))
    nibbles = split_nibbles(packed.positions).clone()
    nibbles[1, group] = nibble
    broken = replace(packed, positions=join_nibbles(nibbles))
    with pytest.raises(
        CheckpointError, match=f"q_proj has the invalid position nibble {nibble} at row 1, group {group};"
    ):
        validate(broken, "q_proj")


@pytest.mark.parametrize("nibble", range(1, 16))
def test_the_last_nibble_of_an_odd_row_must_be_zero(nibble: int) -> None:
    packed = pack(torch.zeros(1, 4))
    broken = replace(packed, positions=packed.positions | nibble << 4)
    with pytest.raises(CheckpointError, match=f"invalid position nibble {nibble} at row 0, group 1"):
        validate(broken, "w")


def test_shapes_and_dtypes_must_fit() -> None:
    packed = pack(torch.zeros(2, 16))
    faults = {
        "dtypes torch.float64": replace(packed, values=packed.values.double()),
        "and torch.int8": replace(packed, positions=packed.positions.to(torch.int8)),
        r"values \[2, 7\]": replace(packed, values=packed.values[:, :7]),
        r"values \[16\]": replace(packed, values=packed.values.flatten()),
        r"values \[2, 4\]": replace(packed, values=packed.values[:, :4]),
        r"positions \[1, 2\]": replace(packed, positions=packed.positions[:1]),
        "scales exactly if": replace(packed, scales=torch.ones(2, 1)),
    }
    for message, broken in faults.items():
        with pytest.raises(CheckpointError, match=message):
            validate(broken, "w")


def int8(rows: int, columns: int, scale_columns: int) -> Packed:
    weight = sparse(rows, columns // 4, 1, torch.float32)
    values = pack(weight).values.mul(20).round().clamp(-127, 127).to(torch.int8)
    scales = torch.rand(rows, -(-columns // (scale_columns or columns)))
    return Packed(values, pack(weight).positions, scales, scale_columns)


@pytest.mark.parametrize(("columns", "scale_columns"), [(64, 64), (128, 64), (96, 64), (20, 0), (68, 64)])
def test_int8_values_take_the_scale_of_their_column(columns: int, scale_columns: int) -> None:
    packed = int8(3, columns, scale_columns)
    validate(packed, "w")
    assert packed.scales is not None
    slots, expected = packed.slots(), torch.zeros(3, columns)
    for row in range(3):
        for k in range(columns // 2):
            column = k // 2 * 4 + int(slots[row, k // 2, k % 2])
            scale = packed.scales[row, column // (scale_columns or columns)]
            expected[row, column] = packed.values[row, k].float() * scale
    assert torch.equal(packed.unpack(), expected)


def test_int8_needs_scales_of_its_shape() -> None:
    packed = int8(3, 96, 64)
    assert packed.scales is not None
    with pytest.raises(CheckpointError, match="scales exactly if"):
        validate(replace(packed, scales=None), "w")
    faults = {
        r"scales torch.float32 \[3, 1\], not torch.float32 \[3, 2\]": packed.scales[:, :1],
        r"scales torch.float32 \[6\], not": packed.scales.flatten(),
        r"scales torch.bfloat16 \[3, 2\], not": packed.scales.bfloat16(),
    }
    for message, scales in faults.items():
        with pytest.raises(CheckpointError, match=message):
            validate(replace(packed, scales=scales), "w")
    for columns in (-64, 6):
        with pytest.raises(CheckpointError, match=f"scale_columns {columns}, not 0 or a multiple of 4"):
            validate(replace(packed, scale_columns=columns), "w")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.5])
def test_a_scale_is_finite_and_not_negative(bad: float) -> None:
    packed = int8(3, 96, 64)
    assert packed.scales is not None
    packed.scales[2, 1] = bad
    with pytest.raises(CheckpointError, match=f"w has the scale {bad} at row 2, number 1; scales are finite and not"):
        validate(packed, "w")


@given(st.lists(st.integers(0, 15), min_size=1, max_size=9))
def test_nibbles_join_and_split(nibbles: list[int]) -> None:
    joined = join_nibbles(torch.tensor([nibbles], dtype=torch.uint8))
    padded = nibbles + [0] * (len(nibbles) % 2)
    assert joined.tolist() == [[padded[i] + 16 * padded[i + 1] for i in range(0, len(padded), 2)]]
    assert split_nibbles(joined).tolist() == [padded]
