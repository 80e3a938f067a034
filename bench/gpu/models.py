"""Models of a known shape with random weights, made where they are needed, and ready to compute steps."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from twofour.bench.gpu.day import Day
from twofour.bench.kernels.contenders import random_packed
from twofour.bench.kernels.grid import Matrix
from twofour.bench.targets import random_model
from twofour.bench.targets.shapes import DecoderShape
from twofour.prune.errors import InputError
from twofour.prune.format.packed import Packed
from twofour.serve.engine.runners import cuda_graphs, graphs
from twofour.serve.engine.runners.generic import GenericRunner, attention_layers
from twofour.serve.engine.runners.graphs import Captured, DecodeGraphs, Shape
from twofour.serve.model.linear import SparseLinear

BLOCK = 16  # tokens of the cache
CACHE_SHARE = 0.6  # of the memory that is free
MOST_BLOCKS = 1 << 15

Shapes = Callable[[int], list[Shape]]  # from the number of blocks that the cache has


@dataclass
class Ready:
    """A model that computes steps. Its cache holds random keys and values."""

    runner: GenericRunner
    captured: Captured
    blocks: int

    def graphs(self) -> DecodeGraphs:
        if self.captured.graphs is None:
            raise InputError(self.captured.note or "no step was captured")
        return self.captured.graphs


class Arm:
    """One form of a model, made when the first cell wants it. Where that fails, it fails for all cells at once."""

    def __init__(self, make: Callable[[], Ready]) -> None:
        self._make = make
        self._made: Ready | None = None
        self._failed: Exception | None = None

    @property
    def ready(self) -> Ready:
        if self._failed:
            raise self._failed
        if self._made is None:
            try:
                self._made = self._make()
            except Exception as error:
                self._failed = error
                raise
        return self._made


def ready(day: Day, form: str, shape: DecoderShape, rows: int, context: int, shapes: Shapes) -> Ready:
    """Make a model with a cache for so many sequences, and capture the decode steps that `shapes` wants of it."""
    made, blocks = _runner(day, _model(day, form, shape), rows * -(-(context + 1) // BLOCK))
    wanted = shapes(blocks)
    if day.on_gpu:
        return Ready(made, cuda_graphs.capture_on_cuda(made.model, made, wanted), blocks)
    return Ready(made, graphs.try_capture(made, wanted, lambda launch: launch, lambda: 0), blocks)


def _runner(day: Day, made: Any, blocks: int) -> tuple[GenericRunner, int]:
    """Give a model a cache of up to so many blocks, as memory allows."""
    layers = attention_layers(made)
    block_bytes = BLOCK * made.dtype.itemsize * sum(layer.numbers_per_token for layer in layers.values())
    count = min(blocks, MOST_BLOCKS)
    if day.on_gpu:
        count = min(count, int(CACHE_SHARE * torch.cuda.mem_get_info()[0] // block_bytes))
    found = GenericRunner(made, layers, count, BLOCK)
    for layer in found.layers.values():
        layer.keys.normal_()
        layer.values.normal_()
    return found, count


def _model(day: Day, form: str, shape: DecoderShape) -> Any:
    """A decoder on the device, its linears 2:4 unless it is dense."""
    from transformers import AutoModelForCausalLM

    config = random_model.config(shape)
    config.max_position_embeddings = max(config.max_position_embeddings, *day.contexts, *day.prompts) + 1
    with torch.device(day.device):
        made = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval().requires_grad_(False)
    if day.forms[form]:
        _make_sparse(day, made, day.forms[form])
    return made


def _make_sparse(day: Day, made: Any, kernels: str) -> None:
    """One random weight for each shape, each linear with a copy of its own."""
    drawn: dict[Matrix, Packed] = {}
    for name, linear in list(made.named_modules()):
        if isinstance(linear, nn.Linear) and linear is not made.get_output_embeddings():
            matrix = (linear.out_features, linear.in_features)
            if matrix not in drawn:
                drawn[matrix] = random_packed(matrix, 0, day.device)
            packed = Packed(drawn[matrix].values * random_model.DEVIATION, drawn[matrix].positions.clone())
            made.set_submodule(name, SparseLinear(packed, kernels=kernels))


def free(day: Day) -> None:
    """Give back what the last model took."""
    gc.collect()
    if day.on_gpu:
        torch.cuda.empty_cache()
