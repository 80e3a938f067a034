"""What the machine code of Hopper's tensor cores must keep to, read from a disassembly.

HGMMA runs on behind the program. Its weights come from four registers, which nothing may write before a
WARPGROUP.DEPBAR has waited for the group of products that it belongs to (`gsb0` closes a group).
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]+)\*/\s+(?:@!?U?P[0-9T]+\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?);")
_LABEL = re.compile(r"^(\.L_x_\d+):")
_NO_RESULT = ("ST", "RED", "LDGSTS", "ISETP", "FSETP", "R2UR", "BAR", "BRA", "WARP", "DEPBAR", "LDGDEPBAR")


class Instruction(NamedTuple):
    address: str
    name: str
    operands: str

    @property
    def results(self) -> set[int]:
        """The registers that it writes, sums of HGMMA aside."""
        first = re.match(r"R(\d+)\b", self.operands)
        if not first or self.name.startswith((*_NO_RESULT, "HGMMA")):
            return set()
        wide = {"128": 4, "64": 2, "WIDE": 2} | ({"4": 4, "2": 2} if self.name.startswith("LDSM") else {})
        count = max(wide.get(part, 1) for part in self.name.split("."))
        return set(range(int(first[1]), int(first[1]) + count))

    @property
    def weights(self) -> set[int]:
        """The registers that an HGMMA reads its weights from."""
        first = int(re.findall(r"\bR(\d+)", self.operands)[1])
        return set(range(first, first + 4))


def overwritten(assembly: str) -> list[str]:
    """The writes into registers that a product may still read, with two passes through the longest loop."""
    groups: list[set[int]] = []
    found, group = [], set[int]()
    for each in _passes(assembly):
        if each.name.startswith("HGMMA"):
            group |= each.weights
            if "gsb0" in each.operands:
                groups, group = [*groups, group], set()
        elif each.name.startswith("WARPGROUP.DEPBAR"):
            running = int(each.operands.rpartition("0x")[2], 16)
            groups = groups[len(groups) - running :] if running else []
        elif any(each.results & read for read in (*groups, group)):
            found.append(f"{each.address}: {each.name} {each.operands}")
    return found


def _passes(assembly: str) -> Iterator[Instruction]:
    labels: dict[str, int] = {}
    code: list[Instruction] = []
    start, end = 0, 0
    for line in assembly.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(code)
        elif parts := _INSTRUCTION.match(line):
            code.append(Instruction(*parts.groups()))
            goal = re.search(r"\.L_x_\d+", parts[3]) if parts[2].startswith("BRA") else None
            first = labels.get(goal[0], len(code)) if goal else len(code)
            start, end = max((start, end), (first, len(code)), key=lambda loop: loop[1] - loop[0])
    yield from (*code[:end], *code[start:])
