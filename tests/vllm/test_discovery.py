"""The real vllm-router finds replicas as the chart has it find them: by their pods, in the Kubernetes API."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from kubernetes_api import LABELS, Api, kubernetes, pod
from replicas import DISCOVERY, MODEL, Load, Replica, free_port, routed, started, under_load, wait_until

HOSTS = ("127.0.0.1", "127.0.0.2")  # pods have one port, each an address of its own
SELECTOR = [f"{name}={value}" for name, value in LABELS.items()]


@pytest.fixture(scope="module")
def replicas(large_heads_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Replica]]:
    folder, port = tmp_path_factory.mktemp("replicas"), free_port()
    flags = ("--max-model-len", "512", "--served-model-name", MODEL, "--threads", "1")
    command = ("serve", str(large_heads_folders["2:4"]), *flags)
    found = [Replica(command, folder / f"{host}.log", core, port, host) for core, host in enumerate(HOSTS)]
    with started(found):
        yield found


@pytest.fixture
def asked(replicas: list[Replica], tmp_path: Path) -> Iterator[tuple[Api, str]]:
    """The API and a router that has found both."""
    pods = [pod(replica.host, replica.host) for replica in replicas]
    words = [word.format(namespace="models", port=replicas[0].port) for word in DISCOVERY]
    with kubernetes(pods, tmp_path) as (api, env), routed([*words, *SELECTOR], tmp_path / "router.log", env) as url:
        wait_until(lambda: len(httpx.get(f"{url}/list_workers").json()["urls"]) == 2, "both replicas", 60)
        yield api, url


def test_a_pod_that_is_deleted_gets_no_more_requests_and_none_fails(
    asked: tuple[Api, str], replicas: list[Replica]
) -> None:
    """It is deleted, answers on while its preStop sleeps, drains, ends; another one comes in its place."""
    api, url = asked
    ends = replicas[1]
    with under_load(Load(url)) as load:
        api.change(pod(ends.host, ends.host, ends=True))
        wait_until(
            lambda: httpx.get(f"{url}/list_workers").json()["urls"] == [replicas[0].url], "it to be left out", 60
        )
        whole = load.whole
        wait_until(lambda: load.whole >= whole + 10, "answers of the other one", 60)
        assert ends.terminate() == 0
        ends.start()
        wait_until(ends.is_ready, f"a replica, see {ends.log}")
        api.change(pod("new", ends.host))
        wait_until(lambda: ends.answered() >= 5, "the router to use it again", 60)
    assert load.broken == []
    assert api.asked == {("GET", "/api/v1/namespaces/models/pods")}  # which is what its Role allows


def test_health_is_asked_where_the_chart_asks(asked: tuple[Api, str]) -> None:
    _, url = asked
    assert [httpx.get(f"{url}/{path}").status_code for path in ("liveness", "readiness")] == [200, 200]


def test_it_asks_for_no_key_before_it_takes_a_server_in_and_lets_any_page_call(
    asked: tuple[Api, str], replicas: list[Replica]
) -> None:
    """Why SECURITY.md has only some paths passed on to it."""
    _, url = asked
    assert httpx.post(f"{url}/remove_worker", params={"url": replicas[1].url}).status_code == 200
    assert httpx.get(f"{url}/list_workers").json()["urls"] == [replicas[0].url]
    assert httpx.post(f"{url}/add_worker", params={"url": replicas[1].url}).status_code == 200
    assert len(httpx.get(f"{url}/list_workers").json()["urls"]) == 2
    answer = httpx.get(f"{url}/v1/models", headers={"Origin": "https://elsewhere.example"})
    assert answer.headers["access-control-allow-origin"] == "*"
