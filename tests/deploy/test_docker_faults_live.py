"""Faults 25 and 33: little memory, and the faults of the server again in a container that may do almost nothing.

The numbers are those of the table of faults. What tests/faults does to a server of this user is done here to user
10001, without capabilities, on a root filesystem that cannot be written.
"""

import json
import os
import signal
from pathlib import Path

import hardened
import httpx
import pytest
from deployed import run
from docker_host import DockerHost
from hardened import IMAGE, LONG, NO_RIGHTS, golden, metric, pids, post, streaming
from processes import soon

pytestmark = pytest.mark.slow
# As a program beside the server that takes all memory that there is.
GREEDY = "held = []\nwhile True: held.append(b'x' * (32 << 20))"


def restarts(host: DockerHost, container: str) -> int:
    return int(host.inspect(container)["RestartCount"])


def ends(host: DockerHost, container: str) -> list[str]:
    """The exit status of each of its lives that is over."""
    own = f"container={host.inspect(container)['Id']}"
    words = ("--since", "0", "--until", "0s", "--filter", own, "--filter", "event=die")
    return host.do("events", *words, "--format", "{{.Actor.Attributes.exitCode}}").split()


def test_fault_33_01_the_engine_is_killed_within_a_stream(docker_host: DockerHost, container: str) -> None:
    before = golden(docker_host)
    with streaming(docker_host) as client:
        os.kill(pids(docker_host, container)[1], signal.SIGKILL)
        rest, _ = client.communicate(timeout=60)
    last = [line for line in rest.splitlines() if line.startswith("data: {")][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
    assert soon(lambda: metric(docker_host, "twofour:engine_restarts_total") == 1, 120)
    assert soon(lambda: metric(docker_host, "twofour:ready") == 1, 120)
    assert golden(docker_host) == before and restarts(docker_host, container) == 0


def test_fault_33_07_sigterm_while_streaming(docker_host: DockerHost, container: str) -> None:
    with streaming(docker_host) as client:
        docker_host.do("kill", "--signal", "TERM", container)
        assert soon(lambda: post(docker_host, LONG | {"stream": False, "max_tokens": 1}).status_code == 503, 30)
        late = post(docker_host, LONG | {"stream": False, "max_tokens": 1})
        assert (late.status_code, late.headers["retry-after"]) == (503, "1")
        rest, _ = client.communicate(timeout=120)
    assert rest.rstrip().endswith("data: [DONE]") and '"finish_reason":"length"' in rest.replace(" ", "")
    assert soon(lambda: docker_host.inspect(container)["State"]["Status"] == "exited", 60)
    assert docker_host.inspect(container)["State"]["ExitCode"] == 0


def text(value: str) -> bytes:
    return f'{{"model": "model", "max_tokens": 1, "prompt": {value}}}'.encode()


HOSTILE = {
    "100 MB": b'{"model": "model", "prompt": "' + b"a" * (100 << 20) + b'"}',
    "a million deep": b"[" * 1_000_000,
    "100,000 tokens": text(json.dumps([5] * 100_000)),
    "a zero byte": text('"a\0b"'),
    "half a character": text(r'"\ud800"') + b"\xff",
    "no JSON": b"{",
    "not a number": b'{"model": "model", "prompt": "a", "temperature": NaN}',
    "infinite": b'{"model": "model", "prompt": "a", "temperature": 1e999}',
    "true for a number": b'{"model": "model", "prompt": "a", "max_tokens": true}',
    "a thousand million answers": b'{"model": "model", "prompt": "a", "n": 1000000000}',
    "less than nothing": b'{"model": "model", "prompt": "a", "max_tokens": -1}',
}


def test_fault_33_17_hostile_input(docker_host: DockerHost, container: str) -> None:
    before, alive = golden(docker_host), pids(docker_host, container)
    for name, body in HOSTILE.items():
        try:
            assert 400 <= post(docker_host, body).status_code < 500, name
        except (httpx.WriteError, httpx.ReadError):  # cut off while it still sent
            assert name == "100 MB"
    assert golden(docker_host) == before and pids(docker_host, container) == alive
    assert restarts(docker_host, container) == 0


WRITERS = {
    "prune": "prune /model --out /out/made --preset fast --samples 4 --length 32",
    "convert": "convert /pruned --out /out/made --to dense",
}


@pytest.mark.parametrize("writer", WRITERS)
def test_fault_33_20_the_disk_is_full(
    docker_host: DockerHost, docker_folder: Path, tiny_pruned_folder: Path, writer: str
) -> None:
    for path in (*tiny_pruned_folder.parents[:2], tiny_pruned_folder):
        path.chmod(0o755)
    models = ("-v", f"{docker_folder}/model:/model:ro", "-v", f"{tiny_pruned_folder}:/pruned:ro", "--entrypoint", "sh")
    command = f"twofour {WRITERS[writer]} 2>&1; echo status $?; ls -A /out"

    def said(size: str) -> list[str]:
        disk = ("--tmpfs", f"/out:size={size},mode=1777")
        return run(*docker_host.docker, "run", "--rm", *NO_RIGHTS, *disk, *models, IMAGE, "-c", command).stdout.split(
            "\n"
        )

    for size in ("16k", "160k"):
        lines = said(size)
        assert "status 1" in lines and any("free some space" in line for line in lines), lines
        assert "made" not in lines and not any("Traceback" in line for line in lines)
    assert said("16m")[-3:] == ["status 0", "made", ""]


def test_fault_25_killed_for_want_of_memory_it_is_started_again(docker_host: DockerHost, container: str) -> None:
    before = golden(docker_host)
    for pid in pids(docker_host, container):  # the kernel takes the server, not the greedy one
        Path(f"/proc/{pid}/oom_score_adj").write_text("1000")
    run(*docker_host.docker, "exec", container, "python3", "-c", GREEDY)
    assert soon(lambda: restarts(docker_host, container) >= 1, 60) and docker_host.healthy(container)
    assert "137" in ends(docker_host, container) and golden(docker_host) == before


def test_fault_25_one_that_never_fits_is_given_up(docker_host: DockerHost, docker_folder: Path) -> None:
    """With a limit of starts; without one Docker waits longer each time, up to a minute."""
    flags = (*NO_RIGHTS, "--memory", "40m", "--restart", "on-failure:3", *hardened.given(docker_folder))
    docker_host.do("run", "--detach", "--name", "small", *flags, IMAGE, *hardened.SERVE)
    try:
        assert soon(lambda: docker_host.inspect("small")["State"]["Status"] == "exited", 120)
        assert restarts(docker_host, "small") == 3 and set(ends(docker_host, "small")) == {"137"}
    finally:
        docker_host.do("rm", "--force", "small")
