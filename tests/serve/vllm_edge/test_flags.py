"""Our flags in vLLM's words: which they become, which are refused, and what goes on as it is. No vLLM is needed."""

import argparse
import json
from pathlib import Path

import pytest

from twofour.prune.errors import InputError
from twofour.serve.commands.serve import add_arguments, chosen
from twofour.serve.vllm_edge import flags


def parse(*words: str, passed_on: tuple[str, ...] = ()) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(["model", "--engine", "vllm", *words])
    args.passed_on = list(passed_on)
    return args


def pairs(words: list[str]) -> dict[str, str]:
    return {word: after for word, after in zip(words, [*words[1:], ""], strict=True) if word.startswith("--")}


def test_what_is_always_set() -> None:
    given = pairs(flags.arguments(parse(), 8024, command=True))
    assert given["--middleware"] == "twofour.serve.vllm_edge.middleware.Edge"
    assert (given["--host"], given["--port"], given["--served-model-name"]) == ("127.0.0.1", "8024", "model")
    assert (given["--max-num-queued-reqs"], given["--max-num-queued-tokens"]) == ("256", "4000000")
    assert (given["--shutdown-timeout"], given["--sse-keep-alive-interval"]) == ("30", "15")
    assert given["--h11-max-incomplete-event-size"] == "65536"
    assert {"--disable-fastapi-docs", "--disable-uvicorn-access-log"} <= given.keys()
    assert not {"--dtype", "--max-num-seqs", "--max-model-len", "--no-enable-prefix-caching"} & given.keys()


def test_the_model_stands_where_each_way_to_start_wants_it() -> None:
    assert flags.arguments(parse(), 1, command=True)[:2] == ["serve", "model"]
    assert flags.arguments(parse(), 1, command=False)[:2] == ["--model", "model"]


def test_what_has_a_counterpart(tmp_path: Path) -> None:
    words = "--revision r --dtype float16 --max-model-len 100 --max-num-seqs 7 --max-num-batched-tokens 300"
    more = "--no-prefix-cache --no-cuda-graphs --max-queue 9 --max-queue-tokens 99 --drain-s 2.5 --sse-keep-alive-s 0"
    tls = ("--ssl-certfile", str(tmp_path / "c.pem"))
    words_of_vllm = flags.arguments(parse(*words.split(), *more.split(), *tls), 1, command=True)
    given = pairs(words_of_vllm)
    assert (given["--revision"], given["--dtype"], given["--max-model-len"]) == ("r", "float16", "100")
    assert (given["--max-num-seqs"], given["--max-num-batched-tokens"]) == ("7", "300")
    assert (given["--max-num-queued-reqs"], given["--max-num-queued-tokens"]) == ("9", "99")
    assert (given["--shutdown-timeout"], given["--sse-keep-alive-interval"]) == ("3", "0")
    assert given["--compilation-config.cudagraph_mode"] == "NONE"
    assert "--no-enable-prefix-caching" in given
    assert given["--ssl-certfile"] == given["--ssl-keyfile"] == str(tmp_path / "c.pem")


REFUSED = [
    ("--device", "cpu"),
    ("--kernels", "cpu"),
    ("--lm-head", "int8"),
    ("--dense-values", "int8"),
    ("--tokens-per-minute", "5"),
    ("--sse-keep-alive-s", "0.5"),
]


@pytest.mark.parametrize(("flag", "value"), REFUSED)
def test_what_has_none_is_refused_by_name(flag: str, value: str) -> None:
    with pytest.raises(InputError, match=flag):
        flags.arguments(parse(flag, value), 1, command=True)


def test_every_flag_of_the_verb_is_mapped_refused_or_the_edges() -> None:
    """A new flag must not be ignored in silence."""
    edge = {
        "api_key_file",
        "protect_metrics",
        "requests_per_minute",
        "cors_origin",
        "deadline_s",
        "pre_drain_s",
        "otlp_endpoint",
        "no_ui",
    }
    mapped = {"host", "port", "served_model_name", "max_queue", "max_queue_tokens", "drain_s", "sse_keep_alive_s"}
    mapped |= {"no_prefix_cache", "no_cuda_graphs", "ssl_certfile", "ssl_keyfile", "threads", *flags.SAME}
    known = edge | mapped | flags.REFUSED.keys() | {"model", "engine", "passed_on"}
    assert set(vars(parse())) == known


def test_flags_after_two_dashes_come_last_and_unchanged() -> None:
    more = ("--tensor-parallel-size", "2", "--compilation-config", json.dumps({"mode": 0}))
    assert tuple(flags.arguments(parse(passed_on=more), 1, command=True)[-4:]) == more


@pytest.mark.parametrize(
    "word",
    [
        *("--api-key", "--api_key=SECRET", "--port=5", "--uds", "--served-model-name"),
        *("--api-k", "--hos", "--shutdown_t=5"),
    ],
)
def test_what_must_stand_before_two_dashes(word: str) -> None:
    with pytest.raises(InputError, match="before --") as caught:
        flags.arguments(parse(passed_on=(word,)), 1, command=True)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("word", ["--root-path=/api", "--root", "--grpc", "--grpc_port", "--gr"])
def test_what_would_go_around_the_edge(word: str) -> None:
    with pytest.raises(InputError, match="cannot be passed on"):
        flags.arguments(parse(passed_on=(word,)), 1, command=True)


def test_nothing_is_passed_on_to_our_own_engine() -> None:
    args = parse(passed_on=("--enforce-eager",))
    args.engine = "embedded"
    with pytest.raises(InputError, match="--engine vllm"):
        chosen(args)
