import pytest
import torch

from twofour.prune.machine import available
from twofour.serve.engine.assembly.memory import GPU_OWN, cpu_bytes, memory_of

MIB = 1 << 20


def test_a_cpu_has_all_but_the_weights_whatever_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 50 * MIB < available.free_bytes() <= cpu_bytes()
    for free in (1, 1 << 50):
        monkeypatch.setattr(available, "free_bytes", lambda free=free: free)
        memory = memory_of(torch.device("cpu"), 7 * MIB)
        assert (memory.beside_weights, memory.free) == (cpu_bytes() - 7 * MIB, free)


def test_memory_that_loading_no_longer_needs_is_given_back_before_a_gpu_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = [1000]
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: free.append(5000 * MIB))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[-1], 9000 * MIB))
    memory = memory_of(torch.device("cuda:1"), 1000 * MIB)
    assert (memory.beside_weights, memory.free) == (9000 * MIB - GPU_OWN - 1000 * MIB, 5000 * MIB)
