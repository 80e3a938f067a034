"""Any number of arms, by the verb, with scripted servers in the place of ours."""

import argparse
import json
import sys
from pathlib import Path

import pytest
from processes import alive, soon

from twofour.bench.commands import INVALID
from twofour.bench.commands import compare as compare_command
from twofour.bench.targets import servers
from twofour.bench.targets.servers import Options
from twofour.prune.errors import InputError

SCRIPT = Path(__file__).parents[2] / "helpers" / "stand_in_server.py"
SMALL = ["--requests", "8", "--rounds", "2", "--prompt-tokens", "8", "--output-tokens", "6"]

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """`serve` is the scripted server, told apart by its flags or its folder's name; returns where the models are."""

    def serve_command(model: str, options: Options) -> list[str]:
        name = "rounded" if options.flags else Path(model).name
        pid = ["--engine-pid", str(tmp_path / f"{name}.pid")]
        return [sys.executable, str(SCRIPT), Path(model).name, "--token-s", "0.002", *pid, *options.flags]

    monkeypatch.setattr(servers, "serve_command", serve_command)
    for name, file in (("dense", "model.safetensors"), ("sparse", "model.twofour.safetensors")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).touch()
        (tmp_path / name / "config.json").write_text("{}")
    return tmp_path


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    compare_command.add_arguments(parser)
    return parser.parse_args([*arguments, *SMALL])


def evaluated(folder: Path, name: str, perplexity: float, kl: float) -> str:
    figures = {"baseline_perplexity": 10.0, "perplexity": perplexity, "kl_nats": kl, "agreement": 0.8}
    file = folder / f"{name}.json"
    file.write_text(json.dumps(figures | {"predictions": 99, "text": "a text"}))
    return f"{name}={file}"


def test_three_arms(scripted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = scripted / "out"
    words = [str(scripted / "dense"), f"int8={scripted}/dense", f"2of4={scripted}/sparse"]
    words += ["--arm-flags", "int8=--lm-head int8", "--price-per-hour", "3.6", "--json", "--out", str(out)]
    for name, perplexity, kl in (("int8", 10.1, 0.01), ("2of4", 15.0, 0.5)):
        words += ["--quality", evaluated(scripted, name, perplexity, kl)]
    status = compare_command.run(parsed(*words))
    shown = json.loads(capsys.readouterr().out)
    assert status == (0 if shown["valid"] else INVALID)
    assert shown == json.loads((out / "report.json").read_text())
    order = [(each["round"], each["arm"]) for each in shown["runs"]]
    assert order == [(0, "dense"), (0, "int8"), (0, "2of4"), (1, "2of4"), (1, "int8"), (1, "dense")]
    tpot = shown["metrics"]["tpot_mean"]["arms"]
    for name in ("int8", "2of4"):
        assert tpot[name]["ratio"]["point"] == pytest.approx(tpot[name]["value"] / tpot["dense"]["value"])
    assert shown["arms"]["int8"]["flags"] == ["--lm-head", "int8"] and shown["arms"]["2of4"]["kind"] == "sparse"
    assert shown["fronts"]["bytes"] == ["2of4", "dense"] and shown["quality"]["2of4"]["kl"] == 0.5
    assert len(shown["advice"]) == 1
    logs = {f"server-{name}.log" for name in ("dense", "int8", "2of4")}
    assert {path.name for path in out.iterdir()} == {"report.json", "report.html", *logs}
    assert soon(lambda: not any(alive(int(path.read_text())) for path in scripted.glob("*.pid")))


def test_two_arms_with_names_are_arms_of_their_own(scripted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"a={scripted}/dense", f"b={scripted}/sparse", "--no-quality", "--out", str(scripted / "out")]
    compare_command.run(parsed(*words))
    text = capsys.readouterr().out
    assert text.startswith("arms:  a  ") and "over a" in text and "torch dense" not in text


def test_what_does_not_go_together_is_refused(scripted: Path) -> None:
    dense, sparse = str(scripted / "dense"), str(scripted / "sparse")
    for words, said in {
        ("a=m", "b=n", "--lm-head", "int8"): "give --arm-flags NAME=FLAGS",
        ("a=m",): "give DENSE and SPARSE",
        (dense, sparse, "--quality", "a", "--quality", "b"): "two models have one loss",
    }.items():
        with pytest.raises(InputError, match=said):
            compare_command.run(parsed(*words, "--out", str(scripted / "out")))
    assert not (scripted / "out").exists()
