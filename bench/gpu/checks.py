"""What else only a GPU shows: that the kernels stay within their memory, and a block of a large model pruned."""

import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from twofour.bench.gpu.day import Day
from twofour.bench.gpu.sheet import Sheet
from twofour.bench.kernels import contenders
from twofour.bench.load.workload import WORDS
from twofour.bench.targets import random_model
from twofour.prune.errors import InputError

SANITIZER, FOUND_SOMETHING = "compute-sanitizer", 9
SPLIT = (128, 1024)  # a weight whose sums are split
TOKENS = (1, 17, 64)
VOCABULARY = 4096
LAST_LINES = 12


def run(day: Day, sheet: Sheet) -> None:
    sheet.cell({"what": SANITIZER}, partial(_sanitized, sheet.until))
    sheet.cell({"what": "a pruned block"}, partial(_pruned, day))


def _sanitized(until: float) -> dict[str, Any]:
    if shutil.which(SANITIZER) is None:
        raise InputError(f"{SANITIZER} is not installed")
    command = [SANITIZER, "--error-exitcode", str(FOUND_SOMETHING), sys.executable, "-m", __name__]
    limit_s = max(1.0, until - time.monotonic())
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s)
    return {"status": done.returncode, "lines": (done.stdout + done.stderr).splitlines()[-LAST_LINES:]}


def multiply(device: str) -> None:
    """Small products by the Triton kernels, each compared with float64. Raises TwofourError for a wrong one."""
    from twofour.serve.kernels.triton.kernel import TritonKernel

    packed = contenders.random_packed(SPLIT, 0, device)
    form = contenders.by_kernel("triton", TritonKernel.from_packed(packed, TOKENS[1]), packed.unpack())
    made = contenders.with_copies([form], 1)
    for tokens in TOKENS:
        contenders.require_right(made, contenders.activations(tokens, SPLIT[1], 0, device))


def _pruned(day: Day) -> dict[str, Any]:
    """SparseGPT on one block of the served shape: minutes of a whole model are these times its blocks."""
    from twofour.prune import PruneConfig, prune

    samples, length = (32, 512) if day.on_gpu else (2, 16)
    with tempfile.TemporaryDirectory() as folder:
        dense, text = Path(folder, "dense"), Path(folder, "text")
        random_model.make(replace(day.served, layers=1, vocab=VOCABULARY), dense)
        text.write_text(" ".join(WORDS * (1 + samples * length // len(WORDS))))
        config = PruneConfig(preset="fast", calibration=str(text), samples=samples, length=length, device=day.device)
        if day.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        report = prune(dense, Path(folder, "out"), config)
        took = time.perf_counter() - began
    losses = [linear["loss"] for linear in report.manifest["linears"].values()]
    peak = torch.cuda.max_memory_allocated() if day.on_gpu else None
    return {"seconds": took, "tokens": samples * length, "largest_loss": max(losses), "peak_device_bytes": peak}


if __name__ == "__main__":
    multiply("cuda")
