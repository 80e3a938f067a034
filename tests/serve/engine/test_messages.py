import json
from dataclasses import fields

import pytest

from twofour.serve.engine.messages import (
    Cancel,
    Command,
    Report,
    decode_command,
    decode_config,
    decode_news,
    decode_report,
    decode_start,
    encode,
    encode_command,
)
from twofour.serve.engine.types import (
    EngineConfig,
    EngineInfo,
    Failure,
    Finish,
    Logprob,
    Piece,
    Prompt,
    Sampling,
    Stats,
    StepRecord,
)

FULL = Sampling(
    max_tokens=9,
    min_tokens=2,
    temperature=0.3,
    top_k=4,
    top_p=0.9,
    min_p=0.1,
    presence_penalty=0.1,
    frequency_penalty=0.2,
    repetition_penalty=1.1,
    logit_bias={7: -1.5, 0: 2.0},
    seed=2**64 - 1,
    stop_token_ids=(3, 4),
    ignore_eos=True,
    logprobs=0,
    prompt_logprobs=2,
    grammar="{}",
)
INFO = EngineInfo(
    "m",
    8,
    9,
    (1, 2),
    16,
    64,
    5,
    4,
    {"dense": 3},
    "cpu",
    "bfloat16",
    True,
    ("a note",),
    6,
    7,
    "fused",
    "a reason",
    "int8",
    "bfloat16",
    StepRecord(1, 2, 3, 0.5),
    10,
    11,
    12,
    False,
)
PIECES = (
    Piece("plain", (4,)),
    Piece(
        "full",
        (4, 5),
        (Logprob(4, -0.5, ((4, -0.5), (1, float("-inf")))), Logprob(5, -0.25)),
        (None, Logprob(6, -1.0, ((6, -1.0),))),
        Finish.STOP,
        5,
        "an error",
        Failure.NOT_FINITE,
        16,
        0.5,
        0.25,
    ),
)


def test_the_examples_use_every_field() -> None:
    for example in (FULL, INFO, PIECES[1]):
        defaults = [f.name for f in fields(example) if getattr(example, f.name) == f.default]
        assert defaults == []


@pytest.mark.parametrize(
    "command",
    [Prompt("a", (1, 2), FULL, "a salt"), Prompt("b", (), Sampling(max_tokens=0)), Cancel("c"), None],
)
def test_commands_arrive_as_they_were(command: Command | None) -> None:
    assert decode_command(encode_command(command)) == command


@pytest.mark.parametrize("step", [None, StepRecord(1, 2, 3, 0.5)])
def test_reports_arrive_as_they_were(step: StepRecord | None) -> None:
    report = Report(PIECES, Stats(running=3, steps=7), step)
    assert decode_report(encode({"report": report})) == report


def test_news_are_reports_or_how_much_begins() -> None:
    assert decode_news(encode({"begun": 512})) == 512
    report = Report((), Stats(running=1), StepRecord(1, 2, 3, 0.5))
    assert decode_news(encode({"report": report})) == report


def test_the_start_arrives_as_it_was() -> None:
    config = EngineConfig("m", threads=2, kv_tokens=64, cuda_graphs=False, prefix_cache=False, lm_head="int8")
    assert decode_config(encode(config)) == config
    assert decode_start(encode({"info": INFO})) == INFO
    assert decode_start(encode({"failed": "no such folder"})) == "no such folder"


def test_what_has_its_default_is_not_sent() -> None:
    sent = json.loads(encode({"report": Report((Piece("a", (4,)),), Stats())}))
    assert sent == {"report": {"pieces": [{"id": "a", "tokens": [4]}], "stats": {}}}
