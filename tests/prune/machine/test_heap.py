import resource
import subprocess
import sys

import pytest
import torch

from twofour.prune.machine import heap

LARGE = 64 << 20  # bytes


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def fill_again_and_again() -> int:
    """Return the page faults of large tensors that come and go, once the heap has found room for them."""
    for _ in range(24):
        torch.ones(LARGE, dtype=torch.uint8)
    before = faults()
    for _ in range(8):
        torch.ones(LARGE, dtype=torch.uint8)
    return faults() - before


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def figures() -> tuple[int, int, int]:
    """The bytes kept while memory is reused and after, and the faults that reuse leaves."""
    before = resident_bytes()
    with heap.reused():
        reused = fill_again_and_again()
        kept = resident_bytes() - before
    return kept, resident_bytes() - before, reused


@pytest.mark.skipif(sys.platform != "linux", reason="the GNU allocator")
def test_tensors_have_the_memory_of_those_before_them_and_it_is_given_back() -> None:
    # In a process of its own: what other tests have left free would be taken first.
    found = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=True, timeout=120)
    kept, left, reused = map(int, found.stdout.split())
    assert kept >= LARGE // 2  # though no tensor has it
    assert left < LARGE // 2
    assert reused < LARGE // resource.getpagesize() // 4


if __name__ == "__main__":
    print(*figures())
