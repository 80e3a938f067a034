import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import itemgetter, truediv
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import pytest
from processes import alive, soon, state

import twofour.bench
from twofour.bench.commands import INVALID
from twofour.bench.commands import compare as compare_command
from twofour.bench.comparison import compare as comparison
from twofour.bench.comparison import served
from twofour.bench.comparison.compare import compare
from twofour.bench.comparison.experiment import Experiment
from twofour.bench.load.run import CutOff
from twofour.bench.load.workload import Lengths
from twofour.bench.targets import random_model, servers
from twofour.bench.targets.servers import Options
from twofour.prune.errors import InputError, OutputError

SCRIPT = Path(__file__).parents[2] / "helpers" / "stand_in_server.py"
SMALL = Experiment(requests=8, rounds=2, prompt_tokens=Lengths(8), output_tokens=Lengths(6))
ONE_ROUND = replace(SMALL, rounds=1)
TOKEN_S = {"dense": "0.004", "sparse": "0.002"}
TORCH_TOKEN_S = "0.008"

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def command(folder: Path, model: str, *more: str, kernels: str = "auto") -> list[str]:
    by_torch = kernels == "reference"
    started = [sys.executable, str(SCRIPT), model, "--token-s", TORCH_TOKEN_S if by_torch else TOKEN_S[model]]
    arm = "torch_dense" if by_torch else model
    return [*started, "--kernel", f"of {arm}", "--engine-pid", str(folder / f"{arm}.pid"), *more]


def ended(folder: Path) -> bool:
    """Whether all engines are gone, soon."""
    return soon(lambda: not any(alive(int(path.read_text())) for path in folder.glob("*.pid")))


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """`serve` is the scripted server; returns where its engines leave their numbers."""

    def serve_command(model: str, options: Options) -> list[str]:
        return command(tmp_path, model, kernels=options.kernels)

    monkeypatch.setattr(servers, "serve_command", serve_command)
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


def tpots(runs: Sequence[Mapping[str, Any]], arm: str) -> list[float]:
    """The mean time per output token of an arm, by round."""
    return [run["summary"]["tpot"]["mean"] for run in sorted(runs, key=itemgetter("round")) if run["arm"] == arm]


def test_two_folders(scripted: Path) -> None:
    report = compare("dense", "sparse", SMALL, measure_quality=False)
    found = report.document
    assert ended(scripted)
    assert [(each["round"], each["arm"]) for each in found["runs"]] == [
        *((0, "torch_dense"), (0, "dense"), (0, "sparse"), (1, "sparse"), (1, "dense"), (1, "torch_dense")),
    ]
    asked = [[record["output_tokens"] for record in each["records"]] for each in found["runs"]]
    assert asked == [[6] * 8] * 6
    loads = [(each["load"]["seed"], each["load"]["nonce"]) for each in found["runs"]]
    assert loads == [(0, "round 0")] * 3 + [(1, "round 1")] * 3  # servers that have seen nothing: the same texts
    assert all(record["error"] is None for each in found["runs"] for record in each["records"])
    by_arm = {name: tpots(found["runs"], name) for name in ("torch_dense", "dense", "sparse")}
    told = found["metrics"]["tpot_mean"]
    assert {name: told[name] for name in by_arm} == pytest.approx(
        {name: geometric_mean(each) for name, each in by_arm.items()}
    )
    assert told["ratio"]["point"] == pytest.approx(geometric_mean(map(truediv, by_arm["sparse"], by_arm["dense"])))
    to_torch = told["to_torch_dense"]["ratio"]["point"]
    assert to_torch == pytest.approx(geometric_mean(map(truediv, by_arm["sparse"], by_arm["torch_dense"])))
    assert found["memory"]["linear_bytes"]["ratio"] == 0.5
    assert {name: arm["kernels"] for name, arm in found["arms"].items()} == {
        name: {f"of {name}": 210} for name in ("torch_dense", "dense", "sparse")
    }
    assert found["baselines"]["torch_dense"]["kernels"] == {"of torch_dense": 210}
    assert found["baselines"]["best_dense"]["kernels"] == {"of dense": 210}
    assert found["samples"]["sparse"] == "<b>Paris</b>, says sparse."
    assert found["quality"] is None
    assert found["cost"]["price"]["name"].startswith("AWS") or os.cpu_count() > 192  # type: ignore[operator]


def test_the_idle_arms_are_frozen(scripted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def states() -> list[str | None]:
        return [state(int(path.read_text())) for path in sorted(scripted.glob("*.pid"))]  # dense, sparse, torch_dense

    measure = served.measure

    def watched(*asked: Any) -> Any:
        soon(lambda: states().count("T") == 2)  # the signal has been sent; it takes effect soon
        seen.append(states())
        return measure(*asked)

    monkeypatch.setattr(served, "measure", watched)
    compare("dense", "sparse", SMALL, measure_quality=False)
    frozen = [[state == "T" for state in each] for each in seen]
    torch_dense, dense, sparse = ([True, True, False], [False, True, True], [True, False, True])
    assert frozen == [torch_dense, dense, sparse, sparse, dense, torch_dense]


def test_an_interrupted_comparison_stops_all(scripted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(served, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare("dense", "sparse", SMALL, measure_quality=False)
    assert len(list(scripted.glob("*.pid"))) == 3 and ended(scripted)


def test_an_interrupted_comparison_reports_its_whole_rounds(scripted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure, done = served.measure, []

    def until_the_second_round(*asked: Any) -> Any:
        if len(done) == 4:
            raise CutOff(done[0])
        done.append(measure(*asked))
        return done[-1]

    monkeypatch.setattr(served, "measure", until_the_second_round)
    report = compare("dense", "sparse", SMALL, measure_quality=False)
    assert ended(scripted)
    assert [each["round"] for each in report.document["runs"]] == [0, 0, 0]
    assert report.cut_off and not report.valid
    assert "interrupted after 1 of 2 rounds" in report.table().replace("\n", " ")
    assert "INVALID: do not quote these numbers" in report.table()


def test_two_urls_with_quality_through_logprobs(urls: Callable[..., list[str]], tmp_path: Path) -> None:
    report = compare(*urls(), ONE_ROUND)
    quality = report.document["quality"]
    assert quality["dense_perplexity"] == pytest.approx(7.389, abs=1e-3)  # exp 2, as scripted
    assert quality["sparse_perplexity"] == pytest.approx(12.182, abs=1e-3)  # exp 2.5
    assert 0.7 < quality["agreement"] < 0.8  # every fourth token is missed
    assert quality["kl"] is None
    assert (
        len({each["load"]["nonce"] for each in report.document["runs"]}) == 2
    )  # may be one server: texts of their own
    assert report.document["placement"] is None and report.document["cost"]["price"] is None
    assert any("No price: the servers were running already" in note for note in report.document["notes"])
    assert all(alive(int(path.read_text())) for path in tmp_path.glob("*.pid"))  # not ours to stop


def test_urls_that_say_little(urls: Callable[..., list[str]]) -> None:
    report = compare(*urls("--plain"), ONE_ROUND, measure_quality=False)
    assert list(report.document["arms"]) == ["dense", "sparse"]
    assert report.document["baselines"] == {"torch_dense": None, "best_dense": None}
    assert "best dense would be is not known" in report.table().replace("\n", " ")
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
        *("report.json", "report.html", "server-torch_dense.log", "server-dense.log", "server-sparse.log"),
    }
    with pytest.raises(OutputError, match=r"report\.json exists"):
        compare_command.run(args)


def test_what_is_compared_must_be_said(tmp_path: Path) -> None:
    for arguments, said in {
        (): "give DENSE and SPARSE",
        ("dense",): "give DENSE and SPARSE",
        ("dense", "sparse", "--models", "m"): "give DENSE and SPARSE",
        ("dense", "sparse", "--random-weights", "smollm2-135m"): "makes both models",
        ("--random-weights", "smollm2-135m", "--text", "t"): "makes both models",
    }.items():
        with pytest.raises(InputError, match=said):
            compare_command.run(parsed(*arguments, "--out", str(tmp_path / "out")))
    assert list(tmp_path.iterdir()) == []


def test_random_weights_are_made_compared_and_thrown_away(
    scripted: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = []

    def pair(name: str, folder: Path, progress: object) -> tuple[str, str]:
        assert folder.is_dir()
        made.append((name, folder))
        return "dense", "sparse"

    monkeypatch.setattr(random_model, "pair", pair)
    monkeypatch.setattr(comparison.qualities, "of_models", lambda *_: pytest.fail("measures quality"))
    compare_command.run(parsed("--random-weights", "smollm2-135m", "--out", str(scripted / "out"), "--json"))
    shown = json.loads(capsys.readouterr().out)
    (name, folder) = made[0]
    assert shown["random_weights"] == name == "smollm2-135m" and not folder.exists()
    assert shown["quality"] is None
    assert any("weights are random, in the shape of smollm2-135m" in note for note in shown["notes"])


def test_what_is_rounded_at_load_is_asked_for_and_said(scripted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, made = [], servers.serve_command

    def serve_command(model: str, options: Options) -> list[str]:
        asked.append((model, options.kernels, list(options.flags)))
        return [*made(model, options), *options.flags]

    monkeypatch.setattr(servers, "serve_command", serve_command)
    report = compare("dense", "sparse", ONE_ROUND, measure_quality=False, rounding=["--lm-head", "int8"])
    flags = ["--lm-head", "int8"]
    assert asked == [("dense", "reference", []), ("dense", "auto", flags), ("sparse", "auto", flags)]
    assert any("Best dense and 2:4 were served with --lm-head int8" in note for note in report.document["notes"])
    with pytest.raises(InputError, match="start them with that"):
        compare("http://127.0.0.1:1", "http://127.0.0.1:2", rounding=flags)


def test_the_public_name_is_the_function() -> None:
    assert twofour.bench.compare is comparison.compare


def test_a_rate_makes_it_an_open_loop() -> None:
    experiment = compare_command._experiment(parsed("a", "b", "--rate", "3"))
    assert (experiment.rate, experiment.concurrency) == (3.0, None)
    assert compare_command._experiment(parsed("a", "b")).concurrency == 2


TERMINATED = """
import sys
from pathlib import Path
sys.path[:0] = {tests!r}
import test_compare as t
from twofour.bench.commands import compare as compare_command
from twofour.bench.targets import servers
folder = Path({folder!r})
servers.serve_command = lambda model, options: t.command(folder, model, kernels=options.kernels)
args = t.parsed("dense", "sparse", "--no-quality", "--out", str(folder / "out"))
args.requests = 100_000
compare_command.run(args)
"""


def test_sigterm_stops_the_servers_too(tmp_path: Path) -> None:
    tests = [str(Path(__file__).parent), str(SCRIPT.parent)]
    program = TERMINATED.format(tests=tests, folder=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("starting servers 3/3"):
            break
    process.terminate()
    process.stderr.read()
    assert process.wait(60) == 128 + signal.SIGTERM
    process.stderr.close()
    assert len(list(tmp_path.glob("*.pid"))) == 3 and ended(tmp_path)
