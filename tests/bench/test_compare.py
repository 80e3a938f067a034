import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from twofour.bench import compare_command, servers
from twofour.bench.compare import compare
from twofour.bench.experiment import Experiment
from twofour.bench.run_command import INVALID
from twofour.bench.workload import Lengths
from twofour.prune.errors import InputError, OutputError

# `twofour.bench.compare` is the public function; its module goes by the same name.
comparison = importlib.import_module("twofour.bench.compare")
SCRIPT = Path(__file__).with_name("scripted_server.py")
SMALL = Experiment(requests=8, rounds=2, prompt_tokens=Lengths(8), output_tokens=Lengths(6))
ONE_ROUND = replace(SMALL, rounds=1)
TOKEN_S = {"dense": "0.004", "sparse": "0.002"}

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def command(folder: Path, model: str, *more: str) -> list[str]:
    started = [sys.executable, str(SCRIPT), model, "--token-s", TOKEN_S[model]]
    return [*started, "--engine-pid", str(folder / f"{model}.pid"), *more]


def ended(folder: Path) -> bool:
    """Whether both engines are gone, soon."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        if not any(alive(int(path.read_text())) for path in folder.glob("*.pid")):
            return True
        time.sleep(0.01)
    return False


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """`serve` is the scripted server; returns where its engines leave their numbers."""
    monkeypatch.setattr(servers, "serve_command", lambda model, threads: command(tmp_path, model))
    return tmp_path


@pytest.fixture
def urls(tmp_path: Path) -> Iterator[Callable[..., list[str]]]:
    """Start both scripted servers, not to be stopped by whom they are given to."""
    running = []

    def start(*more: str) -> list[str]:
        for model in TOKEN_S:
            context = servers.started(command(tmp_path, model, *more), tmp_path / f"{model}.log")
            running.append((context, context.__enter__()))
        return [server.url() for _, server in running]

    yield start
    for context, _ in running:
        context.__exit__(None, None, None)


def test_two_folders(scripted: Path) -> None:
    report = compare("dense", "sparse", SMALL, measure_quality=False)
    found = report.document
    assert ended(scripted)
    assert [(each["round"], each["arm"]) for each in found["runs"]] == [
        *((0, "dense"), (0, "sparse"), (1, "sparse"), (1, "dense")),
    ]
    asked = [[record["output_tokens"] for record in each["records"]] for each in found["runs"]]
    assert asked == [[6] * 8] * 4
    assert all(record["error"] is None for each in found["runs"] for record in each["records"])
    assert found["metrics"]["tpot_mean"]["ratio"]["point"] < 1
    assert found["memory"]["linear_bytes"]["ratio"] == 0.5
    assert found["arms"]["sparse"]["kernels"] == {"sparse": 210}
    assert found["samples"]["sparse"] == "<b>Paris</b>, says sparse."
    assert found["quality"] is None
    assert found["cost"]["price"]["name"].startswith("AWS") or os.cpu_count() > 192  # type: ignore[operator]


def test_the_idle_arm_is_frozen(scripted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def state(model: str) -> str:
        pid = (scripted / f"{model}.pid").read_text()
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]

    measure = comparison.measure

    def watched(load: Any, api_key: str | None) -> Any:
        idle = "sparse" if load.model == "dense" else "dense"
        until = time.monotonic() + 10
        while state(idle) != "T" and time.monotonic() < until:
            time.sleep(0.01)  # the signal has been sent; it takes effect soon
        seen.append((state(load.model), state(idle)))
        return measure(load, api_key)

    monkeypatch.setattr(comparison, "measure", watched)
    compare("dense", "sparse", SMALL, measure_quality=False)
    assert [idle for _, idle in seen] == ["T"] * 4
    assert all(busy in "SR" for busy, _ in seen)


def test_an_interrupted_comparison_stops_both(scripted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(comparison, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare("dense", "sparse", SMALL, measure_quality=False)
    assert len(list(scripted.glob("*.pid"))) == 2 and ended(scripted)


def test_two_urls_with_quality_through_logprobs(urls: Callable[..., list[str]], tmp_path: Path) -> None:
    report = compare(*urls(), ONE_ROUND)
    quality = report.document["quality"]
    assert quality["dense_perplexity"] == pytest.approx(7.389, abs=1e-3)  # exp 2, as scripted
    assert quality["sparse_perplexity"] == pytest.approx(12.182, abs=1e-3)  # exp 2.5
    assert 0.7 < quality["agreement"] < 0.8  # every fourth token is missed
    assert quality["kl"] is None
    assert report.document["placement"] is None and report.document["cost"]["price"] is None
    assert all(alive(int(path.read_text())) for path in tmp_path.glob("*.pid"))  # not ours to stop


def test_urls_that_say_little(urls: Callable[..., list[str]]) -> None:
    report = compare(*urls("--plain"), ONE_ROUND, measure_quality=False)
    assert report.document["memory"]["dense"] is None
    assert report.document["samples"]["dense"] is None
    assert "not measured" in report.table()


def test_a_text_for_urls(urls: Callable[..., list[str]], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("word " * 100)
    report = compare(*urls(), ONE_ROUND, text=text)
    assert report.document["quality"]["tokens"] == 99
    assert report.document["quality"]["text"] == str(text)


def test_a_folder_and_a_url_do_not_mix() -> None:
    with pytest.raises(InputError, match="two models or two URLs"):
        compare("folder", "http://127.0.0.1:1")


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    compare_command.add_arguments(parser)
    small = ["--requests", "8", "--rounds", "2", "--prompt-tokens", "8", "--output-tokens", "6"]
    return parser.parse_args([*arguments, *small])


def test_the_command(scripted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"baseline_perplexity": 10.0, "perplexity": 12.5, "kl_nats": 0.25, "agreement": 0.8}
    quality, out = scripted / "quality.json", scripted / "out"
    quality.write_text(json.dumps(figures | {"predictions": 99, "text": "a text"}))
    args = parsed(
        *("dense", "sparse", "--quality", str(quality), "--out", str(out), "--price-per-hour", "3.6", "--json")
    )
    status, before = compare_command.run(args), signal.getsignal(signal.SIGTERM)
    shown = json.loads(capsys.readouterr().out)
    assert status == (0 if shown["valid"] else INVALID)
    assert before is signal.SIG_DFL
    assert shown == json.loads((out / "report.json").read_text())
    assert shown["quality"]["perplexity"]["ratio"] == 1.25
    assert shown["cost"]["price"]["usd_per_hour"] == 3.6
    assert {path.name for path in out.iterdir()} == {
        *("report.json", "report.html", "server-dense.log", "server-sparse.log"),
    }
    with pytest.raises(OutputError, match=r"report\.json exists"):
        compare_command.run(args)


def test_a_rate_makes_it_an_open_loop() -> None:
    experiment = compare_command._experiment(parsed("a", "b", "--rate", "3"))
    assert (experiment.rate, experiment.concurrency) == (3.0, None)
    assert compare_command._experiment(parsed("a", "b")).concurrency == 2


TERMINATED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_compare as t
from twofour.bench import compare_command, servers
folder = Path({folder!r})
servers.serve_command = lambda model, threads: t.command(folder, model)
args = t.parsed("dense", "sparse", "--no-quality", "--out", str(folder / "out"))
args.requests = 100_000
compare_command.run(args)
"""


def test_sigterm_stops_the_servers_too(tmp_path: Path) -> None:
    program = TERMINATED.format(tests=str(SCRIPT.parent), folder=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("round 1"):
            break
    process.terminate()
    process.stderr.read()
    assert process.wait(60) == 128 + signal.SIGTERM
    process.stderr.close()
    assert len(list(tmp_path.glob("*.pid"))) == 2 and ended(tmp_path)
