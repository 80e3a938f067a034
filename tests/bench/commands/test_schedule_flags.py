import argparse
import json
import re
from pathlib import Path

import pytest

from twofour.bench.commands import schedule_flags
from twofour.bench.load import schedule_file
from twofour.bench.load.workload import Lengths, Limits, Schedule, synthetic
from twofour.bench.traffic.lengths import Pause, tokens
from twofour.bench.traffic.traffic import Rate, Traffic
from twofour.prune.errors import InputError

MOONCAKE = """{"timestamp": 0, "input_length": 20, "output_length": 3}
{"timestamp": 500, "input_length": 9, "output_length": 4}
"""


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    schedule_flags.add_arguments(parser)
    return parser.parse_args(words)


def asked(*words: str) -> Traffic:
    return schedule_flags.traffic(parsed(*words))


def made(*words: str) -> Schedule:
    return schedule_flags.read(parsed(*words))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "trace.jsonl").write_text(MOONCAKE)
    (tmp_path / "pairs.csv").write_text("7,3\n8,4\n")
    (tmp_path / "said.jsonl").write_text(json.dumps({"prompt": "what is it"}) + "\n")
    return tmp_path


def test_without_flags_it_is_a_closed_loop_of_words() -> None:
    assert asked() == Traffic(requests=64, concurrency=4)
    assert made() == synthetic(64, Lengths(128, 0.3), Lengths(64, 0.3), 0, concurrency=4)


@pytest.mark.parametrize(
    ("words", "traffic"),
    [
        (["--concurrency", "9", "--requests", "5"], Traffic(5, 9)),
        (["--rate", "2.5"], Traffic(64, rate=Rate(2.5))),
        (["--rate", "2..20", "--arrivals", "constant"], Traffic(64, rate=Rate(2.0, 20.0, None))),
        (["--rate", "2", "--arrivals", "gamma:0.25"], Traffic(64, rate=Rate(2.0, None, 0.25))),
        (["--rate", "2", "--duration", "9"], Traffic(None, rate=Rate(2.0), limits=Limits(9.0))),
        (["--rate", "2", "--max-in-flight", "9"], Traffic(64, rate=Rate(2.0), limits=Limits(max_in_flight=9))),
        (
            ["--rate", "2", "--stop-over-saturated"],
            Traffic(64, rate=Rate(2.0), limits=Limits(stop_over_saturated=True)),
        ),
        (["--duration", "9", "--warmup", "0"], Traffic(None, 4, limits=Limits(9.0, warm_up=0))),
        (
            ["--prompt-tokens", "0.5x8+0.5x90", "--seed", "3"],
            Traffic(64, 4, prompt_tokens=tokens("0.5x8+0.5x90"), seed=3),
        ),
        (["--turns", "3~0.5", "--think", "2"], Traffic(64, 4, turns=Lengths(3, 0.5), think=Pause(2.0))),
        (["--shared-prefix", "0.5", "--prefixes", "4"], Traffic(64, 4, shared_prefix=0.5, prefixes=4)),
    ],
)
def test_what_the_flags_say(words: list[str], traffic: Traffic) -> None:
    assert asked(*words) == traffic


def test_a_trace_says_when_and_beside_a_concurrency_how_long(files: Path) -> None:
    trace = ["--trace", str(files / "trace.jsonl")]
    assert [request.at_s for request in made(*trace, "--speed-up", "5").requests] == [0.0, 0.1]
    closed = made(*trace, "--concurrency", "2")
    assert closed.concurrency == 2 and [request.output_tokens for request in closed.requests] == [3, 4]
    lengths = made("--trace", str(files / "pairs.csv"))
    assert lengths.concurrency == 4 and [request.prompt_tokens for request in lengths.requests] == [7, 8]


def test_lengths_and_texts_of_files(files: Path) -> None:
    drawn = made("--lengths", str(files / "pairs.csv"), "--requests", "40")
    assert {(request.prompt_tokens, request.output_tokens) for request in drawn.requests} == {(7, 3), (8, 4)}
    texts = made("--prompts", str(files / "said.jsonl"), "--requests", "2", "--output-tokens", "6", "--keep-shared")
    assert [(r.prompt, r.output_tokens, r.family) for r in texts.requests] == [("what is it", 6, "all")] * 2


def test_a_schedule_is_replayed_as_it_was(files: Path) -> None:
    first = made("--rate", "3", "--requests", "5", "--turns", "2")
    schedule_file.write(first, files / "s.jsonl")
    assert made("--schedule", str(files / "s.jsonl")) == first
    with pytest.raises(InputError, match="leave --rate, --requests, --turns away"):
        made("--schedule", str(files / "s.jsonl"), "--rate", "3", "--requests", "5", "--turns", "2")


@pytest.mark.parametrize(
    "words",
    [
        "--trace trace.jsonl --prompts said.jsonl",
        "--trace trace.jsonl --lengths pairs.csv",
        "--trace trace.jsonl --prompt-tokens 9",
        "--trace trace.jsonl --rate 3",
        "--trace trace.jsonl --turns 3",
        "--trace trace.jsonl --shared-prefix 0.5",
        "--lengths pairs.csv --output-tokens 9",
        "--prompts said.jsonl --prompt-tokens 9",
        "--prompts said.jsonl --shared-prefix 0.5",
        "--speed-up 2",
        "--keep-shared",
        "--tokenizer said.jsonl",
        "--think 2",
        "--prefixes 2",
        "--arrivals constant",
        "--arrivals constant --concurrency 2",
        "--max-in-flight 3",
        "--stop-over-saturated",
        "--trace trace.jsonl --concurrency 2 --stop-over-saturated",
        "--rate 2 --max-in-flight 3 --stop-over-saturated",
    ],
)
def test_flags_that_would_do_nothing_beside_another_are_refused(files: Path, words: str) -> None:
    with pytest.raises(InputError, match="leave one away"):
        made(*(str(files / word) if (files / word).exists() else word for word in words.split()))


@pytest.mark.parametrize(
    "words",
    [
        "--rate x",
        "--rate 0",
        "--rate 2..",
        "--rate 2..x",
        "--rate 2 --arrivals even",
        "--rate 2 --arrivals gamma:x",
        "--rate 2 --arrivals gamma:0",
        "--rate 2 --arrivals gamma",
        "--duration 0",
        "--duration inf",
        "--rate 2 --max-in-flight 0",
        "--warmup -1",
        "--requests 0",
        "--concurrency 0",
        "--prompt-tokens 4",
        "--turns x",
        "--turns 2 --think -1",
        "--shared-prefix 1",
        "--trace none",
        "--prompts none",
    ],
)
def test_impossible_values_are_refused(words: str) -> None:
    with pytest.raises(InputError):
        made(*words.split())


def test_all_flags_are_documented() -> None:
    page = (Path(__file__).parents[3] / "docs" / "load-testing.md").read_text()
    known = argparse.ArgumentParser(add_help=False)
    schedule_flags.add_arguments(known)
    assert set(re.findall(r"--[a-z][a-z-]+", known.format_help())) <= set(re.findall(r"--[a-z][a-z-]+", page))
