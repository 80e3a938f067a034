"""New against base: what is read, by hand, how often chance alone alarms, and the verb's exit status."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench_findings import CLOSED, SPEEDS, findings, run
from queues import queued

from twofour.bench.comparison.document import document as compared
from twofour.bench.gate.evidence import Evidence, Sample, read
from twofour.bench.gate.judge import Allowed, judge, read_allowed
from twofour.bench.gate.table import table
from twofour.bench.load import run as single
from twofour.bench.load.service import Service
from twofour.bench.load.slo import parse
from twofour.bench.load.workload import Lengths, Schedule
from twofour.bench.sweep import visit
from twofour.bench.sweep.document import document as swept
from twofour.bench.sweep.ladder import climb
from twofour.bench.sweep.limit import find_limits
from twofour.bench.sweep.load import Load, Pace
from twofour.bench.targets.running import Running
from twofour.bench.traffic.traffic import Traffic
from twofour.cli import main
from twofour.prune.errors import InputError
from twofour.prune.progress import silent

TPOT = read_allowed("tpot=3%")
MACHINE = {"cpu": "a CPU", "cpus": 2, "gpus": [], "memory_bytes": 2**34}


def evidence(values: Sequence[float], seeds: Sequence[int] | None = None, name: str = "x.json") -> Evidence:
    """Runs of which the mean time per token is known."""
    samples = [
        Sample(seed, {"tpot": {"mean": value}, "output_tokens_per_s": 1 / value})
        for value, seed in zip(values, seeds or range(len(values)), strict=True)
    ]
    return Evidence(name, {"concurrency": 2}, None, [], {"": samples})


def verdict(base: Evidence, new: Evidence, allowed: Allowed = TPOT) -> str:
    return judge(base, new, [allowed]).verdict


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tpot=3%", Allowed("tpot", "tpot", "mean", 0.03)),
        ("ttft=5%", Allowed("ttft", "ttft", "p50", 0.05)),
        ("itl_gap_p95=2.5%", Allowed("itl_gap_p95", "itl_gap", "p95", 0.025)),
        ("ttft_sched=0%", Allowed("ttft_sched", "ttft_sched", "p50", 0.0)),
        ("max_rate=5%", Allowed("max_rate", "max_rate", None, 0.05)),
    ],
)
def test_what_is_allowed_is_read(text: str, expected: Allowed) -> None:
    assert read_allowed(text) == expected


@pytest.mark.parametrize(
    "text", ["tpot", "tpot=3", "tpot=-3%", "tpt=3%", "ttft_p42=3%", "max_rate_p50=3%", "tpot=100%"]
)
def test_what_allows_nothing_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="allows nothing that is known"):
        read_allowed(text)


def test_by_hand() -> None:
    base, throughput = evidence([0.010, 0.020, 0.015]), read_allowed("output_tokens_per_s=3%")
    for factor, word in ((1.0, "pass"), (1.02, "pass"), (0.5, "pass"), (1.04, "regression"), (2.0, "regression")):
        new = evidence([value * factor for value in (0.010, 0.020, 0.015)])
        found = judge(base, new, [TPOT]).findings[0]  # the same factor in every pair: no width
        assert found.paired and found.ratio and found.ratio.point == pytest.approx(factor)
        assert found.verdict == word == verdict(base, new, throughput)
    noisy = evidence([0.010 * 1.10, 0.020 * 0.95, 0.015 * 1.02])
    assert verdict(base, noisy) == verdict(base, noisy, throughput) == "inconclusive"


def test_runs_pair_up_by_their_schedules_only_where_each_is_there_once() -> None:
    values = [0.010, 0.020, 0.015]
    turned = evidence([value * 1.1 for value in reversed(values)], [2, 1, 0])
    assert judge(evidence(values), turned, [TPOT]).findings[0].paired
    assert verdict(evidence(values), turned) == "regression"
    for seeds in ([0, 1, 3], [0, 0, 0]):  # of which the spread is that between schedules, too
        new = evidence([value * 1.1 for value in values], seeds)
        found = judge(evidence(values, seeds if len(set(seeds)) == 1 else None), new, [TPOT]).findings[0]
        assert (found.paired, found.verdict) == (False, "inconclusive")


def test_one_run_says_nothing_of_chance() -> None:
    found = judge(evidence([0.01]), evidence([0.02]), [TPOT])
    assert found.verdict == "inconclusive" and "one run has no interval" in table(found)


def test_a_figure_that_a_run_does_not_have_is_inconclusive() -> None:
    found = judge(evidence([0.01, 0.01]), evidence([0.01, 0.01]), [read_allowed("ttft_p95=3%")])
    assert found.verdict == "inconclusive" and "as a run does not have it" in table(found)


def alarms(slower: float, paired: bool, count: int = 2000) -> dict[str, int]:
    """Verdicts over many gates of 5 runs each, where runs vary by 2 % and their schedules by 10 %."""
    draw = random.Random(f"{slower} {paired}")
    words = dict.fromkeys(("pass", "inconclusive", "regression"), 0)
    for _ in range(count):
        hard = [draw.lognormvariate(0, 0.10 if paired else 0.0) for _ in range(5)]
        base, new = ([each * draw.lognormvariate(0, 0.02) for each in hard] for _ in range(2))
        seeds = None if paired else [0] * 5
        allowed = read_allowed("tpot=5%")
        words[verdict(evidence(base, seeds), evidence([each * slower for each in new], seeds), allowed)] += 1
    return words


@pytest.mark.parametrize("paired", [True, False])
def test_chance_alone_seldom_alarms_and_what_is_there_is_found(paired: bool) -> None:
    at_the_limit = alarms(1.05, paired)  # an interval of 95 % leaves out 2.5 % at either end
    assert at_the_limit["regression"] <= 0.035 * 2000 and at_the_limit["pass"] <= 0.035 * 2000
    same, worse = alarms(1.0, paired, 400), alarms(1.12, paired, 400)
    assert same["regression"] == 0 and same["pass"] > 300
    assert worse["pass"] == 0 and worse["regression"] > 300


def test_the_more_figures_the_wider_their_intervals() -> None:
    base, new = evidence([0.010, 0.011, 0.012]), evidence([0.0105, 0.0112, 0.0128])
    widths = []
    for several in (1, 4):
        ratio = judge(base, new, [TPOT] * several).findings[0].ratio
        assert ratio and ratio.low and ratio.high
        widths.append(ratio.high / ratio.low)
    assert widths[1] > widths[0]


def written(folder: Path, name: str, document: dict[str, Any]) -> Path:
    file = folder / name
    file.write_text(json.dumps(document | {"hardware": MACHINE}, default=str))
    return file


def of_runs(folder: Path, token_s: Sequence[float], **changed: Any) -> Path:
    folder.mkdir()
    for round_, each in enumerate(token_s):
        written(folder, f"{round_}.json", single.document(run(CLOSED, round_, each), with_records=False) | changed)
    return folder


def gate(*words: str | Path) -> int:
    return main(["bench", "gate", *map(str, words)])


def test_folders_of_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = [0.010, 0.012, 0.011]
    base = of_runs(tmp_path / "base", times)
    same, slower = (of_runs(tmp_path / name, [t * by for t in times]) for name, by in (("same", 1.01), ("slower", 1.2)))
    assert gate(base, same, "--max-regress", "tpot=3%", "ttft_p50=5%") == 0
    assert capsys.readouterr().out.endswith("\nPASS\n")
    assert gate(base, slower, "--max-regress", "tpot=3%", "output_tokens_per_s=3%") == 1
    assert "REGRESSION: worse by more than is allowed, beyond chance" in capsys.readouterr().out
    assert gate(base / "0.json", slower / "0.json", "--max-regress", "tpot=3%", "--json") == 2
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["verdict"]) == ("twofour.bench.gate", "inconclusive")
    assert found["findings"][0]["ratio"]["point"] == pytest.approx(1.2)


def test_what_cannot_be_compared_is_invalid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = of_runs(tmp_path / "base", [0.01, 0.01])
    load = json.loads((base / "0.json").read_text())["load"]
    others = {
        "is not valid by itself": of_runs(tmp_path / "spoiled", [0.01, 0.01], valid=False),
        "the loads differ in concurrency": of_runs(tmp_path / "load", [0.01, 0.01], load=load | {"concurrency": 7}),
        "the machines differ": written(tmp_path, "m.json", json.loads((base / "0.json").read_text())),
        "is no document of bench run": written(tmp_path, "other.json", {"kind": "twofour.bench.kernels"}),
        "holds no .json": tmp_path / "empty",
    }
    (tmp_path / "empty").mkdir()
    other_machine = json.loads(others["the machines differ"].read_text()) | {"hardware": MACHINE | {"cpus": 64}}
    others["the machines differ"].write_text(json.dumps(other_machine))
    for why, new in others.items():
        assert gate(base, new, "--max-regress", "tpot=3%") == 3
        said = capsys.readouterr()
        assert why in said.out + said.err
    assert gate(base, base, "--max-regress", "tpt=3%") == 3
    assert gate(base, base) == 3
    assert gate(base, tmp_path / "none.json", "--max-regress", "tpot=3%") == 3


def test_comparisons_are_gated_arm_by_arm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slower = SPEEDS | {"sparse": [each * 1.1 for each in SPEEDS["sparse"]]}
    base, new = (written(tmp_path, f"{i}.json", compared(findings(each))) for i, each in enumerate((SPEEDS, slower)))
    assert gate(base, base, "--max-regress", "e2e=3%") == 0
    capsys.readouterr()
    assert gate(base, new, "--max-regress", "e2e=3%") == 1
    rows = capsys.readouterr().out.splitlines()
    assert ["REGRESSION" in row for row in rows if ": e2e" in row] == [False, False, True]
    summary = json.loads(base.read_text())
    del summary["runs"]
    assert gate(written(tmp_path, "summary.json", summary), new, "--max-regress", "e2e=3%") == 3


SERVERS = [Running("a:1", Service("http://a:1", "m"))]
TRAFFIC = Traffic(prompt_tokens=Lengths(5), output_tokens=Lengths(5), seed=1)
LOAD = Load(TRAFFIC, slo=parse("ttft_p95=220ms"), requests=120)


@pytest.fixture
def sweeps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, float], Path]:
    """Ladders and searches of a simulated server, by how long its tokens take."""

    def sweep(kind: str, token_s: float) -> Path:
        def measured(service: Service, schedule: Schedule, progress: object) -> Any:
            return queued(service, schedule, token_s)

        monkeypatch.setattr(visit, "measure", measured)
        if kind == "ladder":
            told = swept(climb(SERVERS, LOAD, [Pace(1), Pace(2)], 3, silent), SERVERS, LOAD, 3)
        else:
            found, limits = find_limits(SERVERS, LOAD, 3, 0.01, silent)
            told = swept(found, SERVERS, LOAD, 3, limits)
        return written(tmp_path, f"{kind}-{token_s}.json", told | {"valid": True})

    return sweep


def test_ladders_and_searches_are_gated(
    sweeps: Callable[[str, float], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    ladders, searches = ([sweeps(kind, token_s) for token_s in (0.02, 0.025)] for kind in ("ladder", "search"))
    assert gate(ladders[0], ladders[0], "--max-regress", "tpot=3%", "goodput_per_s=3%") == 0
    capsys.readouterr()
    assert gate(*ladders, "--max-regress", "tpot=3%") == 1
    out = capsys.readouterr().out
    assert out.count("REGRESSION\n") == 2 and "1 at a time: tpot" in out and "2 at a time: tpot" in out
    assert gate(searches[0], searches[0], "--max-regress", "max_rate=5%") == 0
    assert gate(*searches, "--max-regress", "max_rate=5%") == 1
    capsys.readouterr()
    assert gate(ladders[0], searches[0], "--max-regress", "tpot=3%") == 3
    assert "has nothing of 1 at a time, 2 at a time" in capsys.readouterr().out


def test_a_search_that_ended_early_names_no_rate(sweeps: Callable[[str, float], Path]) -> None:
    file = sweeps("search", 0.02)
    told = json.loads(file.read_text())
    told["searches"][1]["why"] = "client"
    file.write_text(json.dumps(told))
    found = read(file)
    assert [sample.figures["max_rate"] is None for sample in found.places[""]] == [False, True, False]
    assert judge(found, found, [read_allowed("max_rate=5%")]).verdict == "inconclusive"
    one = replace(found, places={"": found.places[""][:1]})
    assert judge(one, one, [read_allowed("max_rate=5%")]).verdict == "inconclusive"
