"""Sizes that fill memory or never end are refused before anything is made; those that people use are not."""

import random
import resource
from pathlib import Path
from typing import Any

import pytest

from twofour.bench.comparison.experiment import Experiment
from twofour.bench.load.workload import Lengths, Limits, lengths
from twofour.bench.sweep.load import Load, Pace
from twofour.bench.traffic import bounds
from twofour.bench.traffic.lengths import Mixture
from twofour.bench.traffic.traces import Row, Trace
from twofour.bench.traffic.traffic import Rate, Traffic
from twofour.cli import main
from twofour.prune.errors import InputError
from twofour.prune.machine.processors import usable_cpus

URL = "http://127.0.0.1:1"  # nothing is sent there
GIB = 2**30


@pytest.fixture(autouse=True)
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "free_bytes", lambda: 8 * GIB)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--requests 300000000", "300,000,000 requests of about 128 tokens take 1,006.9 GiB before the first is sent"),
        ("--requests 64 --prompt-tokens 9999999", "64 requests of about 9,999,999 tokens"),
        ("--duration 1e9 --rate 10", "10,000,000,000 requests"),
        ("--duration 1e6 --rate 1..99", "50,000,000 requests"),
        ("--warmup 99999999", "100,000,063 requests"),
        ("--turns 1000000", "--turns is at most 10,000"),
        ("--turns 9000 --requests 9000", "before the first is sent"),
        ("--shared-prefix 0.5 --prefixes 1000000000", "--prefixes is at most 1,000,000"),
        ("--prompt-tokens 10000000000", "the mean is from 1 to 10,000,000"),
        ("--output-tokens 100000000000", "the mean is from 1 to 10,000,000"),
        ("--output-tokens 0.5x8+0.5x100000000000", "the mean is from 1 to 10,000,000"),
        ("--concurrency 1000000000 --requests 100000", "100,000 requests at a time need a connection each"),
        ("--rate 1 --requests 100000 --max-in-flight 1000000000", "lower --max-in-flight"),
        ("--rate 1e-9", "give more --rate"),
        ("--workers 100000", f"--workers is at most {len(usable_cpus())}"),
    ],
)
def test_run_refuses(flags: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "run", URL, "--model", "m", *flags.split()]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--concurrency 1 1000000000", "lower --concurrency"),
        ("--requests 300000000", "before the first is sent"),
        ("--rounds 1000000000", "--rounds is at most 1,000"),
        ("--turns 1000000 --requests 8", "--turns is at most 10,000"),
    ],
)
def test_sweep_refuses_before_it_asks_a_server(flags: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "sweep", URL, "--model", "m", *flags.split()]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "vast", [{"requests": 300_000_000}, {"concurrency": 10**9, "requests": 10**6}, {"rounds": 10**9}]
)
def test_compare_refuses_before_a_model_is_served(vast: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Experiment(**vast)


def test_a_process_has_so_many_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "getrlimit", lambda _: (256, 1064))
    bounds.files(1000, 1)
    bounds.files(2000, 2)
    for cpus, advised in ((1, False), (2, True)):
        monkeypatch.setattr(bounds, "usable_cpus", lambda cpus=cpus: list(range(cpus)))
        with pytest.raises(InputError, match="a process may have 1,064") as refused:
            bounds.files(1001, 1)
        assert ("--workers" in str(refused.value)) == advised
    monkeypatch.setattr(bounds, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    bounds.files(50_000, 1)


def test_what_is_used_passes() -> None:
    Traffic(100_000, 256).refuse_impossible()
    Traffic(None, rate=Rate(100.0), limits=Limits(3600.0)).refuse_impossible()
    Traffic(1000, 32, turns=Lengths(20), prompt_tokens=Lengths(2000)).refuse_impossible()
    Traffic(256, 4, prompt_tokens=Lengths(1_000_000)).refuse_impossible()
    Traffic(None, trace=Trace("t", [Row(float(at), 2000, 100) for at in range(9000)], 0)).refuse_impossible()
    Load(Traffic(1, 1), requests=50_000)
    Traffic(100, 70_000).refuse_impossible()
    Load(
        Traffic(1, rate=Rate(1.0), prompt_tokens=Lengths(16)), requests=3_000_000
    )  # the rate is that of each place of the sweep
    assert Pace(concurrency=10_000) and lengths("10000000")


@pytest.mark.parametrize(
    ("said", "most"), [("32768\t60999\n", 28_232), ("1024 65535", 64_512), ("", 60_000), (None, 60_000)]
)
def test_a_system_gives_out_so_many_ports(
    said: str | None, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tmp_path / "ip_local_port_range"
    if said is not None:
        given.write_text(said)
    monkeypatch.setattr(bounds, "PORT_RANGE", given)
    bounds.at_once(most, "--concurrency")
    with pytest.raises(InputError, match=f"ports for {most:,}; lower --concurrency"):
        bounds.at_once(most + 1, "--concurrency")


def test_a_sketch_needs_no_room_for_words() -> None:
    long = Traffic(2000, 4, prompt_tokens=Lengths(5_000_000))
    assert len(long.sketch().requests) == 2000
    with pytest.raises(InputError, match="2,000 requests of about 5,000,000 tokens"):
        long.schedule()
    with pytest.raises(InputError, match="300,000,000 requests take"):
        Traffic(300_000_000, 4).sketch()


@pytest.mark.parametrize("turns", [Lengths(12), Lengths(8, 0.6), Mixture((0.9, 0.1), (Lengths(1), Lengths(40, 0.5)))])
def test_what_was_said_before_is_that_of_sessions_as_they_are_drawn(turns: Lengths | Mixture) -> None:
    traffic = Traffic(1, 1, turns=turns, prompt_tokens=Lengths(100), output_tokens=Lengths(50))
    draw = random.Random(3)
    drawn = [turns.draw(draw) for _ in range(20_000)]
    sent = sum(count * 100 + 150 * count * (count - 1) / 2 for count in drawn) / sum(drawn)
    assert traffic._sent_tokens == pytest.approx(sent, rel=0.1)


def test_a_trace_is_judged_by_its_own_lengths() -> None:
    with pytest.raises(InputError, match="2 requests of about 500,000,001 tokens"):
        Traffic(None, trace=Trace("t", [Row(0.0, 10**9, 1), Row(1.0, 2, 1)], 0)).refuse_impossible()


def test_shared_beginnings_are_made_when_they_are_needed() -> None:
    few = Traffic(40, 4, shared_prefix=0.5, prefixes=1_000_000, prompt_tokens=Lengths(20)).schedule()
    assert len({request.family for request in few.requests}) == 40
