"""Whole steps of the engine, dense and 2:4: decoding by batch and context, sampling, reading prompts.

On a GPU `host_s` is what it takes to launch a step and `device_s` what the device works on it: where the first is
larger, the device waits. Captured steps are replayed graphs; eager ones are launched kernel by kernel.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from twofour.bench.gpu import models
from twofour.bench.gpu.day import Day
from twofour.bench.gpu.laps import laps
from twofour.bench.gpu.models import BLOCK, Arm, Ready
from twofour.bench.gpu.sheet import Key, Sheet
from twofour.prune.errors import InputError
from twofour.serve.engine.runners import Chunk, Runner
from twofour.serve.engine.runners.graphs import Shape
from twofour.serve.engine.sampler import sample
from twofour.serve.engine.sequence import Sequence
from twofour.serve.engine.types import Prompt, Sampling

SAMPLINGS = {"greedy": Sampling(8, temperature=0.0), "top_p": Sampling(8, temperature=1.0, top_p=0.9)}
PROFILED_ROWS = 20


def run(day: Day, sheet: Sheet) -> None:
    for form in day.forms:
        arm = Arm(partial(_ready, day, form))
        _decoding(day, sheet, form, arm)
        _prompts(day, sheet, form, arm)
        for what in ("captured decode", "eager decode", "prompt"):
            sheet.cell({"what": "profile", "form": form, "of": what}, partial(_profile, day, arm, what))
        del arm
        models.free(day)
    for name in SAMPLINGS:
        for batch in day.batches:
            sheet.cell({"what": "sampling", "by": name, "batch": batch}, partial(_sampling, day, name, batch))


def _ready(day: Day, form: str) -> Ready:
    """All batches and contexts of the day are captured, as far as the cache holds them."""

    def wanted(blocks: int) -> list[Shape]:
        lengths = [context // BLOCK + 1 for context in reversed(day.contexts)]
        every = [Shape(batch, length) for batch in reversed(day.batches) for length in lengths]
        return [shape for shape in every if shape.rows * shape.blocks <= blocks]

    return models.ready(day, form, day.served, max(day.batches), max(day.contexts), wanted)


def _decoding(day: Day, sheet: Sheet, form: str, arm: Arm) -> None:
    for batch in day.batches:
        for context in day.contexts:
            for way, cudnn in (("captured", True), ("eager", True), ("eager", False)):
                key: Key = {
                    **{"what": "decode", "form": form, "way": way},
                    **{"cudnn": cudnn, "batch": batch, "context": context},
                }
                sheet.cell(key, partial(_decode, day, arm, way, cudnn, batch, context))


def _prompts(day: Day, sheet: Sheet, form: str, arm: Arm) -> None:
    for prompt in day.prompts:
        for budget in day.budgets:
            for cudnn in (True, False):
                key: Key = {"what": "prompt", "form": form, "cudnn": cudnn, "tokens": prompt, "budget": budget}
                sheet.cell(key, partial(_prompt, day, arm, cudnn, prompt, budget))


def _decode(day: Day, arm: Arm, way: str, cudnn: bool, batch: int, context: int) -> dict[str, Any]:
    step = decode_step(arm.ready, way, batch, context)
    with cudnn_attention(cudnn):
        return _figures(day, step, day.steps)


def decode_step(ready: Ready, way: str, batch: int, context: int) -> Callable[[], object]:
    """One step of so many sequences, each with `context` tokens and blocks of its own."""
    held = context // BLOCK + 1
    if batch * held > ready.blocks:
        raise InputError(f"the cache holds {ready.blocks * BLOCK} tokens; {batch} x {context} do not fit")
    chunks = [Chunk([1 + row], context, range(row * held, (row + 1) * held), range(1)) for row in range(batch)]
    if way == "eager":
        return partial(ready.runner.forward, chunks)
    graphs = ready.graphs()

    def replayed() -> None:
        before = graphs.replayed
        graphs.forward(chunks)
        if graphs.replayed == before:
            raise InputError(f"no step of {batch} sequences with {context} tokens each was captured")

    return replayed


def _prompt(day: Day, arm: Arm, cudnn: bool, prompt: int, budget: int) -> dict[str, Any]:
    step = prompt_step(arm.ready.runner, prompt, budget)
    with cudnn_attention(cudnn):
        return _figures(day, step, max(2, day.steps // 4))


def prompt_step(runner: Runner, prompt: int, budget: int) -> Callable[[], object]:
    """Read a prompt in chunks of `budget` tokens, for the logits of its last token."""
    tokens = [1 + i % 300 for i in range(prompt)]
    blocks = range(-(-prompt // BLOCK))

    def read() -> None:
        for start in range(0, prompt, budget):
            chunk = tokens[start : start + budget]
            last = start + budget >= prompt
            runner.forward([Chunk(chunk, start, blocks, range(len(chunk) - last, len(chunk)), len(chunk))])

    return read


def _sampling(day: Day, name: str, batch: int) -> dict[str, Any]:
    logits = torch.randn(batch, day.served.vocab, device=day.device).to(torch.bfloat16)
    sequences = [Sequence(Prompt(str(row), (1, 2), SAMPLINGS[name]), row, 0.0) for row in range(batch)]
    return _figures(day, lambda: sample(logits, sequences, frozenset({0})), day.steps)


def _profile(day: Day, arm: Arm, what: str) -> dict[str, Any]:
    """What the step spends its time in, as torch's profiler prints it."""
    batch, context = day.batches[0], day.contexts[1]
    if what == "prompt":
        step = prompt_step(arm.ready.runner, day.prompts[0], day.budgets[0])
    else:
        step = decode_step(arm.ready, what.split()[0], batch, context)
    step()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if day.on_gpu else [])]
    with profile(activities=activities) as found:
        step()
    by = "self_device_time_total" if day.on_gpu else "self_cpu_time_total"
    return {"lines": found.key_averages().table(sort_by=by, row_limit=PROFILED_ROWS).splitlines()}


def _figures(day: Day, step: Callable[[], object], times: int) -> dict[str, Any]:
    found = laps(step, times, day.on_gpu)
    device = [lap.device_s for lap in found]
    return {
        "device_s": median(device),
        "host_s": median(lap.host_s for lap in found),
        "least_s": min(device),
        "most_s": max(device),
    }


@contextmanager
def cudnn_attention(allowed: bool) -> Iterator[None]:
    """Whether scaled_dot_product_attention may be cuDNN's."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(allowed)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
