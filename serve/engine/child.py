"""The engine process: `python -m twofour.serve.engine.child FD`, started and ended by `ProcessEngine`.

FD is its end of a socket pair that nobody else holds. It ends when it is told to, or when the other end is
closed, which is what the death of its parent does.
"""

import gc
import io
import logging
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
from tqdm import tqdm

from twofour.prune.errors import InputError, TwofourError
from twofour.prune.format.folder import resolve
from twofour.prune.machine.provenance import peak_memory_bytes
from twofour.serve.engine.assembly import capacity, order
from twofour.serve.engine.assembly.intact import require_intact
from twofour.serve.engine.assembly.memory import memory_of
from twofour.serve.engine.assembly.warm import warm_up
from twofour.serve.engine.blocks import Blocks
from twofour.serve.engine.grammar import any_object, grammars
from twofour.serve.engine.loop import Loop
from twofour.serve.engine.messages import Command, Report, decode_command, decode_config, encode
from twofour.serve.engine.runners import ModelRunner, choice, cuda_graphs
from twofour.serve.engine.runners.generic import GenericRunner
from twofour.serve.engine.runners.graphs import Captured, shapes
from twofour.serve.engine.scheduler import Scheduler
from twofour.serve.engine.types import EngineConfig, EngineInfo
from twofour.serve.model.loading import load_model, weight_report

log = logging.getLogger(__name__)


class Lossy(io.TextIOWrapper):
    """Standard error where a full disk loses words, progress bars among them, and ends nothing."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


def main() -> int:
    """Load, say what was loaded, serve."""
    sys.stderr = Lossy(sys.stderr.detach(), line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    ignore_signals()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    tqdm.monitor_interval = 0  # bars are drawn while the model loads; no thread looks after them when it is served
    logging.getLogger("twofour.serve.kernels").setLevel(logging.INFO)  # a first start races them, for seconds
    log.setLevel(logging.INFO)  # it says which runner it is
    pipe = Connection(int(sys.argv[1]))
    try:
        loop, info = start(decode_config(pipe.recv_bytes()))
    except TwofourError as error:
        return _give_up(pipe, str(error))
    except Exception as error:  # whatever a model folder can hold: the parent gets one line, the log the rest
        log.exception("the engine cannot start")
        return _give_up(pipe, f"{type(error).__name__}: {error}")
    gc.collect()
    gc.freeze()  # what is loaded stays: no later collection looks at it, which would take as long as many steps
    try:
        pipe.send_bytes(encode({"info": info}))
        loop.run(partial(receive, pipe), partial(send, pipe), partial(send_begun, pipe))
    except (BrokenPipeError, ConnectionResetError):
        log.warning("the server is gone; the engine ends")
    return 0


def _give_up(pipe: Connection, why: str) -> int:
    pipe.send_bytes(encode({"failed": why}))
    return 1


def ignore_signals() -> None:
    """Terminals and service managers signal all processes at once; the parent drains, then ends this one."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def start(config: EngineConfig) -> tuple[Loop, EngineInfo]:
    """From a model's name to a loop that can run it."""
    _check(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    folder = resolve(config.model, config.revision)
    require_intact(folder)
    return assemble(config, load_model(str(folder), config.device, config.dtype, config.kernels))


def assemble(config: EngineConfig, model: Any) -> tuple[Loop, EngineInfo]:
    """From a loaded model to a loop that can run it."""
    plan = choice.choose(model, config.kernels, config.block_size)
    room = _capacity(config, model, plan.bytes_per_token)
    count = room.kv_tokens // config.block_size
    runner, why = plan.build(count, config.block_size, room.context_length)
    log.info("the %s runner (%s)", runner.name, why)
    made = _captured(config, model, runner, room)
    info = _info(config, model, room, made, runner, why)
    blocks = Blocks(count, config.block_size)
    scheduler = Scheduler(
        blocks,
        config.max_num_seqs,
        config.max_num_batched_tokens,
        config.prefix_cache,
        shares_output=runner.shares_output,
    )
    constrain = grammars(config.model, config.revision, info.vocab_size, info.eos_token_ids)
    warm_step = warm_up(made.graphs or runner, config, info, constrain, any_object())
    if made.graphs:
        made.graphs.replayed = 0
    info = replace(info, warm_step=warm_step)
    loop = Loop(
        made.graphs or runner,
        scheduler,
        info,
        peak_device_bytes=lambda: peak_bytes(model.device),
        constrain=constrain,
        replayed_steps=lambda: made.graphs.replayed if made.graphs else 0,
    )
    return loop, info


def _captured(config: EngineConfig, model: Any, runner: ModelRunner, room: capacity.Capacity) -> Captured:
    """Decode steps as CUDA graphs, on a GPU. They live on memory that the cache leaves free."""
    if model.device.type != "cuda" or not config.cuda_graphs or not isinstance(runner, GenericRunner):
        return Captured()
    cache_blocks = room.kv_tokens // config.block_size
    steps = shapes(config.max_num_seqs, room.context_length, config.block_size, cache_blocks)
    made = cuda_graphs.captured(model, runner, steps)
    if made.note:
        runner.verify()  # a device that the attempt has broken raises here
    return made


def _check(config: EngineConfig) -> None:
    for name in ("threads", "max_model_len", "max_num_seqs", "block_size", "kv_tokens"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}; it must be at least 1")
    if config.max_num_batched_tokens < config.max_num_seqs:
        raise InputError(
            f"max_num_batched_tokens {config.max_num_batched_tokens} is below max_num_seqs "
            f"{config.max_num_seqs}; a step must hold one token of every sequence"
        )


def _capacity(config: EngineConfig, model: Any, bytes_per_token: int) -> capacity.Capacity:
    share = capacity.GPU_SHARE if model.device.type == "cuda" else capacity.CPU_SHARE
    limit = capacity.context_limit(model.config.get_text_config())
    memory = memory_of(model.device, weight_report(model).weight_bytes)
    return capacity.decide(config, limit, bytes_per_token, memory, share)


def _info(
    config: EngineConfig, model: Any, room: capacity.Capacity, made: Captured, runner: ModelRunner, why: str
) -> EngineInfo:
    report = weight_report(model)
    order_note = _order_note(config, model) if isinstance(runner, GenericRunner) else None
    return EngineInfo(
        model=config.model,
        context_length=room.context_length,
        vocab_size=model.config.get_text_config().vocab_size,
        eos_token_ids=_eos_token_ids(model),
        block_size=config.block_size,
        kv_tokens=room.kv_tokens,
        weight_bytes=report.weight_bytes,
        linear_bytes=report.linear_bytes,
        kernels=report.kernels,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        sparse=report.sparse,
        notes=tuple(filter(None, (*report.notes, *room.notes, made.note, order_note))),
        cuda_graphs=len(made.graphs) if made.graphs else 0,
        cuda_graph_bytes=made.nbytes,
        runner=runner.name,
        runner_reason=why,
    )


def _order_note(config: EngineConfig, model: Any) -> str | None:
    return order.note(model, config.max_num_batched_tokens) if model.device.type == "cpu" else None


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


def receive(pipe: Connection, timeout_s: float) -> list[Command] | None:
    """Take all commands that are there, waiting for the first. None: stop, or the other end is closed."""
    commands: list[Command] = []
    try:
        while pipe.poll(0.0 if commands else timeout_s):
            command = decode_command(pipe.recv_bytes())
            if command is None:
                return None
            commands.append(command)
    except (EOFError, ConnectionResetError):
        return None
    return commands


def send(pipe: Connection, report: Report) -> None:
    pipe.send_bytes(encode({"report": report}))


def send_begun(pipe: Connection, tokens: int) -> None:
    pipe.send_bytes(encode({"begun": tokens}))


if __name__ == "__main__":
    sys.exit(main())
