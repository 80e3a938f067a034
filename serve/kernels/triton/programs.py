"""The Triton kernels of a packed 2:4 weight: multiply a few tokens (`decode`), or expand to dense (`expand`).

Load sparse, compute dense. A group's two kept values are one 32-bit word, and a code (layout.PAIRS) says where
they go. One 16-bit word carries the codes of four groups, one from each quarter of the row, so every load runs along
a row. PRMT reads its two sources as a table of eight bytes and looks four codes up at once:

    codes      -> 4 PRMT            a selector byte per position: 0x54 first value, 0x76 second, 0x00 zero
    selectors  -> 4 PRMT, 4 shifts  16 bits for each half of a group
    words      -> 8 PRMT            the dense halves (d0, d1) and (d2, d3): 20 instructions per 16 weights

Each half of each quarter is a plane, [rows, 2 x groups], multiplied with the inputs of that plane: the order
of a sum over inputs is free as long as it is fixed, so nothing is shuffled. Rows of the weight are the rows of
the tensor-core product and tokens its columns, so few tokens waste little.

The order of every sum depends on the weight and the device, never on the number of tokens: a row's groups are
split into SPLITS ranges, and the program that finishes a tile last adds the ranges up in their order. PORTABLE
replaces what Triton's interpreter lacks (inline PTX, bfloat16 products) by the same arithmetic in plain operations.

Performance on a GPU: not measured. Proven without one: the results, in the interpreter; the table look-ups,
exhaustively; and the machine code for sm_80, sm_89 and sm_90 (tests/serve/kernels/triton).
"""

import triton
from triton import language as tl

from twofour.serve.kernels.triton import ptx

INTERPRETED = bool(triton.knobs.runtime.interpret)  # as the functions below were made when this was imported

EXPAND = tl.constexpr(ptx.EXPAND)
EXPAND_OPERANDS = tl.constexpr("=r,=r,=r,=r,=r,=r,=r,=r,r,r,r,r,r")


@triton.jit
def _slot(lower: tl.tensor, upper: tl.tensor, first: tl.tensor, second: tl.tensor, POSITION: tl.constexpr) -> tl.tensor:
    return tl.where(first == POSITION, lower, tl.where(second == POSITION, upper, 0))


@triton.jit
def _portable_halves(word: tl.tensor, code: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    # two bits per code, lowest first: the first position - 1 1 2 0 0 0, the second - 2 3 3 1 2 3
    first, second = (0x94 >> (2 * code)) & 3, (0x39F8 >> (2 * code)) & 3
    word = tl.where(code == 0, 0, word)
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
            EXPAND,
            EXPAND_OPERANDS,
            [w0, w1, w2, w3, codes],
            dtype=(tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32),
            is_pure=True,
            pack=1,
        )


@triton.jit
def _load(at: tl.tensor, inside: tl.tensor, MASKED: tl.constexpr) -> tl.tensor:
    if MASKED:
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
    """Leave this split's sums; the last to arrive adds them up in order and resets the counter."""
    inside = (row < OUTPUTS)[:, None] & (token < tokens)[None, :]
    at = partials + row.to(tl.int64)[:, None] * tokens + token[None, :]
    tl.store(at + tl.program_id(2).to(tl.int64) * OUTPUTS * tokens, sums, mask=inside)
    tl.debug_barrier()  # every thread has stored before one of them releases
    counter = arrivals + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    if tl.atomic_add(counter, 1, sem="acq_rel") == SPLITS - 1:
        total = tl.full(sums.shape, 0.0, tl.float32)
        for split in tl.static_range(SPLITS):
            split_at = at + tokens.to(tl.int64) * (split * OUTPUTS)
            total += tl.load(split_at, mask=inside, other=0, cache_modifier=".cg")
        tl.store(counter, 0)
        _store(total, out, bias, row, token, tokens, OUTPUTS)


@triton.jit
def _load_halves(
    words_at: tl.tensor,
    codes_at: tl.tensor,
    inside: tl.tensor,
    QUARTER: tl.constexpr,
    OVERRUN: tl.constexpr,  # groups past the end of the quarter; beyond 3 * QUARTER, past the end of the memory too
    PORTABLE: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    # Past the end of a quarter lies the next one: its words may be read, for the code 0 keeps nothing of them.
    w0 = _load(words_at, inside, OVERRUN > 3 * QUARTER)
    w1 = _load(words_at + QUARTER, inside, OVERRUN > 2 * QUARTER)
    w2 = _load(words_at + 2 * QUARTER, inside, OVERRUN > QUARTER)
    w3 = _load(words_at + 3 * QUARTER, inside, OVERRUN > 0)
    return _halves(w0, w1, w2, w3, _load(codes_at, inside, OVERRUN > 0).to(tl.int32), PORTABLE)


@triton.jit
def _settled(sums: tl.tensor, PORTABLE: tl.constexpr) -> tl.tensor:
    """Use the sums, so that the last product of a step has ended before the next step writes into its registers.

    On sm_90 products run on behind the program and read their weights from registers meanwhile. Triton waits for all
    but the last of a step, and up to 3.7 the next step expands its weights into the same registers. The copy itself
    is optimised away.
    """
    if PORTABLE:
        return sums
    else:
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=f,f", [sums], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def _sum_steps(
    words_at: tl.tensor,
    codes_at: tl.tensor,
    inputs_at: tl.tensor,
    sums: tl.tensor,
    first: tl.tensor,
    STEPS: tl.constexpr,
    OVERRUN: tl.constexpr,
    QUARTER: tl.constexpr,
    GROUP_TILE: tl.constexpr,
    PLANES: tl.constexpr,
    PORTABLE: tl.constexpr,
) -> tl.tensor:
    """Add the products of STEPS steps, GROUP_TILE groups of every quarter each; nothing past the quarter's end."""
    DTYPE: tl.constexpr = inputs_at.dtype.element_ty
    for step in range(STEPS):
        done = (first + step) * GROUP_TILE
        inside = (tl.arange(0, GROUP_TILE) < QUARTER - done)[None, :]
        inside_pairs = (tl.arange(0, 2 * GROUP_TILE) // 2 < QUARTER - done)[:, None]
        halves = _load_halves(words_at + done, codes_at + done, inside, QUARTER, OVERRUN, PORTABLE)
        for quarter in tl.static_range(4):
            for half in tl.static_range(2):
                if PLANES:  # padded with zeros to whole steps, and within 2 KiB: one pointer reaches all of them
                    plane = tl.load(inputs_at + (done * 16 + (quarter * 2 + half) * 2 * GROUP_TILE))
                else:
                    plane_at = inputs_at + (quarter * 4 * QUARTER + half * 2) + done * 4
                    plane = _load(plane_at, inside_pairs, OVERRUN > 0)
                sums = _add_product(sums, halves[half * 4 + quarter], plane, DTYPE, PORTABLE)
        sums = _settled(sums, PORTABLE)
    return sums


# The number of tokens picks no compiled variant beyond the tile: a captured graph compiles nothing.
@triton.jit(do_not_specialize=["tokens"], do_not_specialize_on_alignment=["bias"])
def decode(
    values: tl.tensor,  # [OUTPUTS, 8 * QUARTER], two 16-bit values per group
    codes: tl.tensor,  # int16 [OUTPUTS, QUARTER]
    inputs: tl.tensor,  # [tokens, 16 * QUARTER]; with PLANES [tokens, SPLITS * STEPS, 4, 2, GROUP_TILE, 2]
    bias: tl.tensor,  # [OUTPUTS] or None
    out: tl.tensor,  # [tokens, OUTPUTS]
    partials: tl.tensor,  # float32 [SPLITS, OUTPUTS, tokens], or None if SPLITS is 1
    arrivals: tl.tensor,  # int32, one per tile, zero between launches
    tokens: tl.tensor,
    OUTPUTS: tl.constexpr,
    QUARTER: tl.constexpr,  # groups in a quarter of a row
    SPLITS: tl.constexpr,
    ROW_TILE: tl.constexpr,
    GROUP_TILE: tl.constexpr,
    TOKEN_TILE: tl.constexpr,
    PLANES: tl.constexpr,
    PORTABLE: tl.constexpr,
) -> None:
    """Compute out = inputs @ weight.T + bias on the grid (token tiles, row tiles, SPLITS)."""
    STEPS: tl.constexpr = (QUARTER + GROUP_TILE * SPLITS - 1) // (GROUP_TILE * SPLITS)  # of one split
    OVERRUN: tl.constexpr = STEPS * GROUP_TILE * SPLITS - QUARTER
    row = tl.program_id(1) * ROW_TILE + tl.arange(0, ROW_TILE)
    token = tl.program_id(0) * TOKEN_TILE + tl.arange(0, TOKEN_TILE)
    group = tl.arange(0, GROUP_TILE)
    pair = tl.arange(0, 2 * GROUP_TILE)
    # Rows and tokens past the end read the last one again: in bounds without a mask, and never stored.
    near_row = tl.minimum(row, OUTPUTS - 1).to(tl.int64)[:, None]
    near_token = tl.minimum(token, tokens - 1)[None, :]
    PITCH: tl.constexpr = 16 * GROUP_TILE * STEPS * SPLITS if PLANES else 16 * QUARTER
    words_at = values.to(tl.pointer_type(tl.int32), bitcast=True) + near_row * (4 * QUARTER) + group[None, :]
    codes_at = codes + near_row * QUARTER + group[None, :]
    inputs_at = inputs + near_token * PITCH + (pair if PLANES else pair // 2 * 4 + pair % 2)[:, None]
    sums = tl.full((ROW_TILE, TOKEN_TILE), 0.0, tl.float32)
    first = tl.program_id(2) * STEPS
    sums = _sum_steps(words_at, codes_at, inputs_at, sums, first, STEPS, OVERRUN, QUARTER, GROUP_TILE, PLANES, PORTABLE)
    if SPLITS == 1:
        _store(sums, out, bias, row, token, tokens, OUTPUTS)
    else:
        _join(sums, out, partials, arrivals, bias, row, token, tokens, OUTPUTS, SPLITS)


@triton.jit
def expand(
    values: tl.tensor,  # [OUTPUTS, 8 * QUARTER], two 16-bit values per group
    codes: tl.tensor,  # int16 [OUTPUTS, QUARTER]
    dense: tl.tensor,  # [OUTPUTS, COLUMNS]
    OUTPUTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    QUARTER: tl.constexpr,
    ROW_TILE: tl.constexpr,
    GROUP_TILE: tl.constexpr,
    PORTABLE: tl.constexpr,
) -> None:
    """Write the dense weight on the grid (row tiles, steps)."""
    row = (tl.program_id(0) * ROW_TILE + tl.arange(0, ROW_TILE)).to(tl.int64)[:, None]
    group = (tl.program_id(1) * GROUP_TILE + tl.arange(0, GROUP_TILE))[None, :]
    inside = (row < OUTPUTS) & (group < QUARTER)
    words_at = values.to(tl.pointer_type(tl.int32), bitcast=True) + row * (4 * QUARTER) + group
    halves = _load_halves(words_at, codes + row * QUARTER + group, inside, QUARTER, 4 * QUARTER, PORTABLE)
    pair_at = dense.to(tl.pointer_type(tl.int32), bitcast=True) + row * (COLUMNS // 2)
    for quarter in tl.static_range(4):
        column = quarter * QUARTER + group  # in groups
        kept = inside & (column < COLUMNS // 4)
        tl.store(pair_at + 2 * column, halves[quarter], mask=kept)
        tl.store(pair_at + 2 * column + 1, halves[4 + quarter], mask=kept)
