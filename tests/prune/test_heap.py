import resource
import sys

import pytest
import torch

from twofour.prune import heap

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


@pytest.mark.skipif(sys.platform != "linux", reason="the GNU allocator")
def test_tensors_have_the_memory_of_those_before_them_and_it_is_given_back() -> None:
    heap.give_back()  # what earlier tests have left would be taken first
    before = resident_bytes()
    with heap.reused():
        reused = fill_again_and_again()
        assert resident_bytes() - before >= LARGE // 2  # kept, though no tensor has it
    assert resident_bytes() - before < LARGE // 2
    assert reused < LARGE // resource.getpagesize() // 4
