"""Which runner a model gets: the fused one where it fits, else the generic one, and why.

A race of separate products says nothing about a step in which they are fused. So where the fused runner fits, every
linear takes the form in which it reads the fewest bytes, and nothing is raced.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from twofour.prune.errors import ModelError
from twofour.serve.engine.runners import ModelRunner, compiled
from twofour.serve.engine.runners.attention import LayerShape
from twofour.serve.engine.runners.fused import FusedRunner, misfit
from twofour.serve.engine.runners.generic import GenericRunner, attention_layers
from twofour.serve.model.loading import give_kernels

FUSED_KERNELS = ("auto", "cpu")  # other names pin kernels that are not in a fused step

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """Runners of a model, the best first, which are built once it is known how large their cache is."""

    bytes_per_token: int
    builds: tuple[Callable[[int, int, int], ModelRunner], ...]  # from blocks, their size, and the longest context
    why: str  # the first of them is what it is

    def build(self, blocks: int, block_size: int, context: int) -> tuple[ModelRunner, str]:
        """The first runner that gives the model's own logits, and why it is that one. Raises ModelError for none."""
        why = self.why
        for build in self.builds[:-1]:
            runner = build(blocks, block_size, context)
            try:
                runner.verify()
                return runner, why
            except ModelError as error:
                log.warning("the %s runner is not used: %s", runner.name, error)
                why = f"not {runner.name}: {error}"
            del runner  # and its cache
        runner = self.builds[-1](blocks, block_size, context)
        runner.verify()
        return runner, why


def has_tiles() -> bool:
    """Whether torch multiplies bfloat16 matrices in AMX tiles here: no vector unit keeps up with many tokens."""
    return bool(torch.cpu._is_amx_tile_supported())


def kernels_for(model: Any, kernels: str, block_size: int) -> str:
    """By what the linears of a loaded model shall multiply, if `kernels` were asked for."""
    return kernels if _refusal(model, kernels, block_size) else "cpu"


def choose(model: Any, kernels: str, block_size: int) -> Plan:
    """Plan for a model whose linears have their kernels. Raises ModelError for one that no runner takes."""
    shapes = attention_layers(model)
    bytes_per_token = sum(shape.numbers_per_token for shape in shapes.values()) * model.dtype.itemsize

    def plain(blocks: int, size: int, context: int) -> ModelRunner:
        return generic(model, shapes, blocks, size)

    def fused(blocks: int, size: int, context: int) -> ModelRunner:
        return FusedRunner(model, shapes, blocks, size, context)

    def unfused(blocks: int, size: int, context: int) -> ModelRunner:
        give_kernels(model, kernels)
        return generic(model, shapes, blocks, size)

    if why := _refusal(model, kernels, block_size):
        return Plan(bytes_per_token, (plain,), f"not fused: {why}")
    return Plan(bytes_per_token, (fused, unfused), f"{type(model).__name__} in bfloat16 on the CPU")


def generic(model: Any, shapes: dict[int, LayerShape], blocks: int, block_size: int) -> GenericRunner:
    """The generic runner as it is served: with compiled attention where that fits, and torch has no tiles."""
    return GenericRunner(
        model, shapes, blocks, block_size, not has_tiles() and compiled.fits(model, shapes, block_size)
    )


def _refusal(model: Any, kernels: str, block_size: int) -> str | None:
    if kernels not in FUSED_KERNELS:
        return f"the kernel {kernels} was asked for"
    if kernels == "auto" and has_tiles():
        return "with AMX torch reads long prompts faster; ask for it by --kernels cpu"
    return misfit(model, block_size)
