"""The shipped image and compose files in a real Docker engine, hardened as they are shipped."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployed import DEPLOY
from docker_host import DockerHost
from processes import soon

pytestmark = pytest.mark.slow
IMAGE, URL, KEY = "twofour-embedded:local", "http://127.0.0.1:8000", "key-of-a-test"
HARDENED = (
    *("--network", "host", "--init", "--read-only", "--tmpfs", "/tmp:size=64m", "--cap-drop", "ALL"),
    *("--security-opt", "no-new-privileges", "--memory", "2g", "--pids-limit", "512", "--restart", "unless-stopped"),
)
SERVE = ("serve", "/model", "--threads", "1", "--drain-s", "60", "--api-key-file", "/run/secrets/api_keys")
# Long enough to be under way when the server is told to end.
LONG = {"model": "model", "prompt": "hello", "max_tokens": 900, "ignore_eos": True, "stream": True}
STREAM = (
    "import sys, urllib.request as u; r = u.Request(sys.argv[1], sys.argv[3].encode(), {'Authorization': 'Bearer ' + "
    "sys.argv[2], 'Content-Type': 'application/json'})\n"
    "for line in u.urlopen(r, timeout=60): print(line.decode(), flush=True)"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """What the containers are given: a model that everybody may read, and keys."""
    made = tmp_path_factory.mktemp("given")
    (made / "model").mkdir()
    for file in tiny_model_folder.iterdir():
        (made / "model" / file.name).write_bytes(file.read_bytes())
    (made / "api_keys").write_text(f"{KEY}\n")
    for path in (*made.parents[:2], made, made / "model"):
        path.chmod(0o755)
    return made


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerHost]:
    made = DockerHost(tmp_path_factory.mktemp("docker"))
    try:
        made.load("Dockerfile.embedded", IMAGE)
        yield made
    finally:
        made.close()


@pytest.fixture
def server(host: DockerHost, folder: Path) -> Iterator[str]:
    """The name of a container that is healthy."""
    given = ("-v", f"{folder}/model:/model:ro", "-v", f"{folder}/api_keys:/run/secrets/api_keys:ro")
    host.do("run", "--detach", "--name", "server", *HARDENED, *given, IMAGE, *SERVE)
    assert host.healthy("server"), host.do("logs", "server")
    yield "server"
    host.do("rm", "--force", "server")


def test_it_answers_as_nobody_with_no_rights(host: DockerHost, server: str) -> None:
    body = json.dumps({"model": "model", "prompt": "hello", "max_tokens": 3})
    assert json.loads(host.ask(f"{URL}/v1/completions", KEY, body))["usage"]["completion_tokens"] == 3
    status = host.do("exec", server, "cat", "/proc/1/status")
    assert re.search(r"^Uid:\s+10001", status, re.MULTILINE) and re.search(r"^CapBnd:\s+0+$", status, re.MULTILINE)
    assert "No such file" not in host.do("exec", server, "ls", "/cache")
    assert KEY not in host.do("logs", server) + json.dumps(host.inspect(server)["Config"])


def test_the_image_has_no_compiler_and_says_what_it_is(host: DockerHost) -> None:
    found = host.do("run", "--rm", "--network", "none", "--entrypoint", "sh", IMAGE, "-c", "which gcc g++ cc pip || :")
    assert found.strip() == ""
    labels = host.inspect(IMAGE)["Config"]["Labels"]
    for name in ("title", "description", "licenses", "version", "revision", "created", "base.name", "base.digest"):
        assert labels[f"org.opencontainers.image.{name}"]
    assert "prune" in host.do("run", "--rm", "--network", "none", IMAGE, "--help")


def streaming(host: DockerHost) -> "subprocess.Popen[str]":
    """A client whose stream has begun."""
    words = host.inside(sys.executable, "-c", STREAM, f"{URL}/v1/completions", KEY, json.dumps(LONG))
    client = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None and client.stdout.readline().startswith("data: ")
    return client


def test_told_to_stop_it_finishes_what_it_streams(host: DockerHost, server: str) -> None:
    with streaming(host) as client:
        host.do("stop", "--time", "90", server)
        rest, _ = client.communicate(timeout=60)
    assert rest.rstrip().endswith("data: [DONE]")
    state = host.inspect(server)["State"]
    assert (state["Status"], state["ExitCode"]) == ("exited", 0)


def test_killed_it_is_started_again(host: DockerHost, server: str) -> None:
    first = host.inspect(server)["State"]["Pid"]
    with streaming(host) as client:
        os.kill(first, 9)
        rest, _ = client.communicate(timeout=60)
    assert "[DONE]" not in rest
    assert soon(lambda: host.inspect(server)["RestartCount"] == 1, 60) and host.healthy(server)


def on_host(file: str, folder: Path) -> Path:
    """A compose file for an engine that has no network of its own: ports are those of the containers."""
    text = (DEPLOY / "compose" / file).read_text()
    document: dict[str, Any] = yaml.safe_load(text)
    for service in document["services"].values():
        service["network_mode"] = "host"
        service["extra_hosts"] = ["engine-1:127.0.0.1", "engine-2:127.0.0.1", "router:127.0.0.1"]
        service.pop("ports", None)
        service.pop("build", None)
    made = folder / file
    made.write_text(yaml.safe_dump(document))
    return made


def environment(folder: Path) -> dict[str, str]:
    given = {"TWOFOUR_MODEL": f"{folder}/model", "TWOFOUR_KEYS": f"{folder}/api_keys", "TWOFOUR_MEMORY": "2g"}
    return {**os.environ, **given, "GRAFANA_PASSWORD": f"{folder}/api_keys"}


def test_compose_one_engine(host: DockerHost, folder: Path) -> None:
    file, env = on_host("compose.yaml", folder), environment(folder)
    host.compose(file, "up", "--detach", env=env)
    try:
        container = host.compose(file, "ps", "--quiet", "engine", env=env).strip()
        assert host.healthy(container), host.do("logs", container)
        assert json.loads(host.ask(f"{URL}/v1/models", KEY))["data"][0]["id"] == "model"
    finally:
        host.compose(file, "down", "--volumes", env=env)
    assert not host.do("ps", "--all", "--quiet")


def test_compose_replicas_behind_the_router(host: DockerHost, folder: Path) -> None:
    """All but Grafana, whose image is not to be had here; that of Prometheus is Debian's program under its name."""
    host.load("Dockerfile.router", "twofour-router:local")
    host.stand_in("prom/prometheus:v2.53.0", "prometheus")
    file, env = on_host("compose.replicas.yaml", folder), environment(folder)
    body = json.dumps({"model": "model", "prompt": "hello", "max_tokens": 3})

    def answers() -> bool:
        return "completion_tokens" in host.try_ask(f"{URL}/v1/completions", KEY, body)

    host.compose(file, "up", "--detach", "router", "prometheus", env=env)
    try:
        assert soon(answers, 60)
        assert all(answers() for _ in range(4))
        assert soon(lambda: scraped(host) == {"engine-1:8001", "engine-2:8002", "router:29000"}, 120)
        one = host.compose(file, "ps", "--quiet", "engine-1", env=env).strip()
        host.do("kill", "--signal", "KILL", one)
        assert all(answers() for _ in range(6)), "the other one answers for it"
    finally:
        host.compose(file, "down", "--volumes", env=env)


def scraped(host: DockerHost) -> set[str]:
    """What Prometheus reaches."""
    said = host.try_ask("http://127.0.0.1:9090/api/v1/query?query=up==1")
    found = json.loads(said)["data"]["result"] if said.startswith("{") else []
    return {series["metric"]["instance"] for series in found}
