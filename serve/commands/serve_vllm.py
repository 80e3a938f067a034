"""The verb `serve` with vLLM as its engine."""

import argparse
import asyncio
import sys

from twofour.serve.commands import arguments, starting
from twofour.serve.config import ServeConfig
from twofour.serve.http import crowd, listening, server
from twofour.serve.vllm_edge import choice, flags
from twofour.serve.vllm_edge.environment import environment
from twofour.serve.vllm_edge.settings import Settings
from twofour.serve.vllm_edge.supervise import supervise


def run(args: argparse.Namespace) -> int:
    version = choice.installed_version()
    config, tls = arguments.serve_config(args), arguments.tls_of(args)
    crowd.raise_open_files()
    with listening.reserve(args.host, args.port) as place:
        url = server.url_of(place, tls)
        words = flags.arguments(args, place.getsockname()[1], choice.has_command())
        told = environment(settings_of(args, config), args.threads)
        print(f"loading {args.model} in vLLM {version}, soon listening on {url}", file=sys.stderr, flush=True)

        def announce() -> None:
            print(start_text(config, url, args.host, version), flush=True)

        return asyncio.run(supervise(words, told, announce, config.pre_drain_s + config.drain_s))


def settings_of(args: argparse.Namespace, config: ServeConfig) -> Settings:
    edge = config.edge
    return Settings(
        served_model_name=config.served_model_name,
        digests=tuple(digest.hex() for digest in edge.api_keys),
        open_paths=tuple(sorted(edge.open_paths)),
        requests_per_minute=edge.limits.requests_per_minute,
        cors_origins=edge.cors_origins,
        deadline_s=config.deadline_s,
        drain_s=config.drain_s,
        pre_drain_s=config.pre_drain_s,
        otlp_endpoint=args.otlp_endpoint,
        ui=config.ui,
    )


def start_text(config: ServeConfig, url: str, host: str, version: str) -> str:
    return "\n".join([f"{config.served_model_name}: by vLLM {version}", *starting.how_to_ask(config, url, host)])
