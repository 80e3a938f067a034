"""The verb `serve`: one model behind an OpenAI-compatible endpoint."""

import argparse
import asyncio
import logging
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twofour.prune.errors import ModelError

if TYPE_CHECKING:
    from twofour.serve.config import ServeConfig
    from twofour.serve.engine.types import EngineConfig, EngineInfo

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a model folder, packed 2:4 or dense, or a hub id")
    add_endpoint_arguments(parser.add_argument_group("endpoint"))
    add_engine_arguments(parser.add_argument_group("engine"))


def add_endpoint_arguments(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    group.add_argument("--port", type=port, default=8000, help="0 takes any free one (default: %(default)s)")
    group.add_argument("--api-key-file", type=Path, metavar="FILE", help="accepted keys, one a line")
    group.add_argument("--served-model-name", metavar="NAME", help="default: the folder's name or the hub id")
    group.add_argument(
        "--max-queue",
        type=positive,
        default=256,
        metavar="N",
        help="sequences under way, waiting ones included, before new ones get 503 (default: %(default)s)",
    )
    group.add_argument(
        "--deadline-s",
        type=seconds,
        default=600.0,
        metavar="S",
        help="for one request (default: %(default)g)",
    )
    group.add_argument(
        "--drain-s",
        type=seconds,
        default=30.0,
        metavar="S",
        help="for requests under way after SIGTERM (default: %(default)g)",
    )


def add_engine_arguments(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--revision", metavar="R", help="of a hub id")
    group.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    group.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="default: the checkpoint's")
    group.add_argument("--kernels", default="auto", metavar="NAME", help="pin one (default: %(default)s)")
    group.add_argument("--threads", type=positive, metavar="N", help="default: all cores")
    group.add_argument("--max-model-len", type=positive, metavar="N", help="tokens of prompt and answer")
    group.add_argument(
        "--max-num-seqs",
        type=positive,
        default=32,
        metavar="N",
        help="sequences in one step (default: %(default)s)",
    )


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port")
    return value


def seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds")
    return value


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    from twofour.serve import server
    from twofour.serve.app import create_app
    from twofour.serve.edge.lifecycle import Lifecycle
    from twofour.serve.engine.process import ProcessEngine

    set_up_logging()
    config = serve_config(args)
    tokenizer = load_tokenizer(args.model, args.revision)
    engine, lifecycle = ProcessEngine(engine_config(args)), Lifecycle()
    app = create_app(engine, config, tokenizer, lifecycle=lifecycle)
    with server.listen(args.host, args.port) as listener:
        url = server.url_of(listener)
        print(f"listening on {url}; loading {args.model}", file=sys.stderr, flush=True)

        def announce(info: "EngineInfo") -> None:
            print(start_text(info, config, url, args.host), flush=True)

        asyncio.run(server.serve(app, listener, engine, lifecycle, config.drain_s, announce))
    return 0


def serve_config(args: argparse.Namespace) -> "ServeConfig":
    from twofour.serve.config import ServeConfig
    from twofour.serve.edge.auth import read_keys
    from twofour.serve.edge.harden import EdgeConfig
    from twofour.serve.engine.types import describe

    return ServeConfig(
        served_model_name=args.served_model_name or describe(args.model),
        edge=EdgeConfig(api_keys=read_keys(args.api_key_file) if args.api_key_file else ()),
        max_queue=args.max_queue,
        deadline_s=args.deadline_s,
        drain_s=args.drain_s,
    )


def engine_config(args: argparse.Namespace) -> "EngineConfig":
    from twofour.serve.engine.types import EngineConfig

    return EngineConfig(
        model=args.model,
        revision=args.revision,
        device=args.device,
        dtype=args.dtype,
        kernels=args.kernels,
        threads=args.threads,
        max_model_len=args.max_model_len,
        max_num_seqs=args.max_num_seqs,
    )


def load_tokenizer(model: str, revision: str | None) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(f"cannot load the tokenizer of {model}: {reason}; check the name") from error


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
        f"  KV cache  {info.kv_tokens:,} tokens; context {info.context_length:,}",
        *(f"  note      {note}" for note in info.notes),
    ]
    if host not in LOOPBACK and not config.edge.api_keys:
        lines.append("  warning   no API key: whoever reaches this port can use it; see --api-key-file")
    return "\n".join([*lines, f"ready at {url}/v1; try:", f"  {curl(url, config)}"])


def curl(url: str, config: "ServeConfig") -> str:
    key = '-H "Authorization: Bearer $KEY" ' if config.edge.api_keys else ""
    body = f'{{"model": "{config.served_model_name}", "prompt": "Once upon a time", "max_tokens": 32}}'
    header = '-H "Content-Type: application/json" '
    return f"curl {url}/v1/completions {key}{header}-d {shlex.quote(body)}"
