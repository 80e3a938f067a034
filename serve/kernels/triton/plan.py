"""How the Triton kernel cuts a product into programs: tiles by device and tokens, splits by device and weight.

A result must not depend on what else is in the batch, so whatever orders a sum (the groups of one step, the
splits of a row) follows from the weight and the device; only the rows and tokens of a tile follow the call.
None of these choices was tuned on a GPU. What chose them is the machine code (tests: kernels/triton/test_machine_code):

    sm_90    64 rows, the least for a group of 4 warps whose weights go from registers into tensor cores (HGMMA)
    others   128 rows: each of 4 warps multiplies 32 rows by the inputs that it fetches from shared memory, which
             costs as much as the expansion. Steps of half the groups keep the registers within bounds: 3.4
             instructions per weight and 32 tokens under Triton 3.6, where 64 rows take 3.8
"""

from dataclasses import dataclass

MAX_TOKENS = 128  # in one call of the kernel, whatever crossover is asked for
MIN_ROW_TILE = 64
_MAX_TOKEN_TILES = MAX_TOKENS // 32
_PROGRAMS_PER_PROCESSOR = 2
_STEPS_TO_START = 2  # what filling the pipeline costs a program, in steps; adding splits up costs half of it

Capability = tuple[int, int]


@dataclass(frozen=True)
class Tile:
    """What one program computes, and with what."""

    rows: int
    tokens: int
    groups: int  # of each quarter of a row in one step: 16 bytes of values per row and group
    warps: int
    stages: int = 2


def tile(tokens: int, capability: Capability) -> Tile:
    """Choose a tile. At least 16 tokens: fewer would take another instruction, with another order of its sums."""
    wide = 16 if tokens <= 16 else 32
    if capability[0] != 9:
        return Tile(rows=128, tokens=wide, groups=16, warps=4)
    if tokens <= 32:
        return Tile(rows=64, tokens=wide, groups=32, warps=4)
    return Tile(rows=128, tokens=64, groups=32, warps=8)  # 205 kB of shared memory


def grid(rows: int, tokens: int, splits: int, shape: Tile) -> tuple[int, int, int]:
    """Count token tiles, row tiles and splits; the token tiles of one row tile run side by side and share it."""
    return -(-tokens // shape.tokens), -(-rows // shape.rows), splits


def splits(rows: int, quarter: int, processors: int, capability: Capability) -> int:
    """Split rows of 4 * `quarter` groups so that one token's programs fill the processors in the fewest steps."""
    one = tile(1, capability)
    row_tiles, steps = -(-rows // one.rows), -(-quarter // one.groups)

    def cost(count: int) -> float:
        waves = -(-row_tiles * count // (_PROGRAMS_PER_PROCESSOR * processors))
        joining = _STEPS_TO_START / 2 if count > 1 else 0
        return waves * (steps_of_a_split(quarter, one.groups, count) + _STEPS_TO_START) + joining

    return min((count for count in (1, 2, 4, 8) if count <= steps), key=cost)


def steps_of_a_split(quarter: int, groups: int, splits: int) -> int:
    """Count the steps of every split; the last ones may reach past the end of the quarter."""
    return -(-quarter // (groups * splits))


def counters(rows: int) -> int:
    """Count the tiles that a call can have at most, each with a counter of its splits."""
    return -(-rows // MIN_ROW_TILE) * _MAX_TOKEN_TILES
