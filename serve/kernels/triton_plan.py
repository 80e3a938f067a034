"""How the Triton kernel cuts a product into programs: tiles by the number of tokens, splits by the weight alone.

A result must not depend on what else is in the batch, so whatever orders a sum (the groups of one step, the
splits of a row) follows from the weight and the device; only the rows and tokens of a tile follow the call.
None of these choices was tuned on a GPU.
"""

from dataclasses import dataclass

MAX_TOKENS = 128  # in one call of the kernel, whatever crossover is asked for
GROUP_TILE = 32  # groups of each quarter of a row in one step: 512 bytes of values per row
MIN_ROW_TILE = 64  # 16 rows for each of the 4 warps that a tensor-core product needs
_MAX_TOKEN_TILES = MAX_TOKENS // 32
_PROGRAMS_PER_PROCESSOR = 2
_STEPS_TO_START = 2  # what filling the pipeline costs a program, in steps; adding splits up costs half of it


@dataclass(frozen=True)
class Tile:
    """What one program computes, and with what."""

    rows: int
    tokens: int
    warps: int
    stages: int = 2


def tile(tokens: int, capability: tuple[int, int]) -> Tile:
    """Choose a tile. At least 16 tokens: fewer would take another instruction, with another order of its sums."""
    if tokens <= 16:
        return Tile(MIN_ROW_TILE, 16, 4)
    if tokens <= 32 or capability[0] != 9:  # 64 tokens need 205 kB of shared memory
        return Tile(MIN_ROW_TILE, 32, 4)
    return Tile(128, 64, 8)


def grid(rows: int, tokens: int, splits: int, shape: Tile) -> tuple[int, int, int]:
    """Count token tiles, row tiles and splits; the token tiles of one row tile run side by side and share it."""
    return -(-tokens // shape.tokens), -(-rows // shape.rows), splits


def splits(rows: int, quarter: int, processors: int) -> int:
    """Split rows of 4 * `quarter` groups so that the programs fill the processors in the fewest steps."""
    row_tiles, steps = -(-rows // MIN_ROW_TILE), -(-quarter // GROUP_TILE)

    def cost(count: int) -> float:
        waves = -(-row_tiles * count // (_PROGRAMS_PER_PROCESSOR * processors))
        joining = _STEPS_TO_START / 2 if count > 1 else 0
        return waves * (-(-steps // count) + _STEPS_TO_START) + joining

    return min((count for count in (1, 2, 4, 8) if count <= steps), key=cost)


def counters(rows: int) -> int:
    """Count the tiles that a call can have at most, each with a counter of its splits."""
    return -(-rows // MIN_ROW_TILE) * _MAX_TOKEN_TILES
