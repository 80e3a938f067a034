"""A real Prometheus with the files that are shipped, and two real servers under load, one dense and one 2:4."""

import json
import re
import shutil
import subprocess
import time
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from deployed import tool
from expressions import MONITORING, alerts, panels, rules, without_limits
from mixed_folders import mixed
from replicas import HOST, Replica, free_port, wait_until

pytestmark = pytest.mark.slow
OWN = [alert for alert in alerts() if alert in rules("alerts")]


@dataclass
class Prometheus:
    url: str

    def ask(self, path: str) -> Any:
        answer = httpx.get(self.url + path, timeout=10, trust_env=False).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[Any]:
        found: list[Any] = self.ask(f"/api/v1/query?query={urllib.parse.quote(expression, safe='')}")["result"]
        return found

    def ready(self) -> bool:
        with suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/-/ready", trust_env=False).status_code == 200
        return False


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Iterator[list[Replica]]:
    folder = tmp_path_factory.mktemp("replicas")
    sparse = mixed(tiny_model_folder, folder / "2of4", lambda _: "2:4")
    models = (("dense", tiny_model_folder), ("sparse", sparse))
    flags = ("--served-model-name", "toy", "--threads", "1")
    made = [Replica(("serve", str(model), *flags), folder / name, 0) for name, model in models]
    for replica in made:
        replica.start()
    for replica in made:
        wait_until(replica.is_ready, "a replica")
    yield made
    for replica in made:
        replica.end()


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory, replicas: list[Replica]) -> Iterator[Prometheus]:
    """The shipped files; only addresses and intervals are others, and the wait of alerts, which promtool tests."""
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
    shutil.copytree(MONITORING, folder / "etc")
    addresses = json.dumps([{"targets": [replica.url.removeprefix("http://") for replica in replicas]}])
    (folder / "etc" / "targets" / "twofour.yml").write_text(addresses)
    config, rule_file = folder / "etc" / "prometheus.yml", folder / "etc" / "rules" / "alerts.rules.yml"
    config.write_text(config.read_text().replace("_interval: 15s", "_interval: 1s"))
    rule_file.write_text(re.sub(r"for: \d+m", "for: 1s", rule_file.read_text()))
    where = (f"--web.listen-address={HOST}:{port}", f"--storage.tsdb.path={folder}/data", f"--config.file={config}")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([tool("prometheus"), *where], stdout=log, stderr=log)
    made = Prometheus(f"http://{HOST}:{port}")
    wait_until(made.ready, "Prometheus", 60)
    yield made
    process.kill()
    process.wait(10)


def ask(url: str) -> None:
    body = {"model": "toy", "prompt": "hello " * 20, "max_tokens": 16, "ignore_eos": True}
    httpx.post(f"{url}/v1/completions", json=body, timeout=60, trust_env=False).raise_for_status()
    with httpx.stream("POST", f"{url}/v1/completions", json={**body, "stream": True}, timeout=60) as stream:
        for _ in stream.iter_lines():
            pass


@pytest.fixture(scope="module")
def scraped(prometheus: Prometheus, replicas: list[Replica]) -> Prometheus:
    """After load that lasts until the rates of both replicas are there."""

    def under_load() -> bool:
        with ThreadPoolExecutor(8) as clients:
            list(clients.map(ask, [replica.url for replica in replicas] * 4))
        return len(prometheus.query("instance:dollars_per_million_tokens:rate5m")) == 2

    wait_until(under_load, "figures of both replicas", 120)
    for _ in range(3):  # and the rules that read rules
        under_load()
        time.sleep(1)
    return prometheus


@pytest.mark.parametrize(("title", "expression"), panels())
def test_a_panel_shows_something(scraped: Prometheus, title: str, expression: str) -> None:
    assert scraped.query(expression), title


@pytest.mark.parametrize("rule", [*rules("recording"), *OWN], ids=lambda rule: rule.get("record") or rule["alert"])
def test_a_rule_has_something_to_look_at(scraped: Prometheus, rule: dict[str, Any]) -> None:
    for part in re.split(r"\s(?:and|or)\s", without_limits(rule["expr"])) if "alert" in rule else [rule["expr"]]:
        assert scraped.query(part.removeprefix("on (instance) ")), part


def test_no_alert_of_a_page_fires_without_a_reason(scraped: Prometheus) -> None:
    assert not scraped.query('ALERTS{severity="page"}')


def test_rules_have_no_errors(scraped: Prometheus) -> None:
    states = [rule for group in scraped.ask("/api/v1/rules")["groups"] for rule in group["rules"]]
    assert states and not [rule for rule in states if rule.get("lastError") or rule["health"] == "err"]


def test_a_replica_that_is_killed_is_missed(scraped: Prometheus, replicas: list[Replica]) -> None:
    """The last test: the server is gone after it."""
    replicas[0].kill()
    address = replicas[0].url.removeprefix("http://")
    fires = f'ALERTS{{alertname="TwofourDown", instance="{address}", alertstate="firing"}}'
    wait_until(lambda: scraped.query(fires), "the alert", 60)
