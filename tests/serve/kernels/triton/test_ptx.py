"""The PTX of the expansion, run by a small emulator over every quadruple of codes: no Triton, no GPU."""

import itertools
import random
import re

from twofour.serve.kernels.triton.ptx import EXPAND

PAIRS = {1: (1, 2), 2: (1, 3), 3: (2, 3), 4: (0, 1), 5: (0, 2), 6: (0, 3)}  # by code
INSTRUCTION = re.compile(r"(prmt\.b32|shr\.u32) (\S+), ([^;]+);")


def prmt(low: int, high: int, selector: int) -> int:
    """Byte permute as the PTX manual defines it: bit 3 of a selector nibble copies the sign of the byte."""
    table = (low | high << 32).to_bytes(8, "little")
    picked = []
    for nibble in (selector >> 4 * i & 15 for i in range(4)):
        byte = table[nibble & 7]
        picked.append((255 if byte & 128 else 0) if nibble & 8 else byte)
    return int.from_bytes(bytes(picked), "little")


def run(ptx: str, words: list[int], codes: int) -> list[int]:
    """Execute the instructions in order and return $0..$7."""
    registers = {f"${8 + i}": word for i, word in enumerate(words)} | {"$12": codes}
    for opcode, target, operands in INSTRUCTION.findall(ptx):
        values = [registers[o] if o in registers else int(o, 0) for o in operands.split(", ")]
        registers[target] = prmt(*values) if opcode == "prmt.b32" else values[0] >> values[1]
    return [registers[f"${i}"] for i in range(8)]


def expected(word: int, code: int) -> tuple[int, int]:
    dense = [0, 0, 0, 0]
    for slot, position in enumerate(PAIRS.get(code, ())):
        dense[position] = word >> 16 * slot & 0xFFFF
    return dense[0] | dense[1] << 16, dense[2] | dense[3] << 16


def test_the_emulator_executes_every_instruction_of_the_text() -> None:
    statements = [line for line in EXPAND.splitlines() if line.endswith(";") and not line.startswith(".reg")]
    assert len(INSTRUCTION.findall(EXPAND)) == len(statements) == 20


def test_every_quadruple_of_codes_expands_to_the_dense_groups() -> None:
    words = [0xFFFF8001, 0x7FFF1234, 0x80FF7F80, 0xABCDEF01]
    source = random.Random(0)
    for codes in itertools.product(range(8), repeat=4):
        source.shuffle(words)
        packed = sum(code << 4 * i for i, code in enumerate(codes))
        low_and_high = run(EXPAND, words, packed)
        wanted = [expected(word, code) for word, code in zip(words, codes, strict=True)]
        assert low_and_high == [low for low, _ in wanted] + [high for _, high in wanted]


def test_bits_above_the_codes_change_nothing() -> None:
    """The kernel sign-extends 16 bits of codes to 32."""
    words = [0x00010002, 0x00030004, 0x00050006, 0x00070008]
    assert run(EXPAND, words, 0xFFFF6410) == run(EXPAND, words, 0x6410)
