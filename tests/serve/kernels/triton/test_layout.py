"""The layout and the plan of the Triton kernels, in plain torch: no Triton, no GPU."""

import pytest
import torch
from torch import Tensor

from twofour.prune.errors import CheckpointError, InputError
from twofour.prune.format import pattern
from twofour.prune.format.packed import Packed, pack
from twofour.serve.kernels.triton import plan as triton_plan
from twofour.serve.kernels.triton.layout import TritonWeight, refuses

PAIRS = {1: (1, 2), 2: (1, 3), 3: (2, 3), 4: (0, 1), 5: (0, 2), 6: (0, 3)}  # by code
AMPERE, ADA, HOPPER, BLACKWELL = (8, 0), (8, 9), (9, 0), (10, 0)
CAPABILITIES = [AMPERE, ADA, HOPPER, BLACKWELL]


def sparse(rows: int, columns: int, seed: int = 0) -> Tensor:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return (weight * pattern.mask_from_scores(weight.abs())).bfloat16()


def dense(weight: TritonWeight) -> Tensor:
    """Read the layout one group at a time."""
    rows, quarter = weight.codes.shape
    out = torch.zeros(rows, 16 * quarter, dtype=weight.values.dtype)
    for row in range(rows):
        for group in range(4 * quarter):
            code = int(weight.codes[row, group % quarter]) >> 4 * (group // quarter) & 15
            for slot, position in enumerate(PAIRS.get(code, ())):
                out[row, 4 * group + position] = weight.values[row, 2 * group + slot]
    return out


@pytest.mark.parametrize("columns", [4, 60, 64, 68, 256, 328])
def test_the_layout_holds_the_dense_weight(columns: int) -> None:
    weight = sparse(3, columns)
    weight[1] = 0
    laid_out = TritonWeight.from_packed(pack(weight))
    assert laid_out.shape == (3, columns)
    assert torch.equal(dense(laid_out)[:, :columns], weight)
    assert not dense(laid_out)[:, columns:].any()


def test_whole_blocks_share_the_values_and_take_nine_sixteenths_of_dense() -> None:
    packed = pack(sparse(512, 1024))
    weight = TritonWeight.from_packed(packed)
    assert weight.values.data_ptr() == packed.values.data_ptr()
    assert weight.values.nbytes + weight.codes.nbytes == 512 * 1024 * 9 // 8


@pytest.mark.parametrize("columns", [64, 68])
def test_values_end_up_aligned_for_vector_loads(columns: int) -> None:
    packed = pack(sparse(4, columns))
    shifted = torch.empty(packed.values.numel() + 1, dtype=packed.values.dtype)[1:].view_as(packed.values)
    weight = TritonWeight.from_packed(Packed(shifted.copy_(packed.values), packed.positions))
    assert weight.values.data_ptr() % 16 == 0
    assert torch.equal(weight.values[:, : columns // 2], packed.values)


def test_transposed_values_are_laid_out_by_rows() -> None:
    packed = pack(sparse(8, 64))
    weight = TritonWeight.from_packed(Packed(packed.values.t().contiguous().t(), packed.positions))
    assert weight.values.is_contiguous() and torch.equal(weight.values, packed.values)


@pytest.mark.parametrize(
    ("packed", "reason"),
    [
        (pack(torch.zeros(2, 8)), "bfloat16 and float16 values, got torch.float32"),
        (pack(torch.zeros(0, 8, dtype=torch.bfloat16)), "no empty weight, got 0 x 8"),
        (pack(torch.zeros(2, 0, dtype=torch.bfloat16)), "no empty weight, got 2 x 0"),
        (Packed(torch.empty(2, 4, dtype=torch.int8), torch.empty(0)), "got torch.int8"),
        (Packed(torch.empty(2, 2**23, dtype=torch.float16, device="meta"), torch.empty(0)), "up to 8388608 columns"),
        (Packed(torch.empty(5_000_000, 2, dtype=torch.float16, device="meta"), torch.empty(0)), "up to 4194240 rows"),
    ],
)
def test_a_weight_is_refused_with_the_reason(packed: Packed, reason: str) -> None:
    assert reason in str(refuses(packed))
    with pytest.raises(InputError, match=reason):
        TritonWeight.from_packed(packed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("columns", [4, 8, 60, 64, 68, 256, 328])
def test_it_gives_back_the_stored_bytes(columns: int, dtype: torch.dtype) -> None:
    weight = sparse(5, columns).to(dtype)
    weight[1] = -0.0  # groups without a value, with one, and negative zeros
    weight[2, ::4] = weight[2, 1::4] = 0.0
    packed = pack(weight)
    back = TritonWeight.from_packed(packed).packed()
    assert torch.equal(back.positions, packed.positions)
    assert torch.equal(back.values.view(torch.int16), packed.values.view(torch.int16))
    assert back.values.is_contiguous() and back.shape == packed.shape


def test_nothing_else_is_refused() -> None:
    assert refuses(pack(sparse(1, 4))) is None


def test_an_invalid_nibble_is_refused_before_it_reaches_a_kernel() -> None:
    packed = pack(sparse(2, 64))
    packed.positions[1, 3] = 0x47  # 7 = positions 3 and 1
    with pytest.raises(CheckpointError, match="invalid position nibble 7 at row 1, group 6"):
        TritonWeight.from_packed(packed)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("rows", [1, 64, 65, 4096, 14337])
def test_every_tile_of_every_call_has_a_counter_and_covers_the_product(rows: int, capability: tuple[int, int]) -> None:
    for tokens in range(1, triton_plan.MAX_TOKENS + 1):
        tile = triton_plan.tile(tokens, capability)
        token_tiles, row_tiles, _ = triton_plan.grid(rows, tokens, 1, tile)
        assert token_tiles * row_tiles <= triton_plan.counters(rows)
        assert token_tiles * tile.tokens >= tokens > (token_tiles - 1) * tile.tokens
        assert row_tiles * tile.rows >= rows > (row_tiles - 1) * tile.rows
        assert tile.tokens >= 16  # one instruction, so one order of sums, for any number of tokens
        assert tile.groups == triton_plan.tile(1, capability).groups  # and one order of its steps


@pytest.mark.parametrize(
    ("rows", "columns", "on_h200", "on_a100"),
    [
        (28672, 4096, 1, 2),
        (6144, 4096, 2, 4),
        (4096, 4096, 4, 4),
        (4096, 14336, 4, 4),
        (64, 64, 1, 1),
    ],
)
def test_splits_fill_the_processors_with_llama_shapes(rows: int, columns: int, on_h200: int, on_a100: int) -> None:
    assert triton_plan.splits(rows, columns // 16, 132, HOPPER) == on_h200
    assert triton_plan.splits(rows, columns // 16, 108, AMPERE) == on_a100


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_splits_cover_the_quarter_and_none_is_without_a_step(capability: tuple[int, int]) -> None:
    groups = triton_plan.tile(1, capability).groups
    for quarter in range(4, 300, 4):
        count = triton_plan.splits(64, quarter, 132, capability)
        steps = triton_plan.steps_of_a_split(quarter, groups, count)
        assert count <= -(-quarter // groups)
        assert steps * count * groups >= quarter > (steps - 1) * count * groups
