import json
import sys
import time
from pathlib import Path

import pytest

from twofour.bench.proof import peers
from twofour.bench.proof.peers import Asked, Figures, NoAnswer, Peer, ask

LOAD = Asked(24, 4, 32, 64, Path("/models/smol"))
METRICS = {"successful": {"mean": 1.0}}


def peer(code: str, tmp_path: Path) -> Peer:
    """One that runs a line of Python, and says what is in its file."""

    def read(folder: Path) -> Figures:
        return Figures(**json.loads((folder / "said.json").read_text()))

    return Peer("stand-in", Path(sys.executable), lambda *_: [sys.executable, "-c", code], read)


def test_a_peer_says_what_its_file_says(tmp_path: Path) -> None:
    found = ask(peer("open('said.json', 'w').write('{\"ttft\": 0.1}')", tmp_path), "http://x", LOAD, tmp_path)
    assert found == Figures(ttft=0.1)


def test_a_peer_that_says_nothing_is_named_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(NoAnswer, match="ended with status 3"):
        ask(peer("raise SystemExit(3)", tmp_path), "http://x", LOAD, tmp_path)
    with pytest.raises(NoAnswer, match="wrote no figures"):
        ask(peer("pass", tmp_path), "http://x", LOAD, tmp_path)
    with pytest.raises(NoAnswer, match="not installed"):
        ask(Peer("none", tmp_path / "python", lambda *_: [], lambda _: Figures()), "http://x", LOAD, tmp_path)


def test_a_peer_that_hangs_ends_with_all_that_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_PEER_S", 2.0)
    child = "import time; open('alive', 'a').write('.'); time.sleep(600)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    begun = time.monotonic()
    with pytest.raises(NoAnswer, match="took too long"):
        ask(peer(code, tmp_path), "http://x", LOAD, tmp_path)
    assert time.monotonic() - begun < 300


def test_each_peer_gets_the_same_load(tmp_path: Path) -> None:
    for each in peers.peers(tmp_path / "peers", tmp_path / "vllm"):
        words = " ".join(each.command(Path("/bin"), "http://127.0.0.1:1", LOAD, tmp_path))
        assert all(
            said in words for said in ("http://127.0.0.1:1", "/models/smol", "24", "=32" if "kind" in words else " 32")
        )
        assert "64" in words and str(tmp_path) in words and "mock" in words


def test_figures_are_read_by_their_definitions(tmp_path: Path) -> None:
    vllm, guide, aiperf = peers.peers(tmp_path, tmp_path)
    names = {"mean_ttft_ms": 100.0, "mean_tpot_ms": 10.0, "mean_e2el_ms": 730.0}
    said = {"failed": 0, "request_throughput": 5.0, "output_throughput": 320.0, **names}
    (tmp_path / "vllm.json").write_text(json.dumps(said))
    assert vllm.read(tmp_path) == Figures(5.0, 320.0, 0.1, 0.01, None, 0.73)
    (tmp_path / "vllm.json").write_text(json.dumps(said | {"failed": 2}))
    with pytest.raises(ValueError, match="2 requests failed"):
        vllm.read(tmp_path)
    values = {"requests_per_second": 5.0, "output_tokens_per_second": 320.0, "time_to_first_token_ms": 100.0}
    values |= {"inter_token_latency_ms": 10.0, "time_per_output_token_ms": 11.5, "request_latency": 0.73}
    metrics = {name: {"successful": {"mean": value}} for name, value in values.items()}
    (tmp_path / "guidellm.json").write_text(json.dumps({"benchmarks": [{"metrics": metrics}]}))
    assert guide.read(tmp_path) == Figures(5.0, 320.0, 0.1, 0.01, 0.0115, 0.73)
    values = {"request_throughput": 5.0, "output_token_throughput": 320.0, "time_to_first_token": 100.0}
    values |= {"inter_token_latency": 10.0, "request_latency": 730.0}
    (tmp_path / "profile_export_aiperf.json").write_text(json.dumps({n: {"avg": v} for n, v in values.items()}))
    assert aiperf.read(tmp_path) == Figures(5.0, 320.0, 0.1, 0.01, None, 0.73)
