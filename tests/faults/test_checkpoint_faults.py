"""Faults 20 and 22 to 24: checkpoints that cannot be written, are damaged, or hold what no weight is.

The numbers are those of the table of faults. Nothing here needs a running server: what the engine loads, it loads by
`assemble.start`, which must refuse with the file or the tensor named.
"""

import json
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from twofour.prune.errors import TwofourError
from twofour.prune.format import checkpoint
from twofour.prune.label.check import check
from twofour.prune.machine.provenance import peak_memory_bytes
from twofour.serve.engine.assembly import assemble
from twofour.serve.engine.types import EngineConfig

WEIGHTS = "model.twofour.safetensors"
NAME = "model.layers.0.self_attn.q_proj"

CONVERT = """
import resource, signal, sys, time
from pathlib import Path
from twofour.prune.label.convert import convert
from twofour.prune.errors import TwofourError
source, out, limit = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    for number in range(int(sys.argv[4])):
        convert(source, out / str(number), "dense")
except (TwofourError, OSError, Exception) as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def converting(source: Path, out: Path, limit: int = 0, times: int = 1) -> "subprocess.Popen[str]":
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-c", CONVERT, str(source), str(out), str(limit), str(times)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def digests(folder: Path) -> dict[str, str]:
    return checkpoint.digests(folder)


@pytest.mark.parametrize("limit", [1, 1000, 100_000])
def test_fault_20_no_space_for_a_checkpoint(tiny_pruned_folder: Path, tmp_path: Path, limit: int) -> None:
    """A limit on the size of files stands for a full disk at different places."""
    before = digests(tiny_pruned_folder)
    process = converting(tiny_pruned_folder, tmp_path / "out", limit)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    assert list((tmp_path / "out").iterdir()) == []
    assert digests(tiny_pruned_folder) == before
    again = converting(tiny_pruned_folder, tmp_path / "out")
    again.communicate(timeout=120)
    assert again.returncode == 0
    assert check(tmp_path / "out" / "0").ok


@pytest.mark.slow
def test_fault_20_killed_while_it_writes(tiny_pruned_folder: Path, tmp_path: Path) -> None:
    """Twenty times, at moments of the writer's own choosing: what has its final name is whole."""
    before, whole = digests(tiny_pruned_folder), 0
    for number in range(20):
        out = tmp_path / str(number)
        process = converting(tiny_pruned_folder, out, times=1000)
        assert process.stdout is not None
        process.stdout.readline()
        while not list(out.iterdir()) or len(list(out.glob("[0-9]*"))) < number % 3:
            time.sleep(0.001)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        for folder in out.iterdir():
            assert folder.name.endswith(".part") or check(folder).ok
            whole += not folder.name.endswith(".part")
        shutil.rmtree(out)
    assert whole >= 10
    assert digests(tiny_pruned_folder) == before


Damage = Callable[[Path], object]


def bytes_of(change: Callable[[bytearray], object]) -> Damage:
    def damage(folder: Path) -> None:
        data = bytearray((folder / WEIGHTS).read_bytes())
        change(data)
        (folder / WEIGHTS).write_bytes(data)

    return damage


def tensors_of(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    """Change stored tensors, with digests that fit: only the tensors themselves can tell."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        checkpoint.write_manifest(folder, json.loads((folder / "twofour.json").read_text()))

    return damage


def duplicate(data: bytearray) -> None:
    """Name the first tensor of the header twice."""
    (length,) = struct.unpack("<Q", data[:8])
    header = data[8 : 8 + length].decode()
    name, _, rest = header[header.index('"model') + 1 :].partition('"')
    entry = f'"{name}"{rest[: rest.index("}") + 1]}'
    data[:] = struct.pack("<Q", length + len(entry) + 1) + f"{{{entry},{header[1:]}".encode() + data[8 + length :]


def index(folder: Path, weight_map: dict[str, str]) -> None:
    (folder / "model.safetensors.index.twofour.json").write_text(json.dumps({"weight_map": weight_map}))


def swapped(folder: Path) -> None:
    """Two shards under each other's name."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]
    files = ["model.twofour-00001-of-00002.safetensors", "model.twofour-00002-of-00002.safetensors"]
    for half, file in zip(halves, reversed(files), strict=True):
        save_file({name: tensors[name] for name in half}, folder / file, metadata={"format": "pt"})
    index(folder, {name: file for half, file in zip(halves, files, strict=True) for name in half})


def missing_shard(folder: Path) -> None:
    """The first of two shards, which holds all but one tensor."""
    shutil.move(folder / WEIGHTS, folder / "model.twofour-00001-of-00002.safetensors")
    index(folder, {f"{NAME}.values": "model.twofour-00002-of-00002.safetensors"})


def escape(folder: Path) -> None:
    shutil.move(folder / WEIGHTS, folder.parent / WEIGHTS)
    index(folder, {f"{NAME}.values": f"../{WEIGHTS}"})


CORRUPT: dict[str, tuple[Damage, str]] = {
    "truncated": (bytes_of(lambda data: data.__delitem__(slice(-100, None))), WEIGHTS),
    "trailing bytes": (bytes_of(lambda data: data.extend(b"x" * 9)), WEIGHTS),
    "header flip": (bytes_of(lambda data: data.__setitem__(12, data[12] ^ 0x10)), WEIGHTS),
    "huge header": (bytes_of(lambda data: data.__setitem__(slice(0, 8), struct.pack("<Q", 1 << 62))), WEIGHTS),
    "empty": (bytes_of(lambda data: data.clear()), WEIGHTS),
    "payload bit flip": (bytes_of(lambda data: data.__setitem__(-1, data[-1] ^ 1)), f"{WEIGHTS} differs"),
    "duplicate tensor": (bytes_of(duplicate), WEIGHTS),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "no model.safetensors"),
    "missing shard": (missing_shard, "model.twofour-00002-of-00002.safetensors"),
    "index mismatch": (lambda folder: index(folder, {"zzz.weight": WEIGHTS}), "zzz.weight"),
    "swapped shards": (swapped, "model.twofour-0000"),
    "symlink escape": (escape, "outside the folder"),
    "missing tensor": (tensors_of(lambda t: t.pop(f"{NAME}.values")), f"{NAME}.values"),
    "wrong dtype": (
        tensors_of(lambda t: t.update({f"{NAME}.positions": t[f"{NAME}.positions"].to(torch.int32)})),
        NAME,
    ),
    "wrong shape": (tensors_of(lambda t: t.update({f"{NAME}.values": t[f"{NAME}.values"][:8].clone()})), NAME),
    "position out of range": (tensors_of(lambda t: t[f"{NAME}.positions"].__setitem__((3, 1), 0xFF)), NAME),
    "positions out of order": (tensors_of(lambda t: t[f"{NAME}.positions"].__setitem__((3, 1), 0x11)), NAME),
    "NaN in values": (tensors_of(lambda t: t[f"{NAME}.values"].__setitem__((3, 1), torch.nan)), NAME),
    "infinity in an embedding": (
        tensors_of(lambda t: t["model.embed_tokens.weight"].__setitem__((3, 1), torch.inf)),
        "model.embed_tokens.weight",
    ),
}


HEAD: dict[str, tuple[Damage, str]] = {
    "truncated": (bytes_of(lambda data: data.__delitem__(slice(-100, None))), WEIGHTS),
    "payload bit flip": (bytes_of(lambda data: data.__setitem__(-1, data[-1] ^ 1)), f"{WEIGHTS} differs"),
    "no scales": (tensors_of(lambda t: t.pop("lm_head.int8_scales")), "lm_head.int8_scales"),
    "no values": (tensors_of(lambda t: t.pop("lm_head.int8_values")), "lm_head.int8_values"),
    "wrong dtype": (
        tensors_of(lambda t: t.update({"lm_head.int8_values": t["lm_head.int8_values"].to(torch.int32)})),
        "lm_head.int8_values is I32",
    ),
    "wrong shape": (
        tensors_of(lambda t: t.update({"lm_head.int8_values": t["lm_head.int8_values"][:8].clone()})),
        "lm_head.int8_values",
    ),
    "NaN in scales": (tensors_of(lambda t: t["lm_head.int8_scales"].__setitem__((3, 1), torch.nan)), "lm_head"),
    "value out of range": (tensors_of(lambda t: t["lm_head.int8_values"].__setitem__((3, 1), -128)), "lm_head"),
    "stored twice": (tensors_of(lambda t: t.update({"lm_head.weight": torch.ones(320, 72)})), "lm_head.weight"),
}


@pytest.mark.parametrize("name", HEAD)
def test_faults_22_to_24_a_damaged_head(tiny_head_folder: Path, name: str) -> None:
    damage, named = HEAD[name]
    damage(tiny_head_folder)
    with pytest.raises(TwofourError) as refused:
        assemble.start(EngineConfig(str(tiny_head_folder), device="cpu"))
    assert named in str(refused.value)


def test_fault_22_with_a_head_in_int8_it_loads(tiny_head_folder: Path) -> None:
    _, info = assemble.start(EngineConfig(str(tiny_head_folder), device="cpu"))
    assert info.sparse and "lm_head is int8 in the checkpoint" in info.notes


@pytest.mark.parametrize("name", CORRUPT)
def test_faults_22_to_24_a_damaged_checkpoint(tiny_pruned_folder: Path, name: str) -> None:
    damage, named = CORRUPT[name]
    damage(tiny_pruned_folder)
    before = peak_memory_bytes()  # other tests of this process may have had more
    with pytest.raises(TwofourError) as refused:
        assemble.start(EngineConfig(str(tiny_pruned_folder), device="cpu"))
    assert named in str(refused.value)
    assert peak_memory_bytes() - before < 1 << 30


def test_fault_22_intact_it_loads(tiny_pruned_folder: Path) -> None:
    _, info = assemble.start(EngineConfig(str(tiny_pruned_folder), device="cpu"))
    assert info.sparse
