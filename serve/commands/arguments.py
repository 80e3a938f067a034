"""The flags of `serve`, and what they mean to the server and its engine: theirs are the defaults, too."""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from twofour.prune.errors import InputError
from twofour.serve.commands import rounding
from twofour.serve.config import ServeConfig
from twofour.serve.edge.auth import read_keys
from twofour.serve.edge.harden import EdgeConfig
from twofour.serve.edge.lifecycle import PROBES
from twofour.serve.edge.limits import Limits
from twofour.serve.engine.types import STEP_TOKENS, EngineConfig, default_name
from twofour.serve.vllm_edge.choice import ENGINES

if TYPE_CHECKING:
    from twofour.serve.http.server import Tls


def add_choice_arguments(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--engine",
        choices=ENGINES,
        default="embedded",
        help="our own, or vLLM behind the same edge; auto: vLLM where it is installed and a GPU is there. What follows "
        "-- goes to vLLM as it is (default: %(default)s)",
    )


def add_endpoint_arguments(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--host", type=host, default="127.0.0.1", help="address to listen on (default: %(default)s)")
    group.add_argument("--port", type=port, default=8000, help="0 takes any free one (default: %(default)s)")
    group.add_argument("--served-model-name", metavar="NAME", help="default: the folder's name or the hub id")
    group.add_argument("--no-ui", action="store_true", help="no chat page at /")
    group.add_argument("--otlp-endpoint", metavar="URL", help="send traces there, as http://host:4318 (extra: otel)")


def add_access_arguments(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--api-key-file", type=Path, metavar="FILE", help="accepted keys, one a line")
    group.add_argument("--protect-metrics", action="store_true", help="/metrics needs a key too")
    group.add_argument("--requests-per-minute", type=positive, metavar="N", help="of each key (default: no limit)")
    group.add_argument(
        "--tokens-per-minute",
        type=positive,
        metavar="N",
        help="of each key, prompts and answers; max_tokens counts until an answer ends (default: no limit)",
    )
    group.add_argument(
        "--cors-origin",
        type=origin,
        action="append",
        default=[],
        metavar="ORIGIN",
        help="web pages from there may call, as https://host; may be repeated (default: none may)",
    )
    group.add_argument("--ssl-certfile", type=Path, metavar="FILE", help="PEM: serve HTTPS")
    group.add_argument("--ssl-keyfile", type=Path, metavar="FILE", help="PEM (default: it is in --ssl-certfile)")


def add_load_arguments(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--max-queue",
        type=positive,
        default=ServeConfig.max_queue,
        metavar="N",
        help="sequences under way, waiting ones included, before new ones get 503 (default: %(default)s)",
    )
    group.add_argument(
        "--max-queue-tokens",
        type=positive,
        default=ServeConfig.max_queue_tokens,
        metavar="N",
        help="the same of prompt tokens (default: %(default)s)",
    )
    group.add_argument(
        "--deadline-s",
        type=seconds,
        default=ServeConfig.deadline_s,
        metavar="S",
        help="for one request (default: %(default)g)",
    )
    group.add_argument(
        "--sse-keep-alive-s",
        type=seconds,
        default=ServeConfig.keep_alive_s,
        metavar="S",
        help="silence in a stream before a comment; 0: never (default: %(default)g)",
    )
    group.add_argument(
        "--drain-s",
        type=seconds,
        default=ServeConfig.drain_s,
        metavar="S",
        help="for requests under way after SIGTERM (default: %(default)g)",
    )
    group.add_argument(
        "--pre-drain-s",
        type=seconds,
        default=ServeConfig.pre_drain_s,
        metavar="S",
        help="before that, /ready says no and new requests are still taken (default: %(default)g)",
    )


def add_engine_arguments(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--revision", metavar="R", help="of a hub id")
    group.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    group.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="default: the checkpoint's")
    group.add_argument("--kernels", default=EngineConfig.kernels, metavar="NAME", help="pin one (default: %(default)s)")
    rounding.add_arguments(group)
    group.add_argument(
        "--threads",
        type=positive,
        metavar="N",
        help="default: one a core, or as many as a CPU quota pays for; one, where all are slower",
    )
    group.add_argument("--max-model-len", type=positive, metavar="N", help="tokens of prompt and answer")
    group.add_argument(
        "--max-num-seqs",
        type=positive,
        metavar="N",
        help=f"sequences in one step (default: {EngineConfig.max_num_seqs})",
    )
    group.add_argument(
        "--max-num-batched-tokens",
        type=positive,
        metavar="N",
        help=f"tokens in one step, those of prompts too; fewer delay others less (default: {STEP_TOKENS}; of the fused "
        "runner no more than keep a step short)",
    )
    group.add_argument("--no-prefix-cache", action="store_true", help="compute every prompt from its first token on")
    group.add_argument("--no-cuda-graphs", action="store_true", help="on a GPU, capture no decode steps")


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def host(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("it is empty, which would be every address; 0.0.0.0 says so")
    return text


def origin(text: str) -> str:
    """In the form that browsers send: any other form would match none."""
    if text != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+", text):
        raise argparse.ArgumentTypeError(f"{text} is no origin; give it as https://host or https://host:8443, or *")
    return text


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


def serve_config(args: argparse.Namespace) -> ServeConfig:
    return ServeConfig(
        served_model_name=args.served_model_name or default_name(args.model),
        edge=edge_config(args),
        max_queue=args.max_queue,
        max_queue_tokens=args.max_queue_tokens,
        deadline_s=args.deadline_s,
        keep_alive_s=args.sse_keep_alive_s or None,
        drain_s=args.drain_s,
        pre_drain_s=args.pre_drain_s,
        ui=not args.no_ui,
    )


def edge_config(args: argparse.Namespace) -> EdgeConfig:
    limits = Limits(args.requests_per_minute, args.tokens_per_minute)
    if limits != Limits() and not args.api_key_file:
        raise InputError("limits are those of a key; give --api-key-file too")
    opened = PROBES if args.no_ui else PROBES | {"/"}
    closed = {"/metrics"} if args.protect_metrics else frozenset[str]()
    return EdgeConfig(
        api_keys=read_keys(args.api_key_file) if args.api_key_file else (),
        open_paths=opened - closed,
        limits=limits,
        cors_origins=tuple(args.cors_origin),
    )


def tls_of(args: argparse.Namespace) -> "Tls | None":
    from twofour.serve.http.server import Tls

    if args.ssl_keyfile and not args.ssl_certfile:
        raise InputError("--ssl-keyfile needs --ssl-certfile")
    return Tls(args.ssl_certfile, args.ssl_keyfile) if args.ssl_certfile else None


def engine_config(args: argparse.Namespace) -> EngineConfig:
    return EngineConfig(
        model=args.model,
        revision=args.revision,
        device=args.device,
        dtype=args.dtype,
        kernels=args.kernels,
        lm_head=args.lm_head,
        dense_values=args.dense_values,
        threads=args.threads,
        max_model_len=args.max_model_len,
        max_num_seqs=args.max_num_seqs or EngineConfig.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        cuda_graphs=not args.no_cuda_graphs,
        prefix_cache=not args.no_prefix_cache,
    )
