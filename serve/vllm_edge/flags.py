"""Our flags in the words of vLLM's server. One that has no counterpart there is refused by name, never ignored."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from math import ceil

from twofour.prune.errors import InputError
from twofour.serve.engine.types import EngineConfig, default_name

MIDDLEWARE = "twofour.serve.vllm_edge.middleware.Edge"
MAX_HEAD_BYTES = 65536

# Flags that only our own engine has -> what to do instead.
REFUSED: Mapping[str, str] = {
    "device": "vLLM takes the device that it was built for; leave it out",
    "kernels": "inside vLLM the plugin chooses them; leave it out",
    "lm_head": "store it in the checkpoint, with twofour prune --lm-head int8",
    "dense_values": "it is for the embedded engine alone; leave it out",
    "tokens_per_minute": "use --requests-per-minute",
}
# Ours -> vLLM's, where the value is the same.
SAME: Mapping[str, str] = {
    "revision": "--revision",
    "dtype": "--dtype",
    "max_model_len": "--max-model-len",
    "max_num_seqs": "--max-num-seqs",
    "max_num_batched_tokens": "--max-num-batched-tokens",
}
# Bounds and switches that are always set; a flag after -- comes later, and wins.
ALWAYS = (
    *("--middleware", MIDDLEWARE),
    *("--h11-max-incomplete-event-size", str(MAX_HEAD_BYTES)),
    "--disable-fastapi-docs",
    "--disable-uvicorn-access-log",  # the edge writes one
    "--enable-prompt-tokens-details",
    *("--structured-outputs-config.backend", "guidance"),  # llguidance, with which the edge checks schemas
)

# Of vLLM, and what to give instead.
OURS: Mapping[str, str] = {
    **{name: name for name in ("--host", "--port", "--served-model-name", "--ssl-certfile", "--ssl-keyfile")},
    **{"--uds": "--host and --port", "--api-key": "--api-key-file", "--allowed-origins": "--cors-origin"},
    **{"--shutdown-timeout": "--drain-s", "--sse-keep-alive-interval": "--sse-keep-alive-s"},
    **{"--max-num-queued-reqs": "--max-queue", "--max-num-queued-tokens": "--max-queue-tokens"},
}
# Of vLLM, and why not: requests would pass the edge by, keys and all.
AROUND: Mapping[str, str] = {
    "--root-path": "the edge knows requests by their paths; have the proxy in front take the prefix away",
    "--grpc": "the edge stands before HTTP alone, and nothing would ask for a key; leave it out",
    "--grpc-port": "the edge stands before HTTP alone, and nothing would ask for a key; leave it out",
}


def arguments(args: argparse.Namespace, port: int, command: bool) -> list[str]:
    """Those of vLLM's server. command: of `vllm serve`, which wants the model first; else of its module."""
    refuse(args)
    check_passed_on(args.passed_on)
    return [
        *(["serve", args.model] if command else ["--model", args.model]),
        *ALWAYS,
        *mapped(args, port),
        *args.passed_on,
    ]


def refuse(args: argparse.Namespace) -> None:
    neutral = {"kernels": EngineConfig.kernels}
    for name, remedy in REFUSED.items():
        if getattr(args, name) not in (None, neutral.get(name)):
            raise InputError(f"{flag(name)} has no counterpart in vLLM; {remedy}")
    if args.sse_keep_alive_s % 1:
        raise InputError("vLLM counts --sse-keep-alive-s in whole seconds; give a whole number")


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def mapped(args: argparse.Namespace, port: int) -> Iterator[str]:
    yield from ("--host", args.host, "--port", str(port))
    yield from ("--served-model-name", args.served_model_name or default_name(args.model))
    yield from ("--max-num-queued-reqs", str(args.max_queue), "--max-num-queued-tokens", str(args.max_queue_tokens))
    yield from ("--shutdown-timeout", str(ceil(args.drain_s)))
    yield from ("--sse-keep-alive-interval", str(int(args.sse_keep_alive_s)))
    for name, theirs in SAME.items():
        if (value := getattr(args, name)) is not None:
            yield from (theirs, str(value))
    if args.no_prefix_cache:
        yield "--no-enable-prefix-caching"
    if args.no_cuda_graphs:
        yield from ("--compilation-config.cudagraph_mode", "NONE")
    if args.ssl_certfile:
        yield from (
            "--ssl-certfile",
            str(args.ssl_certfile),
            "--ssl-keyfile",
            str(args.ssl_keyfile or args.ssl_certfile),
        )


def check_passed_on(flags: Sequence[str]) -> None:
    """Refuse flags after -- that the edge has to know of, that go around it, or that would show a key to every user of
    the machine."""
    for word in flags:
        name = word.partition("=")[0].replace("_", "-")
        if found := meant(name, OURS):
            raise InputError(f"{found} is a flag of twofour serve, too; give {OURS[found]} before --")
        if found := meant(name, AROUND):
            raise InputError(f"{found} cannot be passed on: {AROUND[found]}")


def meant(name: str, known: Mapping[str, str]) -> str | None:
    """The flag of a name, which vLLM's parser lets one shorten."""
    is_flag = name.startswith("--") and len(name) > len("--")
    return name if name in known else next((flag for flag in known if is_flag and flag.startswith(name)), None)
