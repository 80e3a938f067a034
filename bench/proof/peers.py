"""Other load testers under the same load: `vllm bench serve`, GuideLLM and AIPerf, each in an environment of its own.

`make peers` installs them. What each says is read from its own file, under its own definitions; what the mock saw of it
is the truth that it is held against.
"""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PEER_S = 180.0
_VLLM = (
    "import argparse; from vllm.benchmarks.serve import add_cli_args, main; parser = argparse.ArgumentParser(); "
    "add_cli_args(parser); main(parser.parse_args())"
)


@dataclass(frozen=True)
class Figures:
    """What a load tester says, in seconds. `tpot` is without the first token, `tpot_incl` with it."""

    requests_per_s: float | None = None
    tokens_per_s: float | None = None
    ttft: float | None = None
    tpot: float | None = None
    tpot_incl: float | None = None
    e2e: float | None = None


@dataclass(frozen=True)
class Asked:
    """A closed loop of requests of one size; tokenizer: a model folder, for those who make prompts with it."""

    requests: int
    streams: int
    prompt: int
    output: int
    tokenizer: Path


@dataclass(frozen=True)
class Peer:
    """python: of its environment. command: for an address, a load, and a folder for its files."""

    name: str
    python: Path
    command: Callable[[Path, str, Asked, Path], list[str]]
    read: Callable[[Path], Figures]


class NoAnswer(Exception):
    """A peer that is not installed, or did not do it: why."""


def ask(peer: Peer, url: str, load: Asked, folder: Path) -> Figures:
    """Let a peer load the server at `url`. Raises NoAnswer."""
    if not peer.python.exists():
        raise NoAnswer("not installed")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            peer.command(peer.python.parent.absolute(), url, load, folder),
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,
        )
        status = _ended(process)
    if status:
        raise NoAnswer("took too long" if status == -signal.SIGKILL else f"ended with status {status}")
    try:
        return peer.read(folder)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise NoAnswer(f"wrote no figures ({error!r})") from error


def _ended(process: "subprocess.Popen[bytes]") -> int:
    """Its status; what takes too long is killed with all that it started."""
    try:
        return process.wait(_PEER_S)
    except subprocess.TimeoutExpired:
        return -signal.SIGKILL
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def peers(environments: Path, vllm: Path) -> list[Peer]:
    """Where `make peers` and `make vllm` have put them."""
    return [
        Peer("vLLM", vllm / "bin" / "python", _vllm, _vllm_figures),
        Peer("GuideLLM", environments / "guidellm" / "bin" / "python", _guidellm, _guidellm_figures),
        Peer("AIPerf", environments / "aiperf" / "bin" / "python", _aiperf, _aiperf_figures),
    ]


def _vllm(binaries: Path, url: str, load: Asked, folder: Path) -> list[str]:
    return [
        *(str(binaries / "python"), "-c", _VLLM, "--backend", "openai", "--base-url", url),
        *("--endpoint", "/v1/completions", "--model", "mock", "--tokenizer", str(load.tokenizer)),
        *("--dataset-name", "random", "--random-input-len", str(load.prompt), "--random-output-len", str(load.output)),
        *("--num-prompts", str(load.requests), "--max-concurrency", str(load.streams), "--ignore-eos"),
        *("--save-result", "--result-dir", str(folder), "--result-filename", "vllm.json", "--disable-tqdm"),
        *("--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "50,99"),
    ]


def _vllm_figures(folder: Path) -> Figures:
    said = json.loads((folder / "vllm.json").read_text())
    if said["failed"]:
        raise ValueError(f"{said['failed']} requests failed")
    ms = {name: said[f"mean_{name}_ms"] / 1000 for name in ("ttft", "tpot", "e2el")}
    rates = said["request_throughput"], said["output_throughput"]
    return Figures(*rates, ms["ttft"], ms["tpot"], None, ms["e2el"])


def _guidellm(binaries: Path, url: str, load: Asked, folder: Path) -> list[str]:
    return [
        *(str(binaries / "guidellm"), "run", "--backend", f"kind=openai_http,target={url},model=mock"),
        *("--profile", f"kind=concurrent,streams={load.streams}"),
        *("--constraint", f"kind=max_requests,count={load.requests}"),
        *("--data", f"kind=synthetic_text,prompt_tokens={load.prompt},output_tokens={load.output}"),
        *("--tokenizer", f"kind=huggingface_auto,model={load.tokenizer}"),
        *("--output", f"kind=json,path={folder / 'guidellm.json'}", "--disable-console"),
    ]


def _guidellm_figures(folder: Path) -> Figures:
    metrics = json.loads((folder / "guidellm.json").read_text())["benchmarks"][0]["metrics"]

    def mean(name: str) -> float:
        return float(metrics[name]["successful"]["mean"])

    return Figures(
        mean("requests_per_second"),
        mean("output_tokens_per_second"),
        mean("time_to_first_token_ms") / 1000,
        mean("inter_token_latency_ms") / 1000,  # its name for it
        mean("time_per_output_token_ms") / 1000,
        mean("request_latency"),
    )


def _aiperf(binaries: Path, url: str, load: Asked, folder: Path) -> list[str]:
    return [
        *(str(binaries / "aiperf"), "profile", "--model", "mock", "--url", url, "--endpoint-type", "completions"),
        *("--streaming", "--tokenizer", str(load.tokenizer), "--concurrency", str(load.streams)),
        *("--request-count", str(load.requests), "--isl", str(load.prompt), "--osl", str(load.output)),
        *("--extra-inputs", "ignore_eos:true", "--use-server-token-count", "--artifact-dir", str(folder)),
        *("--ui", "none", "--no-gpu-telemetry", "--no-server-metrics"),
    ]


def _aiperf_figures(folder: Path) -> Figures:
    said: dict[str, Any] = json.loads((folder / "profile_export_aiperf.json").read_text())

    def mean(name: str) -> float:
        return float(said[name]["avg"])

    return Figures(
        mean("request_throughput"),
        mean("output_token_throughput"),
        mean("time_to_first_token") / 1000,
        mean("inter_token_latency") / 1000,  # its name for it
        None,
        mean("request_latency") / 1000,
    )
