"""The shipped compose files in a real Docker engine: one engine, two behind the router, and the job that prunes."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import hardened
import pytest
import yaml
from deployed import DEPLOY
from docker_host import DockerHost
from hardened import KEY, URL
from processes import soon
from replicas import Load, under_load, wait_until

from twofour.prune.format.checkpoint import digests

pytestmark = pytest.mark.slow
ENGINES = {"engine-1": "http://127.0.0.1:8001", "engine-2": "http://127.0.0.1:8002"}
SHORT = {"model": "model", "prompt": "hello", "max_tokens": 3}
Compose = Callable[..., str]


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


def composed(host: DockerHost, file: str, folder: Path, **more: Path) -> Compose:
    """What runs docker-compose with one of the files."""
    given = {"TWOFOUR_MODEL": folder / "model", "TWOFOUR_KEYS": folder / "api_keys", **more}
    env = {**os.environ, "TWOFOUR_MEMORY": "2g", "GRAFANA_PASSWORD": f"{folder}/api_keys"}
    env |= {name: str(path) for name, path in given.items()}
    path = on_host(file, folder)
    return lambda *words: host.compose(path, *words, env=env)


def test_one_engine(docker_host: DockerHost, docker_folder: Path) -> None:
    compose = composed(docker_host, "compose.yaml", docker_folder)
    compose("up", "--detach")
    try:
        container = compose("ps", "--quiet", "engine").strip()
        assert docker_host.healthy(container), docker_host.do("logs", container)
        assert json.loads(docker_host.ask(f"{URL}/v1/models", KEY))["data"][0]["id"] == "model"
    finally:
        compose("down", "--volumes")
    assert not docker_host.do("ps", "--all", "--quiet")


@pytest.fixture
def replicas(docker_host: DockerHost, docker_folder: Path) -> Iterator[Compose]:
    """All but Grafana, whose image is not to be had here; that of Prometheus is Debian's program under its name."""
    docker_host.load("Dockerfile.router", "twofour-router:local")
    docker_host.stand_in("prom/prometheus:v2.53.0", "prometheus")
    compose = composed(docker_host, "compose.replicas.yaml", docker_folder)
    compose("up", "--detach", "router", "prometheus")
    try:
        assert soon(lambda: answers(docker_host), 120)
        yield compose
    finally:
        compose("down", "--volumes")


def answers(host: DockerHost) -> bool:
    return "completion_tokens" in host.try_ask(f"{URL}/v1/completions", KEY, json.dumps(SHORT))


def scraped(host: DockerHost) -> set[str]:
    """What Prometheus reaches."""
    said = host.try_ask("http://127.0.0.1:9090/api/v1/query?query=up==1")
    found = json.loads(said)["data"]["result"] if said.startswith("{") else []
    return {series["metric"]["instance"] for series in found}


def load_of(host: DockerHost) -> AbstractContextManager[Load]:
    return under_load(Load(URL, model="model", key=KEY), host.in_network)


def used_again(host: DockerHost, compose: Compose, name: str) -> None:
    """Return when an engine is healthy and the router sends it requests."""
    container = compose("ps", "--quiet", name).strip()
    assert host.healthy(container), host.do("logs", container)
    answered = "vllm:request_success_total"
    wait_until(lambda: hardened.metric(host, answered, ENGINES[name]) >= 5, f"the router to use {name}", 60)


def test_replicas_are_scraped_and_updated_in_turn_without_a_failed_request(
    docker_host: DockerHost, replicas: Compose
) -> None:
    assert soon(lambda: scraped(docker_host) == {"engine-1:8001", "engine-2:8002", "router:29000"}, 120)
    with load_of(docker_host) as load:
        for name in ENGINES:
            replicas("up", "--detach", "--no-deps", "--force-recreate", "--timeout", "90", name)
            used_again(docker_host, replicas, name)
    assert load.broken == [] and load.whole > 20


def test_a_replica_is_killed_and_no_new_request_fails(docker_host: DockerHost, replicas: Compose) -> None:
    """Streams that it was sending are lost with it; all others are answered, by the other one; and it comes back."""
    container = replicas("ps", "--quiet", "engine-1").strip()
    with load_of(docker_host) as load:
        os.kill(hardened.pids(docker_host, container)[0], 9)
        before = load.whole
        wait_until(lambda: load.whole >= before + 20, "answers of the other one", 120)
        lost = list(load.broken)
        used_again(docker_host, replicas, "engine-1")
    assert docker_host.inspect(container)["RestartCount"] == 1
    assert load.broken == lost and len(lost) <= load.clients
    assert all(each.startswith("stream") or each == "truncated" for each in lost)


PRUNE = ("prune", "/dense", "--out", "/out/model", "--samples", "4", "--length", "32")


def test_pruning_that_is_killed_goes_on_where_it_was(
    docker_host: DockerHost, docker_folder: Path, tmp_path: Path
) -> None:
    whole, cut = (folder_of_nobody(tmp_path / name) for name in ("whole", "cut"))
    to_whole, to_cut = (job(docker_host, docker_folder, out) for out in (whole, cut))
    to_whole("run", "--rm", "-T", "prune", *PRUNE)
    to_cut("run", "--detach", "--name", "cut", "prune", *PRUNE)
    unfinished = cut / ".model.unfinished"
    assert soon(lambda: any(unfinished.glob("block-*")), 120), docker_host.do("logs", "cut")
    docker_host.do("rm", "--force", "cut")
    assert list(cut.iterdir()) == [unfinished]
    to_cut("run", "--rm", "-T", "prune", *PRUNE)
    assert digests(cut / "model") == digests(whole / "model")
    assert "intact, strictly 2:4" in to_cut("run", "--rm", "-T", "prune", "check", "/out/model")
    to_cut("down", "--volumes")


def job(host: DockerHost, folder: Path, out: Path) -> Compose:
    compose = composed(host, "compose.yaml", folder, TWOFOUR_DENSE=folder / "model", TWOFOUR_OUT=out)
    return lambda *words: compose("--profile", "prune", *words)


def folder_of_nobody(path: Path) -> Path:
    path.mkdir()
    os.chown(path, 10001, 10001)
    return path
