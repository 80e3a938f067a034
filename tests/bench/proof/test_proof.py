import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from twofour.bench.proof import __main__ as verb
from twofour.bench.proof import proof, weight
from twofour.bench.proof.mock import Script
from twofour.bench.proof.peers import Figures, Peer
from twofour.bench.proof.proof import Others, Row
from twofour.bench.proof.proof_table import table
from twofour.prune.errors import OutputError


def test_a_promise_is_kept_up_to_its_limit_and_unknown_without_a_value() -> None:
    assert Row("H3", "x", 0.0015, 0.0015, "s").passed and not Row("H3", "x", 0.0016, 0.0015, "s").passed
    assert Row("H1", "x", 1500, 1500, "/s", most=False).passed and not Row("H1", "x", 1499, 1500, "/s", False).passed
    covers = [Row("H8", "x", value, 0.9, "share", False, below=0.98).passed for value in (0.89, 0.9, 0.98, 0.99)]
    assert covers == [False, True, True, False]
    assert Row("H5", "x", None, 1, "s").passed is None


def written(*rows: Row, **more: Any) -> dict[str, Any]:
    found = {"hardware": {"summary": "a machine"}, "client_and_mock_apart": True, "cpu_pressure": 0.01}
    return {
        **found,
        "silent_peers": {},
        "rows": [asdict(r) | {"passed": r.passed} for r in rows],
        "valid": True,
        **more,
    }


def test_times_are_read_in_the_unit_of_their_size() -> None:
    said = table(written(Row("P5", "x", 106.658, 120.0, "s"), Row("H3", "y", 0.0007, 1.5, "s"))).splitlines()
    assert [line.split() for line in said if line.startswith(("P5", "H3"))] == [
        ["P5", "x", "106.66", "s", "<=", "120.00", "s", "passed"],
        ["H3", "y", "0.70", "ms", "<=", "1.50", "s", "passed"],
    ]


def test_the_table_shows_peers_beside_us() -> None:
    rows = [
        Row("H1", "requests", 1700.0, 1500, "/s", False, {"vLLM": 718.0, "AIPerf": None}),
        Row("H3", "added", 0.0007, 0.0015, "s", note="of 200"),
    ]
    said = table(written(*rows, silent_peers={"AIPerf, 4 streams": "not installed"})).splitlines()
    assert [line.split() for line in said if line.startswith(("H1", "H3"))] == [
        ["H1", "requests", "1,700", ">=", "1,500", "passed", "-", "718"],
        ["H3", "added", "0.70", "ms", "<=", "1.50", "ms", "passed"],
    ]
    assert "       of 200" in said and "AIPerf, 4 streams said nothing: not installed" in said
    assert said[-1] == "PASSED"
    assert "do not quote" not in "".join(said)
    assert "do not quote these figures" in table(written(*rows, cpu_pressure=0.5))


def test_a_file_of_before_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make bench-proof` writes to the one that the repository keeps; a folder that is not there is found first."""
    out = tmp_path / "proof.json"
    out.write_text("of before")
    monkeypatch.setattr(verb, "prove", lambda *_: written(Row("U1", "new", 1.0, 2, "s")))
    words = ["proof", "--tokenizer", str(tmp_path), "--out"]
    monkeypatch.setattr(sys, "argv", [*words, str(out)])
    assert verb.main() == 0 and json.loads(out.read_text())["rows"][0]["what"] == "new"
    monkeypatch.setattr(sys, "argv", [*words, str(tmp_path / "none" / "proof.json")])
    with pytest.raises(OutputError, match="is no folder"):
        verb.main()


def test_a_peer_is_held_against_the_truth_of_its_own_mock(tmp_path: Path) -> None:
    ours = [sys.executable, "-m", "twofour", "bench", "run", "--requests", "6", "--json", "--out", "run.json"]

    def command(_: Path, url: str, *rest: object) -> list[str]:
        return [sys.executable, "-c", f"import subprocess; subprocess.run({[*ours, url]!r})"]

    def read(folder: Path) -> Figures:
        return Figures(ttft=1.0) if (folder / "run.json").exists() else Figures()

    silent: dict[str, str] = {}
    asked = [Peer("twofour", Path(sys.executable), command, read), Peer("none", tmp_path, lambda *_: [""], read)]
    others = Others(asked[:1], tmp_path, None, silent).ask(Script(first_token_s=0.02, token_s=0.004), 6, 4, 8, 8)
    assert others["twofour"].figures == Figures(ttft=1.0)
    assert others["twofour"].ttft >= 0.018 and others["twofour"].tpot >= 0.003
    missing = [Peer("none", tmp_path / "python", command, read)]
    assert Others(missing, tmp_path, None, silent).ask(Script(), 6, 4, 8, 8) == {}
    assert silent == {"none, 4 streams": "not installed"}


def test_the_most_that_peers_differ() -> None:
    assert proof._most({"a": 0.1, "b": None, "c": 0.3}) == 0.3 and proof._most({}) is None
    assert proof._apart(1.1, 1.0) == pytest.approx(0.1) and proof._apart(None, 1.0) is proof._apart(1.0, None) is None


def test_the_load_tester_is_light() -> None:
    assert 0 < weight.extra_bytes("bench") < 30e6
    assert "uvloop" in weight._needed("twofour", "bench") - weight._needed("twofour", "")
    lean = "import sys; from twofour.bench.load import run, client; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", lean], check=False).returncode == 0
    lean = "import sys; from twofour.bench.proof import proof; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", lean], check=False).returncode == 0
