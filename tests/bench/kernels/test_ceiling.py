"""What a machine can do at best: memory that is really read, cache sizes, and the arithmetic of the formats."""

from functools import reduce
from operator import xor
from pathlib import Path

import pytest
import torch

from twofour.bench.kernels import ceiling
from twofour.bench.kernels.ceiling import (
    BYTES_PER_WEIGHT,
    Ceiling,
    highest,
    last_level_cache_bytes,
    read_ceilings,
    size_bytes,
)
from twofour.bench.kernels.contenders import MOST_RING_BYTES, copies_of, random_integers, random_packed, ring_bytes
from twofour.serve.kernels.cpu import CpuWeight, extension

needs_kernels = pytest.mark.skipif(bool(extension.missing()), reason=f"no CPU kernel: {extension.missing()}")


@needs_kernels
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("nbytes", [0, 63, 64, 65, 320, 64 * 37 + 8])
def test_every_line_is_read_once(nbytes: int, threads: int) -> None:
    memory = torch.randint(256, (nbytes,), dtype=torch.uint8, generator=torch.Generator().manual_seed(nbytes))
    words = memory[: nbytes // 64 * 64].numpy().view("<u8").tolist()
    cpu = extension.loaded()
    assert cpu is not None
    for ahead in (0, 4096):
        assert cpu.read_memory(memory.data_ptr(), nbytes, ahead, threads) == reduce(xor, words, 0)


@needs_kernels
@pytest.mark.parametrize("setting", ["always [madvise] never", "always madvise [never]", None])
def test_the_ceiling_is_the_median_of_the_best_way_to_read(
    setting: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if setting:
        (tmp_path / "enabled").write_text(setting)
    monkeypatch.setattr(ceiling, "HUGE_PAGES", tmp_path / "enabled")
    monkeypatch.setattr(ceiling, "LEAST_BUFFER_BYTES", 1 << 20)
    took_s = {0: 4.0, 4096: 2.0, 8192: 3.0}
    now_s, read = 0.0, []

    class Memory:
        def read_memory(self, address: int, nbytes: int, ahead: int, threads: int) -> int:
            nonlocal now_s
            now_s += took_s[ahead]
            read.append((nbytes, threads))
            return 0

    monkeypatch.setattr(ceiling, "clock", lambda threads: lambda: now_s)
    monkeypatch.setattr("twofour.serve.kernels.cpu.weight.require", Memory)
    found = read_ceilings(3, cache_bytes=1 << 19)
    assert found[0] == Ceiling("read of ordinary pages", 1 << 21, (2.0,) * ceiling.PASSES)
    assert found[0].bytes_per_s == 2**20
    assert [each.method for each in found[1:]] == (["read of huge pages"] if setting and "[madvise]" in setting else [])
    assert set(read) == {(1 << 21, 3)}


def test_the_highest_of_several_is_what_the_machine_can_do() -> None:
    slow, fast = Ceiling("a", 100, (2.0,)), Ceiling("b", 50, (0.5,))
    assert highest([slow, fast]) == fast


def test_the_best_time_is_the_bytes_over_the_median_bandwidth() -> None:
    found = Ceiling("read", 100, (1.0, 4.0, 2.0))
    assert found.bytes_per_s == 50
    assert found.best_s(25) == 0.5


@needs_kernels
def test_formats_take_the_bytes_that_the_ceiling_assumes() -> None:
    rows, columns = 64, 512
    sparse = CpuWeight.from_packed(random_packed((rows, columns), 0)).nbytes
    integers = CpuWeight.from_packed(random_integers((rows, columns), 0)).nbytes
    assert sparse == BYTES_PER_WEIGHT["2:4 bf16"] * rows * columns
    assert integers == BYTES_PER_WEIGHT["2:4 int8"] * rows * columns + 4 * rows  # and a float32 scale for each row
    assert BYTES_PER_WEIGHT["dense bf16"] == torch.bfloat16.itemsize


def cache(folder: Path, level: str, kind: str, size: str) -> None:
    folder.mkdir()
    for name, text in (("level", level), ("type", kind), ("size", size)):
        (folder / name).write_text(f"{text}\n")


def test_the_last_level_cache_is_the_highest_that_holds_data(tmp_path: Path) -> None:
    cache(tmp_path / "index0", "1", "Data", "32K")
    cache(tmp_path / "index1", "4", "Instruction", "512M")
    cache(tmp_path / "index2", "3", "Unified", "32768K")
    cache(tmp_path / "index3", "2", "Unified", "64M")
    assert last_level_cache_bytes(tmp_path) == 32 << 20
    assert last_level_cache_bytes(tmp_path / "nowhere") is None


@pytest.mark.parametrize(("text", "nbytes"), [("512", 512), ("32K", 1 << 15), ("3M", 3 << 20), ("1G", 1 << 30)])
def test_sizes_as_sysfs_spells_them(text: str, nbytes: int) -> None:
    assert size_bytes(text) == nbytes


def test_copies_go_beyond_twice_the_cache_but_not_beyond_the_limit() -> None:
    for cache_bytes in (1000, 32 << 20):
        ring = ring_bytes(cache_bytes)
        for weight_bytes in (1, 999, 1000, 1 << 20, 1 << 30):
            copies = copies_of(weight_bytes, ring)
            assert copies * weight_bytes > 2 * cache_bytes >= (copies - 1) * weight_bytes
    assert ring_bytes(1 << 40) == ring_bytes(None) == MOST_RING_BYTES
