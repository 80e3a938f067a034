"""The flags of `serve`: what they default to, what they mean, which are refused, and HTTPS through them."""

import argparse
import ssl
from pathlib import Path
from typing import Any

import certificates
import httpx
import pytest

from twofour.prune.errors import InputError
from twofour.serve.commands.arguments import engine_config, serve_config, tls_of
from twofour.serve.commands.serve import add_arguments
from twofour.serve.config import ServeConfig
from twofour.serve.edge.harden import EdgeConfig
from twofour.serve.edge.lifecycle import PROBES
from twofour.serve.edge.limits import Limits
from twofour.serve.engine.types import EngineConfig
from twofour.serve.http import server
from twofour.serve.http.listening import listen

STREAM = {"model": "m", "prompt": "hi", "max_tokens": 50, "stream": True}


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(arguments)


def test_defaults_are_safe(tmp_path: Any) -> None:
    args = parse(str(tmp_path / "model"))
    assert (args.host, args.port) == ("127.0.0.1", 8000)
    assert engine_config(args) == EngineConfig(str(tmp_path / "model"))
    assert serve_config(args) == ServeConfig(str(tmp_path / "model"), edge=EdgeConfig(open_paths=PROBES | {"/"}))
    assert tls_of(args) is None


@pytest.mark.parametrize("origin", ["https://a.example/", "a.example", "https://", "https://a b", ""])
def test_what_no_browser_calls_an_origin(origin: str) -> None:
    with pytest.raises(SystemExit):
        parse("model", "--cors-origin", origin)
    assert parse("model", "--cors-origin", "https://a.example:8443").cors_origin == ["https://a.example:8443"]


def test_an_empty_host_is_not_every_address() -> None:
    with pytest.raises(SystemExit):
        parse("model", "--host", "")


def test_a_folder_is_served_under_its_name(tmp_path: Any) -> None:
    (tmp_path / "model").mkdir()
    assert serve_config(parse(str(tmp_path / "model"))).served_model_name == "model"
    assert serve_config(parse("org/name")).served_model_name == "org/name"
    assert serve_config(parse("org/name", "--served-model-name", "x")).served_model_name == "x"


def test_every_flag_arrives(tmp_path: Any) -> None:
    keys = tmp_path / "keys"
    keys.write_text("k\n")
    flags = "--revision r --device cpu --dtype float32 --kernels reference --threads 2 --max-model-len 99 "
    flags += "--lm-head int8 --dense-values int8"
    args = parse(
        "org/m",
        *flags.split(),
        "--max-num-seqs",
        "3",
        "--max-queue",
        "5",
        "--api-key-file",
        str(keys),
        "--no-cuda-graphs",
        "--no-prefix-cache",
        "--max-num-batched-tokens",
        "64",
    )
    assert engine_config(args) == EngineConfig(
        model="org/m",
        revision="r",
        device="cpu",
        dtype="float32",
        kernels="reference",
        lm_head="int8",
        dense_values="int8",
        threads=2,
        max_model_len=99,
        max_num_seqs=3,
        max_num_batched_tokens=64,
        cuda_graphs=False,
        prefix_cache=False,
    )
    config = serve_config(args)
    assert config.max_queue == 5
    assert len(config.edge.api_keys) == 1


def test_every_flag_of_the_endpoint_arrives() -> None:
    numbers = "--max-queue 5 --max-queue-tokens 6 --deadline-s 7 --sse-keep-alive-s 0 --drain-s 8 --pre-drain-s 9"
    origins = "--cors-origin https://a --cors-origin https://b --protect-metrics --no-ui"
    assert serve_config(parse("m", *numbers.split(), *origins.split())) == ServeConfig(
        "m",
        edge=EdgeConfig(open_paths=frozenset({"/health", "/ready"}), cors_origins=("https://a", "https://b")),
        max_queue=5,
        max_queue_tokens=6,
        deadline_s=7,
        keep_alive_s=None,
        drain_s=8,
        pre_drain_s=9,
        ui=False,
    )


@pytest.mark.parametrize(
    "flags",
    [
        ["--port", "70000"],
        ["--port", "-1"],
        ["--threads", "0"],
        ["--max-queue", "x"],
        ["--drain-s", "-1"],
        ["--drain-s", "nan"],
        ["--device", "tpu"],
        ["--dtype", "int4"],
    ],
)
def test_bad_flags(flags: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit):
        parse("m", *flags)
    assert flags[0] in capsys.readouterr().err


def test_limits_are_those_of_keys(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("k\n")
    flags = ["--requests-per-minute", "3", "--tokens-per-minute", "500"]
    config = serve_config(parse("m", *flags, "--api-key-file", str(keys)))
    assert config.edge.limits == Limits(3, 500)
    with pytest.raises(InputError, match="--api-key-file"):
        serve_config(parse("m", *flags))


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    return certificates.made_in(tmp_path)


def test_https(launch: Any, certificate: Path) -> None:
    tls = tls_of(parse("m", "--ssl-certfile", str(certificate)))
    with listen("127.0.0.1", 0) as listener:
        assert server.url_of(listener, tls).startswith("https://")
    running = launch(tls=tls)
    trusted = ssl.create_default_context(cafile=certificate)
    with httpx.Client(base_url=running.url, verify=trusted, trust_env=False) as client:
        assert client.post("/v1/completions", json=STREAM).text.endswith("data: [DONE]\n\n")
    with httpx.Client(base_url=running.url, trust_env=False) as client, pytest.raises(httpx.ConnectError):
        client.get("/health")


def test_bad_certificates(certificate: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--ssl-certfile"):
        tls_of(parse("m", "--ssl-keyfile", str(certificate)))
    for bad in ("missing.pem", "cert.pem"):  # no file; no key in it
        with pytest.raises(InputError, match=bad):
            tls_of(parse("m", "--ssl-certfile", str(tmp_path / bad)))
