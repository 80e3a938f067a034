"""The shipped image in a real Docker engine, hardened as it is shipped."""

import json
import os
import re
import shutil
import time
from pathlib import Path

import hardened
import pytest
from deployed import run
from docker_host import DockerHost
from hardened import IMAGE, KEY, streaming
from processes import soon

pytestmark = pytest.mark.slow


def test_it_answers_as_nobody_with_no_rights(docker_host: DockerHost, container: str) -> None:
    body = {"model": "model", "prompt": "hello", "max_tokens": 3}
    assert hardened.post(docker_host, body).json()["usage"]["completion_tokens"] == 3
    status = docker_host.do("exec", container, "cat", "/proc/1/status")
    assert re.search(r"^Uid:\s+10001", status, re.MULTILINE) and re.search(r"^CapBnd:\s+0+$", status, re.MULTILINE)
    assert "No such file" not in docker_host.do("exec", container, "ls", "/cache")
    assert KEY not in docker_host.do("logs", container) + json.dumps(docker_host.inspect(container)["Config"])


def test_the_image_has_no_compiler_and_says_what_it_is(docker_host: DockerHost) -> None:
    alone = ("run", "--rm", "--network", "none")
    found = docker_host.do(*alone, "--entrypoint", "sh", IMAGE, "-c", "which gcc g++ cc pip || :")
    assert found.strip() == ""
    labels = docker_host.inspect(IMAGE)["Config"]["Labels"]
    for name in ("title", "description", "licenses", "version", "revision", "created", "base.name", "base.digest"):
        assert labels[f"org.opencontainers.image.{name}"]
    assert "prune" in docker_host.do(*alone, IMAGE, "--help")


def test_told_to_stop_it_finishes_what_it_streams(docker_host: DockerHost, container: str) -> None:
    with streaming(docker_host) as client:
        docker_host.do("stop", "--time", "90", container)
        rest, _ = client.communicate(timeout=60)
    assert rest.rstrip().endswith("data: [DONE]")
    state = docker_host.inspect(container)["State"]
    assert (state["Status"], state["ExitCode"]) == ("exited", 0)


def test_killed_it_is_started_again(docker_host: DockerHost, container: str) -> None:
    first = docker_host.inspect(container)["State"]["Pid"]
    with streaming(docker_host) as client:
        os.kill(first, 9)
        rest, _ = client.communicate(timeout=60)
    assert "[DONE]" not in rest
    assert soon(lambda: docker_host.inspect(container)["RestartCount"] == 1, 60) and docker_host.healthy(container)


CORES = "from twofour.prune.machine.processors import usable_cores; print(usable_cores())"


@pytest.mark.parametrize("share", [("--cpus", "1"), ("--cpuset-cpus", "0")], ids=" ".join)
def test_a_quota_of_one_core_is_one_thread(
    docker_host: DockerHost, docker_folder: Path, share: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """More threads than the quota pays for would stand still for most of each period. The figure is for the reader."""
    serve = ("serve", "/model", "--api-key-file", "/run/secrets/api_keys")
    flags = (*hardened.NO_RIGHTS, *share, *hardened.given(docker_folder))
    docker_host.do("run", "--detach", "--name", "quota", *flags, IMAGE, *serve)
    try:
        assert docker_host.healthy("quota"), docker_host.do("logs", "quota")
        assert docker_host.do("exec", "quota", "python3", "-c", CORES).strip() == "1"
        began = time.perf_counter()
        answer = hardened.post(docker_host, {**hardened.LONG, "stream": False})
        tokens = answer.json()["usage"]["completion_tokens"]
        with capsys.disabled():
            print(f"\n  {' '.join(share)}: {tokens / (time.perf_counter() - began):.0f} tokens/s")
    finally:
        docker_host.do("rm", "--force", "quota")


def test_weights_that_may_not_be_read_are_named(docker_host: DockerHost, docker_folder: Path, tmp_path: Path) -> None:
    """The mistake that is made first: a model that only its maker may read, for a server that is nobody."""
    closed = Path(shutil.copytree(docker_folder / "model", tmp_path / "model"))
    (closed / "model.safetensors").chmod(0o600)
    words = ("run", "--rm", *hardened.NO_RIGHTS, "-v", f"{closed}:/model:ro", IMAGE, *hardened.SERVE[:4])
    ended = run(*docker_host.docker, *words)
    assert ended.returncode == 1 and "Traceback" not in ended.stdout
    assert "/model/model.safetensors may not be read by user 10001; allow it (chmod -R a+rX /model)" in ended.stdout
