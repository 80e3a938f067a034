from pathlib import Path

import pytest
import torch

from twofour.serve.engine.memory import GPU_OWN, cpu_bytes, free_cpu_bytes, group_bytes, memory_of

MIB = 1 << 20
STAT = "anon 5\ninactive_file 30\nactive_file 200\nslab_reclaimable 1000\nslab_unreclaimable 9"
STAT_1 = "cache 7\ninactive_file 1\nactive_file 1\ntotal_inactive_file 30\ntotal_active_file 200"


@pytest.mark.parametrize(
    ("groups", "files", "free"),
    [
        ("0::/a/b", {"a/b/memory.max": "4096", "a/b/memory.current": "3000", "a/b/memory.stat": STAT}, [2326]),
        ("0::/a/b", {"a/memory.max": "4096", "a/memory.current": "3000", "a/memory.stat": STAT}, [2326]),
        ("0::/a", {"a/memory.max": "max", "a/memory.current": "3000", "a/memory.stat": STAT}, []),
        ("0::/a/b", {"memory.max": "4096", "memory.current": "4000", "memory.stat": STAT}, [1326]),  # of a container
        (
            "3:cpu,memory:/a\n0::/",
            {
                "memory/a/memory.limit_in_bytes": "4096",
                "memory/a/memory.usage_in_bytes": "4000",
                "memory/a/memory.stat": STAT_1,
            },
            [326],
        ),
        ("3:cpu:/a", {"memory/a/memory.limit_in_bytes": "4096", "memory/a/memory.usage_in_bytes": "9"}, []),
        ("0::/", {}, []),
    ],
)
def test_what_a_control_group_keeps_of_files_is_free(
    groups: str, files: dict[str, str], free: list[int], tmp_path: Path
) -> None:
    (tmp_path / "cgroup").write_text(groups)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert list(group_bytes(tmp_path / "cgroup", tmp_path)) == [(4096, left) for left in free]
    assert list(group_bytes(tmp_path / "none", tmp_path)) == []


def test_a_cpu_has_all_but_the_weights_whatever_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 50 * MIB < free_cpu_bytes() <= cpu_bytes()
    for free in (1, 1 << 50):
        monkeypatch.setattr("twofour.serve.engine.memory.free_cpu_bytes", lambda free=free: free)
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
