"""Captured decode steps against the same steps run as they are, for every shape that a server captures."""

from dataclasses import replace
from functools import partial
from typing import Any

from twofour.bench.gpu import models
from twofour.bench.gpu.day import Day
from twofour.bench.gpu.models import BLOCK, Arm
from twofour.bench.gpu.sheet import Sheet
from twofour.prune.errors import InputError
from twofour.serve.engine.runners import Chunk
from twofour.serve.engine.runners.graphs import Shape, shapes

ROWS = 32  # as many sequences as are served by default


def run(day: Day, sheet: Sheet) -> None:
    shape = replace(day.served, layers=day.compared_layers)
    rows, context = min(ROWS, max(day.batches)), max(day.contexts)
    wanted = partial(shapes, rows, context, BLOCK)
    for form in day.forms:
        arm = Arm(partial(models.ready, day, form, shape, rows, context, wanted))
        for each in wanted(rows * -(-(context + 1) // BLOCK)):
            sheet.cell({"form": form, "rows": each.rows, "blocks": each.blocks}, partial(_compared, arm, each))
        del arm
        models.free(day)


def _compared(arm: Arm, shape: Shape) -> dict[str, Any]:
    """How far the logits are apart, relative to their norm, and in how many rows the likeliest token is another."""
    eager, captured = arm.ready.runner, arm.ready.graphs()
    if shape.rows * shape.blocks > arm.ready.blocks:
        raise InputError(f"the cache holds {arm.ready.blocks} blocks")
    chunks = full(shape)
    expected = eager.forward(chunks).float()
    before = captured.replayed
    found = captured.forward(chunks).float()
    return {
        "deviation": float((found - expected).norm() / expected.norm()),
        "other_tokens": int((found.argmax(-1) != expected.argmax(-1)).sum()),
        "replayed": captured.replayed > before,
        "tolerance": eager.tolerance,
    }


def full(shape: Shape) -> list[Chunk]:
    """A sequence in every row, each in blocks of its own, to their last slot but a few."""
    held = shape.blocks
    return [
        Chunk([1 + row], held * BLOCK - 1 - row % BLOCK, range(row * held, (row + 1) * held), range(1))
        for row in range(shape.rows)
    ]
