"""The charts of presets: where their lines go, and `bench report` that draws them."""

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from preset_runs import BEST, FAST

from twofour.bench.pruning import charts
from twofour.bench.pruning import presets as pruning
from twofour.bench.pruning.presets import table, with_gaps
from twofour.cli import main
from twofour.prune.label.charts import style


def test_a_line_goes_through_the_means_over_seeds() -> None:
    runs = [run | {"seed": seed, "minutes": run["minutes"] + seed} for run in (FAST, BEST) for seed in (0, 1)]
    runs += [FAST | {"values": "int8", "minutes": 99.0}]
    svg = charts.minutes_chart({"about": {"model": "m", "length": 512}, "runs": runs})
    points, _legend = re.findall(r'class="curve \w+" d="M([^"]+)"', svg)
    places = [tuple(map(float, pair.split(","))) for pair in points.split(" L")]
    assert len(places) == 2 and places[0][0] == places[1][0]  # the same minutes, 1.5 and 2.5
    zero, one = (float(re.search(rf'y="([\d.]+)" text-anchor="end">{at}<', svg)[1]) - 4 for at in ("0", "0.6"))  # type: ignore[index]
    assert places[0][1] == pytest.approx(zero) and places[1][1] == pytest.approx(
        zero + (one - zero) * 40 / 60 / 0.6, abs=0.2
    )
    assert ">fast<" in svg and ">best<" in svg and ">self, 64 x 512<" in svg


def test_a_line_goes_through_the_amounts_of_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, svg = tmp_path / "results.json", tmp_path / "chart.svg"
    runs = [run | {"samples": samples} for run in (FAST, BEST) for samples in (128, 32)]
    document = {"kind": pruning.KIND, "about": {"model": "m", "length": 500}, "runs": runs}
    results.write_text(json.dumps(document))
    assert main(["bench", "report", str(results), "--tokens-svg", str(svg)]) == 0
    text = svg.read_text()
    points, _legend = re.findall(r'class="curve \w+" d="M([^"]+)"', text)
    (first, low), (last, high) = (tuple(map(float, pair.split(","))) for pair in points.split(" L"))
    zero, most = (float(re.search(rf'x="([\d.]+)"[^>]*"middle">{at}<', text)[1]) for at in ("0", "60"))  # type: ignore[index]
    assert (first - zero, last - zero) == pytest.approx(((most - zero) * 16 / 60, (most - zero) * 64 / 60), abs=0.5)
    assert low == high and ">best, self<" in text and "fast, self" not in text
    results.write_text(json.dumps(document | {"runs": [FAST, BEST]}))
    assert main(["bench", "report", str(results), "--tokens-svg", str(svg)]) == 1
    assert "give bench pruning other --samples" in capsys.readouterr().err


def test_a_report_of_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, svg = tmp_path / "results.json", tmp_path / "chart.svg"
    document = {"kind": pruning.KIND, "about": {"model": "a<b", "length": 512}, "runs": [FAST, BEST]}
    results.write_text(json.dumps(document))
    assert main(["bench", "report", str(results), "--svg", str(svg)]) == 0
    assert capsys.readouterr().out == table(with_gaps(document)) + "\n"
    drawn = ElementTree.fromstring(svg.read_text())
    assert drawn.tag == "{http://www.w3.org/2000/svg}svg" and "a<b" in "".join(drawn.itertext())
    assert main(["bench", "report", str(results), "--html", str(tmp_path / "page.html")]) == 1
    assert "leave out --html" in capsys.readouterr().err


def test_names_have_a_row_each_and_the_last_point_its_name_inside() -> None:
    runs = [run | {"calibration": text} for text in ("self", "a-text-of-a-long-name.txt") for run in (FAST, BEST)]
    minutes = {"fast": 1.5, "best": 20.0}
    runs = [run | {"minutes": minutes[run["preset"]]} for run in runs]
    drawn = ElementTree.fromstring(str(charts.minutes_chart({"about": {"model": "m", "length": 512}, "runs": runs})))
    texts = list(drawn.iter("text"))
    rows = [float(text.attrib["y"]) for text in texts if " x 512" in (text.text or "")]
    assert len(set(rows)) == 2 and max(rows) < float(drawn.attrib["viewBox"].split()[3])
    assert {text.attrib["text-anchor"] for text in texts if text.text == "best"} == {"end"}
    assert [text.attrib["text-anchor"] for text in texts if text.text == "fast"] == ["start"]  # once for both


def test_six_lines_look_different() -> None:
    lines = {f"line {number}": [charts.Point(0, 0, "a"), charts.Point(1, number, "b")] for number in range(6)}
    looks = re.findall(r'class="curve (\w+)" d="M\d+,\d+ L', charts.track("t", "d", lines, ("x", "y")))
    assert len(set(looks)) == 6
    sheet = style()
    assert all(f"svg .curve.{look} {{" in sheet and f"svg .point.{look} {{" in sheet for look in looks)


def sized(run: dict[str, Any], size: int, **changed: Any) -> dict[str, Any]:
    return run | {"linear_bytes": size, "dense_linear_bytes": 1000} | changed


def test_loss_against_bytes_of_runs_budgets_and_what_is_beside_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, svg = tmp_path / "results.json", tmp_path / "chart.svg"
    runs = [sized(BEST, 562, seed=seed, kl_nats=0.4 + seed / 10) for seed in (0, 1)]
    runs += [sized(BEST, 316, values="int8"), sized(BEST, 400, budget=0.4, kl_nats=0.2)]
    arms = [sized(FAST, 281, name="dense 4-bit", kind="simulated", kl_nats=0.336)]
    document = {"kind": pruning.KIND, "about": {"model": "m", "text": "t", "length": 512}, "runs": runs, "arms": arms}
    results.write_text(json.dumps(document))
    assert main(["bench", "report", str(results), "--bytes-svg", str(svg)]) == 0
    drawn = svg.read_text()
    kinds = re.findall(r'class="mark (\w+(?: hollow)?)"', drawn)[:4]
    assert kinds == ["simulated", "sparse hollow", "sparse hollow", "mixture"]
    assert all(f">{name}<" in drawn for name in ("dense 4-bit", "2:4", "2:4 int8", "0.4"))
    assert "best, budget 0.4" in capsys.readouterr().out
    several = [runs[0], sized(FAST, 562, calibration="first", kl_nats=0.9)]
    names = charts.bytes_chart(document | {"runs": several})
    assert ">2:4, best, self x 64<" in names and ">2:4, fast, first x 64<" in names
    results.write_text(json.dumps(document | {"runs": [FAST, BEST], "arms": []}))
    assert main(["bench", "report", str(results), "--bytes-svg", str(svg)]) == 1
    assert "run bench pruning with --rivals" in capsys.readouterr().err


def test_budgets_are_on_no_line_of_presets() -> None:
    lines = [
        charts.minutes_chart({"about": {"model": "m", "length": 512}, "runs": runs})
        for runs in ([FAST, BEST], [FAST, BEST, sized(BEST, 400, budget=0.4, minutes=99.0)])
    ]
    assert lines[0] == lines[1]
