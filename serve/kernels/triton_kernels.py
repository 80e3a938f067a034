"""The Triton kernels of a packed 2:4 weight: multiply a few tokens (`decode`), or expand to dense (`expand`).

Load sparse, compute dense. A group's two kept values are one 32-bit word, and a code 0..5 says where they go. One
16-bit word carries the codes of four groups, one from each quarter of the row, so every load runs along a row. PRMT
reads its two sources as a table of eight bytes and looks four codes up at once:

    codes      -> 4 PRMT            a selector byte per position and group: 0x10 first value, 0x32 second, 0x44 zero
    selectors  -> 4 PRMT, 4 shifts  16 bits for each half of a group
    words      -> 8 PRMT            the dense halves (d0, d1) and (d2, d3): 20 integer instructions per 16 weights

Each half of each quarter is a plane, [rows, 2 x groups], multiplied with the inputs of that plane: the order of a sum
over inputs is free as long as it is fixed, so nothing is shuffled. Rows of the weight are the rows of the tensor-core
product and tokens its columns, so few tokens waste little.

The order of every sum depends on the weight's shape alone, never on the number of tokens: a row's groups are split into
`SPLITS` ranges, and whoever finishes a tile last adds the ranges up in their order. `PORTABLE` replaces what Triton's
interpreter lacks (inline PTX, bfloat16 products) by the same arithmetic in plain operations.
"""

import triton
from triton import language as tl

# $0..$3 are (d0, d1) of the groups whose words are $8..$11, $4..$7 are (d2, d3); $12 holds the four codes.
EXPAND_PTX = tl.constexpr("""{
.reg .b32 first, second, third, fourth, low02, low13, high02, high13, low1, low3, high1, high3;
prmt.b32 first, 0x44101010, 0x44444444, $12;
prmt.b32 second, 0x10444432, 0x44444410, $12;
prmt.b32 third, 0x32443244, 0x44441044, $12;
prmt.b32 fourth, 0x44324444, 0x44443232, $12;
prmt.b32 low02, first, second, 0x5140;
prmt.b32 low13, first, second, 0x7362;
prmt.b32 high02, third, fourth, 0x5140;
prmt.b32 high13, third, fourth, 0x7362;
shr.u32 low1, low02, 16;
shr.u32 low3, low13, 16;
shr.u32 high1, high02, 16;
shr.u32 high3, high13, 16;
prmt.b32 $0, $8, 0, low02;
prmt.b32 $1, $9, 0, low1;
prmt.b32 $2, $10, 0, low13;
prmt.b32 $3, $11, 0, low3;
prmt.b32 $4, $8, 0, high02;
prmt.b32 $5, $9, 0, high1;
prmt.b32 $6, $10, 0, high13;
prmt.b32 $7, $11, 0, high3;
}""")

OUTPUTS_8 = tl.constexpr("=r,=r,=r,=r,=r,=r,=r,=r,r,r,r,r,r")


@triton.jit
def _slot(
    lower: tl.tensor, upper: tl.tensor, first: tl.tensor, second: tl.tensor, POSITION: tl.constexpr
) -> tl.tensor:
    return tl.where(first == POSITION, lower, tl.where(second == POSITION, upper, 0))


@triton.jit
def _portable_halves(word: tl.tensor, code: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    # two bits per code, lowest first: the first position 0 0 0 1 1 2, the second 1 2 3 2 3 3
    first, second = (0x940 >> (2 * code)) & 3, (0xFB9 >> (2 * code)) & 3
    lower, upper = word & 0xFFFF, (word >> 16) & 0xFFFF
    low = _slot(lower, upper, first, second, 0) | _slot(lower, upper, first, second, 1) << 16
    high = _slot(lower, upper, first, second, 2) | _slot(lower, upper, first, second, 3) << 16
    return low, high


@triton.jit
def _halves(
    w0: tl.tensor, w1: tl.tensor, w2: tl.tensor, w3: tl.tensor, codes: tl.tensor, PORTABLE: tl.constexpr
) -> tuple[tl.tensor, ...]:
    """Expand one group of each quarter, int32 [rows, groups]: the four (d0, d1), then the four (d2, d3)."""
    if PORTABLE:
        low0, high0 = _portable_halves(w0, codes & 7)
        low1, high1 = _portable_halves(w1, (codes >> 4) & 7)
        low2, high2 = _portable_halves(w2, (codes >> 8) & 7)
        low3, high3 = _portable_halves(w3, (codes >> 12) & 7)
        return low0, low1, low2, low3, high0, high1, high2, high3
    else:
        return tl.inline_asm_elementwise(
            EXPAND_PTX,
            OUTPUTS_8,
            [w0, w1, w2, w3, codes],
            dtype=(tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32),
            is_pure=True,
            pack=1,
        )


@triton.jit
def _load(at: tl.tensor, inside: tl.tensor, RAGGED: tl.constexpr) -> tl.tensor:
    if RAGGED:
        return tl.load(at, mask=inside, other=0)
    else:
        return tl.load(at)


@triton.jit
def _add_product(
    sums: tl.tensor, words: tl.tensor, inputs: tl.tensor, DTYPE: tl.constexpr, PORTABLE: tl.constexpr
) -> tl.tensor:
    pairs = tl.join(words.to(tl.int16), (words >> 16).to(tl.int16))  # [rows, groups, 2]
    weights = tl.reshape(pairs, (words.shape[0], 2 * words.shape[1])).to(DTYPE, bitcast=True)
    if PORTABLE:
        return tl.dot(weights.to(tl.float32), inputs.to(tl.float32), sums, input_precision="ieee")
    else:
        return tl.dot(weights, inputs, sums)


@triton.jit
def _store(
    sums: tl.tensor,
    out: tl.tensor,
    bias: tl.tensor,
    row: tl.tensor,
    token: tl.tensor,
    tokens: tl.tensor,
    OUTPUTS: tl.constexpr,
) -> None:
    if bias is not None:
        sums += tl.load(bias + row, mask=row < OUTPUTS, other=0).to(tl.float32)[:, None]
    at = out + token.to(tl.int64)[None, :] * OUTPUTS + row[:, None]
    tl.store(at, sums.to(out.dtype.element_ty), mask=(row < OUTPUTS)[:, None] & (token < tokens)[None, :])


@triton.jit
def _join(
    sums: tl.tensor,
    out: tl.tensor,
    partials: tl.tensor,
    arrivals: tl.tensor,
    bias: tl.tensor,
    row: tl.tensor,
    token: tl.tensor,
    tokens: tl.tensor,
    OUTPUTS: tl.constexpr,
    SPLITS: tl.constexpr,
) -> None:
    """Leave this split's sums; the last to arrive adds all of them in order and leaves the counter at zero."""
    inside = (row < OUTPUTS)[:, None] & (token < tokens)[None, :]
    at = partials + row[:, None] * tokens + token[None, :]
    tl.store(at + tl.program_id(2) * OUTPUTS * tokens, sums, mask=inside)
    tl.debug_barrier()  # every thread has stored before one of them releases
    counter = arrivals + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    if tl.atomic_add(counter, 1, sem="acq_rel") == SPLITS - 1:
        total = tl.full(sums.shape, 0.0, tl.float32)
        for split in tl.static_range(SPLITS):
            total += tl.load(at + split * OUTPUTS * tokens, mask=inside, other=0, cache_modifier=".cg")
        tl.store(counter, 0)
        _store(total, out, bias, row, token, tokens, OUTPUTS)


@triton.jit(do_not_specialize=["tokens"], do_not_specialize_on_alignment=["bias"])
def decode(
    values: tl.tensor,  # [OUTPUTS, 8 * QUARTER], two 16-bit values per group
    codes: tl.tensor,  # int16 [OUTPUTS, QUARTER]
    inputs: tl.tensor,  # [tokens, 16 * QUARTER], or [tokens, 4, 2, QUARTER, 2] if PLANES
    bias: tl.tensor,  # [OUTPUTS] or None
    out: tl.tensor,  # [tokens, OUTPUTS]
    partials: tl.tensor,  # float32 [SPLITS, OUTPUTS, tokens], or None without splits
    arrivals: tl.tensor,  # int32 [tiles], zero between launches
    tokens: tl.tensor,
    OUTPUTS: tl.constexpr,
    QUARTER: tl.constexpr,  # groups per quarter of a row
    SPLITS: tl.constexpr,
    ROW_TILE: tl.constexpr,
    GROUP_TILE: tl.constexpr,
    TOKEN_TILE: tl.constexpr,
    PLANES: tl.constexpr,
    PORTABLE: tl.constexpr,
) -> None:
    """out = inputs @ weight.T + bias, on the grid (token tiles, row tiles, SPLITS)."""
    STEPS: tl.constexpr = (QUARTER + GROUP_TILE - 1) // GROUP_TILE
    STEPS_PER_SPLIT: tl.constexpr = (STEPS + SPLITS - 1) // SPLITS
    RAGGED: tl.constexpr = QUARTER % GROUP_TILE != 0
    DTYPE: tl.constexpr = inputs.dtype.element_ty
    HALF_PITCH: tl.constexpr = 2 * QUARTER if PLANES else 2
    GROUP_PITCH: tl.constexpr = 2 if PLANES else 4
    split = tl.program_id(2)
    row = tl.program_id(1) * ROW_TILE + tl.arange(0, ROW_TILE)
    token = tl.program_id(0) * TOKEN_TILE + tl.arange(0, TOKEN_TILE)
    group = tl.arange(0, GROUP_TILE)
    pair = tl.arange(0, 2 * GROUP_TILE)
    # Rows and tokens past the end read the last one again: in bounds without a mask, and never stored.
    near_row = tl.minimum(row, OUTPUTS - 1).to(tl.int64)[:, None]
    near_token = tl.minimum(token, tokens - 1)[None, :]
    words_at = values.to(tl.pointer_type(tl.int32), bitcast=True) + near_row * (4 * QUARTER) + group[None, :]
    codes_at = codes + near_row * QUARTER + group[None, :]
    inputs_at = inputs + near_token * (16 * QUARTER) + (pair if PLANES else pair // 2 * 4 + pair % 2)[:, None]
    sums = tl.full((ROW_TILE, TOKEN_TILE), 0.0, tl.float32)
    for step in range(split * STEPS_PER_SPLIT, tl.minimum((split + 1) * STEPS_PER_SPLIT, STEPS)):
        done = step * GROUP_TILE
        here = (group < QUARTER - done)[None, :]
        there = (pair // 2 < QUARTER - done)[:, None]
        halves = _halves(
            _load(words_at + done, here, RAGGED),
            _load(words_at + QUARTER + done, here, RAGGED),
            _load(words_at + 2 * QUARTER + done, here, RAGGED),
            _load(words_at + 3 * QUARTER + done, here, RAGGED),
            _load(codes_at + done, here, RAGGED).to(tl.int32),
            PORTABLE,
        )
        for quarter in tl.static_range(4):
            for half in tl.static_range(2):
                plane_at = inputs_at + quarter * 4 * QUARTER + half * HALF_PITCH + done * GROUP_PITCH
                plane = _load(plane_at, there, RAGGED)
                sums = _add_product(sums, halves[half * 4 + quarter], plane, DTYPE, PORTABLE)
    if SPLITS == 1:
        _store(sums, out, bias, row, token, tokens, OUTPUTS)
    else:
        _join(sums, out, partials, arrivals, bias, row, token, tokens, OUTPUTS, SPLITS)
