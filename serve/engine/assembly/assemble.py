"""Puts the engine together, from the name of a model to a loop that is warm."""

import logging
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from twofour.prune.errors import InputError
from twofour.prune.format.folder import resolve
from twofour.prune.machine.provenance import peak_memory_bytes
from twofour.serve.engine.assembly import order, threads
from twofour.serve.engine.assembly.capacity import CPU_SHARE, GPU_SHARE, Capacity, context_limit, decide
from twofour.serve.engine.assembly.intact import require_intact
from twofour.serve.engine.assembly.memory import memory_of
from twofour.serve.engine.assembly.warm import warm_up
from twofour.serve.engine.blocks import Blocks
from twofour.serve.engine.grammar import any_object, grammars
from twofour.serve.engine.loop import Loop
from twofour.serve.engine.runners import ModelRunner, choice, cuda_graphs
from twofour.serve.engine.runners.fused import FusedRunner
from twofour.serve.engine.runners.generic import GenericRunner
from twofour.serve.engine.runners.graphs import Captured, shapes
from twofour.serve.engine.scheduler import Scheduler
from twofour.serve.engine.types import EngineConfig, EngineInfo
from twofour.serve.model.loading import load_model, weight_report

log = logging.getLogger(__name__)


def start(config: EngineConfig) -> tuple[Loop, EngineInfo]:
    """From a model's name to a loop that can run it."""
    return assemble(config, load(config))


def load(config: EngineConfig) -> Any:
    """The model as the engine has it, on as many threads as it may use."""
    _check(config)
    torch.set_num_threads(config.threads or threads.default_count())
    folder = resolve(config.model, config.revision)
    require_intact(folder)
    return load_model(
        str(folder),
        config.device,
        config.dtype,
        config.kernels,
        lm_head=config.lm_head,
        dense_values=config.dense_values,
        decide=lambda model: choice.kernels_for(model, config.kernels, config.block_size),
    )


def assemble(config: EngineConfig, model: Any) -> tuple[Loop, EngineInfo]:
    """From a loaded model to a loop that can run it."""
    plan = choice.choose(model, config.kernels, config.block_size)
    capacity = _capacity(config, model, plan.bytes_per_token)
    blocks = capacity.kv_tokens // config.block_size
    eager, why = plan.build(blocks, config.block_size, capacity.context_length)
    log.info("the %s runner (%s)", eager.name, why)
    threads_note = threads.settle(eager, config.threads) if isinstance(eager, FusedRunner) else None
    made = _decode_graphs(config, model, eager, capacity)
    info = _info(config, model, capacity, made, eager, why, threads_note)
    constrain = grammars(config.model, config.revision, info.vocab_size, info.eos_token_ids)
    runner = made.graphs or eager
    info = replace(info, warm_step=warm_up(runner, config, info, constrain, any_object()))
    if made.graphs:
        made.graphs.replayed = 0
    loop = Loop(
        runner,
        _scheduler(config, info, eager),
        info,
        peak_device_bytes=partial(peak_bytes, model.device),
        constrain=constrain,
        replayed_steps=lambda: made.graphs.replayed if made.graphs else 0,
    )
    return loop, info


def _check(config: EngineConfig) -> None:
    for name in ("threads", "max_model_len", "max_num_seqs", "block_size", "kv_tokens"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}; it must be at least 1")
    if config.step_tokens < config.max_num_seqs:
        raise InputError(
            f"max_num_batched_tokens {config.step_tokens} is below max_num_seqs "
            f"{config.max_num_seqs}; a step must hold one token of every sequence"
        )


def _capacity(config: EngineConfig, model: Any, bytes_per_token: int) -> Capacity:
    share = GPU_SHARE if model.device.type == "cuda" else CPU_SHARE
    limit = context_limit(model.config.get_text_config())
    memory = memory_of(model.device, weight_report(model).weight_bytes)
    return decide(config, limit, bytes_per_token, memory, share)


def _decode_graphs(config: EngineConfig, model: Any, runner: ModelRunner, capacity: Capacity) -> Captured:
    """Decode steps as CUDA graphs, on a GPU. They live on memory that the cache leaves free."""
    if model.device.type != "cuda" or not config.cuda_graphs or not isinstance(runner, GenericRunner):
        return Captured()
    cache_blocks = capacity.kv_tokens // config.block_size
    steps = shapes(config.max_num_seqs, capacity.context_length, config.block_size, cache_blocks)
    made = cuda_graphs.capture_on_cuda(model, runner, steps)
    if made.note:
        runner.verify()  # a device that the attempt has broken raises here
    return made


def _scheduler(config: EngineConfig, info: EngineInfo, runner: ModelRunner) -> Scheduler:
    return Scheduler(
        Blocks(info.kv_tokens // info.block_size, info.block_size),
        info.max_num_seqs,
        info.max_num_batched_tokens,
        info.prefix_cache,
        shares_output=runner.shares_output,
        piece=info.piece,
    )


def _info(
    config: EngineConfig,
    model: Any,
    capacity: Capacity,
    made: Captured,
    runner: ModelRunner,
    why: str,
    threads_note: str | None,
) -> EngineInfo:
    report = weight_report(model)
    order_note = _order_note(config, model) if isinstance(runner, GenericRunner) else None
    return EngineInfo(
        model=config.model,
        context_length=capacity.context_length,
        vocab_size=model.config.get_text_config().vocab_size,
        eos_token_ids=_eos_token_ids(model),
        block_size=config.block_size,
        kv_tokens=capacity.kv_tokens,
        weight_bytes=report.weight_bytes,
        linear_bytes=report.linear_bytes,
        kernels=report.kernels,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        sparse=report.sparse,
        notes=tuple(filter(None, (*report.notes, *capacity.notes, made.note, order_note, threads_note))),
        cuda_graphs=len(made.graphs) if made.graphs else 0,
        cuda_graph_bytes=made.nbytes,
        runner=runner.name,
        runner_reason=why,
        head_values=report.head_values,
        dense_values=report.dense_values,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.step_tokens,
        piece=_piece(config, runner),
        prefix_cache=config.prefix_cache,
    )


def _piece(config: EngineConfig, runner: ModelRunner) -> int:
    """Who sets the tokens of a step wants as many."""
    return 0 if config.max_num_batched_tokens else runner.piece


def _order_note(config: EngineConfig, model: Any) -> str | None:
    return order.note(model, config.step_tokens) if model.device.type == "cpu" else None


def _eos_token_ids(model: Any) -> tuple[int, ...]:
    eos = model.generation_config.eos_token_id if model.generation_config else None
    if eos is None:
        eos = model.config.get_text_config().eos_token_id
    return () if eos is None else (eos,) if isinstance(eos, int) else tuple(eos)


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process ever held: on the device, or on the CPU in all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_memory_bytes()
