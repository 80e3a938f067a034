"""The verb `serve`: one model behind an OpenAI-compatible endpoint."""

import argparse
import asyncio
import gc
import logging
import os
import socket
import sys
import threading
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from twofour.prune.errors import InputError, ModelError, in_a_line
from twofour.serve.commands import arguments, starting

if TYPE_CHECKING:
    from twofour.serve.config import ServeConfig
    from twofour.serve.edge.observing.observe import Watcher
    from twofour.serve.engine.types import EngineInfo

# How long the event loop waits, each time, for a thread that is busy with a large request. Python's own is 5 ms.
SWITCH_S = 0.0005
END_S = 10  # after the last answer, for threads to finish and traces to be sent

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a model folder, packed 2:4 or dense, or a hub id")
    parser.set_defaults(passed_on=[])  # by the command line, from what stands after --
    arguments.add_choice_arguments(parser.add_argument_group("which engine"))
    arguments.add_endpoint_arguments(parser.add_argument_group("endpoint"))
    arguments.add_access_arguments(parser.add_argument_group("access"))
    arguments.add_load_arguments(parser.add_argument_group("load"))
    arguments.add_engine_arguments(parser.add_argument_group("engine"))


def run(args: argparse.Namespace, child: Sequence[str] | None = None) -> int:
    """Serve until told to stop. `child`: arguments for python, to run something else as the engine process."""
    from twofour.serve.http import crowd, listening

    set_up_logging()
    if chosen(args) == "vllm":
        from twofour.serve.commands import serve_vllm

        return serve_vllm.run(args)
    crowd.raise_open_files()
    with listening.listen(args.host, args.port) as listener:
        return run_on(listener, args, child)


def chosen(args: argparse.Namespace) -> str:
    """The engine that serves. `auto` says which one it is, and why."""
    from twofour.serve.vllm_edge.choice import choose

    engine, reason = choose(args.engine)
    if args.engine == "auto":
        print(f"engine: {engine}, since {reason}", file=sys.stderr, flush=True)
    if args.passed_on and engine != "vllm":
        raise InputError(f"flags after -- are for vLLM, and the engine is {engine}; use --engine vllm")
    return engine


def run_on(listener: socket.socket, args: argparse.Namespace, child: Sequence[str] | None) -> int:
    from twofour.prune.machine import heap
    from twofour.serve.app import create_app
    from twofour.serve.edge.lifecycle import Lifecycle
    from twofour.serve.engine.process import ProcessEngine
    from twofour.serve.http import server

    heap.map_large()  # the memory of a large request is given back after it
    sys.setswitchinterval(SWITCH_S)
    config, tls = arguments.serve_config(args), arguments.tls_of(args)
    tokenizer = load_tokenizer(args.model, args.revision)
    engine, lifecycle = ProcessEngine(arguments.engine_config(args), child=child), Lifecycle()
    with tracing(args.otlp_endpoint) as watchers:
        app = create_app(engine, config, tokenizer, lifecycle=lifecycle, watchers=watchers)
        gc.freeze()  # all this stays; each time the collector looked through it, that would take a quarter of a second
        url = server.url_of(listener, tls)
        print(f"listening on {url}; loading {args.model}", file=sys.stderr, flush=True)

        def announce(info: "EngineInfo") -> None:
            print(start_text(info, config, url, args.host), flush=True)

        pre_s = config.pre_drain_s
        life = server.serve(app, listener, engine, lifecycle, config.drain_s, announce, tls=tls, pre_drain_s=pre_s)
        asyncio.run(to_its_end(life))
    return 0


async def to_its_end(service: Awaitable[None]) -> None:
    """End in time: Python waits for all threads before a process ends, and one may be in an endless chat template."""
    status = 1
    try:
        await service
        status = 0
    finally:
        end_within(END_S, status)


def end_within(seconds: float, status: int) -> None:
    def end() -> None:
        log.warning("the work for a request goes on %g s after the server has ended; it is given up", seconds)
        os._exit(status)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


@contextmanager
def tracing(endpoint: str | None) -> "Iterator[Sequence[Watcher]]":
    """The watchers of every request."""
    if endpoint is None:
        yield ()
        return
    from twofour.serve.edge.observing.tracing import Tracer

    tracer = Tracer(endpoint)
    try:
        yield (tracer.record,)
    finally:
        tracer.close()


def load_tokenizer(model: str, revision: str | None) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=False)
    except Exception as error:  # its files can hold anything
        raise ModelError(f"cannot load the tokenizer of {model}: {in_a_line(error)}; check the name") from error


def set_up_logging() -> None:
    """Everything to stderr: warnings as text, the access log as bare JSON lines."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    access = logging.getLogger("twofour.access")
    access.setLevel(logging.INFO)
    access.propagate = False
    access.addHandler(logging.StreamHandler())


def start_text(info: "EngineInfo", config: "ServeConfig", url: str, host: str) -> str:
    """What a person wants to know when the model is loaded."""
    pattern = "2:4 sparse" if info.sparse else "dense"
    kernels = ", ".join(f"{name} for {count} linears" for name, count in info.kernels.items())
    lines = [
        f"{config.served_model_name}: {pattern}, {info.dtype} on {info.device}",
        f"  weights   {info.weight_bytes / 1e6:,.1f} MB, {info.linear_bytes / 1e6:,.1f} MB of it in linears",
        f"  kernels   {kernels or 'none'}",
        f"  dense     lm_head {info.head_values or 'none'}, other linears {info.dense_values or 'none'}",
        f"  runner    {info.runner}{f' ({info.runner_reason})' if info.runner_reason else ''}",
        f"  KV cache  {info.kv_tokens:,} tokens; context {info.context_length:,}",
        *([graphs_text(info)] if info.cuda_graphs else []),
        *(f"  note      {note}" for note in info.notes),
    ]
    return "\n".join([*lines, *starting.how_to_ask(config, url, host)])


def graphs_text(info: "EngineInfo") -> str:
    return f"  graphs    {info.cuda_graphs} decode steps captured, {info.cuda_graph_bytes / 1e6:,.1f} MB"
