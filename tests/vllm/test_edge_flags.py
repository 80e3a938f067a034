"""What we lean on in the installed vLLM: its flags, its requests, its registry, its server. An upgrade breaks here."""

import argparse
import inspect
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import uvicorn

from twofour.serve.commands.serve import add_arguments
from twofour.serve.vllm_edge import choice, engine_state, environment, flags
from twofour.serve.vllm_edge.settings import Settings


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(["model", "--engine", "vllm", *words])


def parser_of_vllm() -> Any:
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    homes = ("vllm.entrypoints.common.cli_args", "vllm.entrypoints.launchers.cli_args")  # 0.33, 0.32
    home = next(home for home in homes if find_spec(home.rpartition(".")[0]) and find_spec(home))
    return import_module(home).make_arg_parser(FlexibleArgumentParser())


def test_every_flag_is_one_of_vllm(tmp_path: Path) -> None:
    words = "--revision r --dtype float16 --max-model-len 100 --max-num-seqs 7 --max-num-batched-tokens 300 --drain-s 9"
    more = "--no-prefix-cache --no-cuda-graphs --max-queue 9 --max-queue-tokens 99 --sse-keep-alive-s 4"
    args = parse(
        *words.split(), *more.split(), "--ssl-certfile", str(tmp_path / "c"), "--ssl-keyfile", str(tmp_path / "k")
    )
    theirs = parser_of_vllm().parse_args(flags.arguments(args, 8024, command=False))
    assert (theirs.model, theirs.host, theirs.port, theirs.served_model_name) == ("model", "127.0.0.1", 8024, ["model"])
    assert (theirs.revision, theirs.dtype, theirs.max_model_len, theirs.max_num_seqs) == ("r", "float16", 100, 7)
    assert (theirs.max_num_batched_tokens, theirs.shutdown_timeout, theirs.sse_keep_alive_interval) == (300, 9, 4)
    assert (theirs.max_num_queued_reqs, theirs.max_num_queued_tokens) == (9, 99)
    assert theirs.middleware == [flags.MIDDLEWARE] and theirs.h11_max_incomplete_event_size == 65536
    assert theirs.disable_fastapi_docs and theirs.disable_uvicorn_access_log and theirs.enable_prompt_tokens_details
    assert theirs.enable_prefix_caching is False
    assert theirs.compilation_config.cudagraph_mode.name == "NONE"
    assert theirs.structured_outputs_config.backend == "guidance"
    assert (theirs.ssl_certfile, theirs.ssl_keyfile) == (str(tmp_path / "c"), str(tmp_path / "k"))
    options = {option for action in parser_of_vllm()._actions for option in action.option_strings}
    assert flags.OURS.keys() | flags.AROUND.keys() <= options
    refused = [name for name in options if flags.meant(name, flags.OURS) or flags.meant(name, flags.AROUND)]
    assert set(refused) == flags.OURS.keys() | flags.AROUND.keys(), "what is refused is no other flag's beginning"
    assert parser_of_vllm().parse_args(["--api-k", "shown"]).api_key == ["shown"], "they may be shortened"


def test_every_variable_is_one_of_vllm() -> None:
    from vllm import envs

    set_by_us = environment.environment(Settings("m"), 1 if choice.is_for_cpus() else None, {})
    assert {name for name in set_by_us if name.startswith("VLLM_")} <= envs.environment_variables.keys()


def test_how_it_is_started() -> None:
    from vllm.entrypoints.launchers.api_server import entry

    assert callable(entry.main)
    if choice.has_command():
        from vllm.entrypoints.cli.main import main

        assert callable(main)
    assert choice.installed_version()


def test_the_names_in_its_requests() -> None:
    names = engine_state.known_names()
    assert {"prompt", "max_tokens", "cache_salt", "suffix"} <= names["/v1/completions"]
    assert {"messages", "tools", "chat_template", "cache_salt"} <= names["/v1/chat/completions"]
    assert {"prompt", "messages"} <= names["/tokenize"] and "tokens" in names["/detokenize"]


def test_what_the_engine_is_asked() -> None:
    from vllm.engine.protocol import EngineClient
    from vllm.v1.engine.async_llm import AsyncLLM

    assert inspect.iscoroutinefunction(EngineClient.is_sleeping)
    assert isinstance(AsyncLLM.errored, property)
    assert engine_state.metrics_registry().collect


def test_our_plugin_has_its_shape() -> None:
    from vllm.plugins.endpoint_plugins.interface import EndpointPlugin

    from twofour.serve.vllm_edge.plugin import EndpointPlugin as Ours

    assert isinstance(Ours(), EndpointPlugin) and Ours.name in environment.PLUGINS


def test_what_the_connections_lean_on() -> None:
    """vLLM keeps the server where the middleware finds it, and uvicorn asks its configuration for the protocol late."""
    from vllm.entrypoints.launchers.launcher import serve_http

    assert "app.state.server = server" in inspect.getsource(serve_http)
    assert "http_protocol_class(" in inspect.getsource(uvicorn.Server.startup)


def test_its_command_takes_the_model_first() -> None:
    assert parser_of_vllm().parse_args(["toy", "--middleware", "a.b"]).model_tag == "toy"
