"""The router's unit under a real systemd, in front of two servers of the other unit: updated in turn, and killed."""

import json
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from deployed import ASK, DEPLOY
from processes import soon
from replicas import Load, under_load, wait_until
from systemd_host import SystemdHost

pytestmark = pytest.mark.slow
ROUTER, SERVERS = "twofour-router.service", {"a": "8001", "b": "8002"}
URL, KEY = "http://127.0.0.1:8000", "key-of-a-test"
# A container has no filter of addresses.
NO_FILTER = "[Service]\nRestartSec=0.1\nIPAddressDeny=\nIPAddressAllow=\n"
FLAGS = "--threads 1 --served-model-name tiny"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Iterator[SystemdHost]:
    made = SystemdHost(tmp_path_factory.mktemp("routed"), tiny_model_folder, router=True)
    example = (DEPLOY / "systemd" / "twofour.env.example").read_text()
    example = re.sub("TWOFOUR_MODEL=.*", "TWOFOUR_MODEL=/srv/twofour/tiny", example)
    for name, port in SERVERS.items():
        made.write(f"{name}.env", example.replace("8001", port).replace("TWOFOUR_FLAGS=", f"TWOFOUR_FLAGS={FLAGS}"))
        made.write(f"{name}.keys", f"{KEY}\n")
    made.write("router.env", (DEPLOY / "systemd" / "router.env.example").read_text())
    for unit in ("twofour@.service", ROUTER):
        made.drop_in(unit, NO_FILTER)
    made.do("systemctl", "start", *(f"twofour@{name}" for name in SERVERS), ROUTER)
    try:
        assert soon(lambda: answers(made), 60), made.journal()
        yield made
    finally:
        made.close()


def answers(host: SystemdHost) -> bool:
    body = json.dumps({"model": "tiny", "prompt": "hello", "max_tokens": 3})
    return "completion_tokens" in host.try_("/usr/bin/python3", "-c", ASK, f"{URL}/v1/completions", KEY, body)


def load_of(host: SystemdHost) -> AbstractContextManager[Load]:
    return under_load(Load(URL, model="tiny", key=KEY), host.in_network)


def test_it_is_nobody_without_rights(host: SystemdHost) -> None:
    status = host.do("cat", f"/proc/{host.show(ROUTER, 'MainPID')}/status")
    uid = re.search(r"^Uid:\s+(\d+)", status, re.MULTILINE)
    assert uid and 61184 <= int(uid[1]) <= 65519, "the range of dynamic users"
    assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE) and re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)


def test_servers_are_updated_in_turn_without_a_failed_request(host: SystemdHost) -> None:
    """As README.md says it: each restart returns when the server is ready."""
    with load_of(host) as load:
        for name in SERVERS:
            host.do("systemctl", "restart", f"twofour@{name}")
        before = load.whole
        wait_until(lambda: load.whole >= before + 10, "answers after it", 60)
    assert load.broken == [] and load.whole > 20


def test_a_server_is_killed_and_no_new_request_fails(host: SystemdHost) -> None:
    assert all(host.show(f"twofour@{name}", "ActiveState") == "active" for name in SERVERS)
    with load_of(host) as load:
        host.signal("KILL", host.show("twofour@a", "MainPID"))
        before = load.whole
        wait_until(lambda: load.whole >= before + 20, "answers of the other one", 120)
        lost = list(load.broken)
        assert soon(lambda: host.show("twofour@a", "ActiveState") == "active", 300), host.journal()
    assert load.broken == lost and len(lost) <= load.clients
    assert all(each.startswith("stream") or each == "truncated" for each in lost)


def test_killed_it_is_started_again(host: SystemdHost) -> None:
    host.signal("KILL", host.show(ROUTER, "MainPID"))
    assert soon(lambda: host.show(ROUTER, "NRestarts") == "1" and answers(host), 60), host.journal()


def test_a_stop_lets_what_it_carries_end(host: SystemdHost) -> None:
    """The last test: the router is stopped after it."""
    with load_of(host) as load:
        load.stopped = True
        host.do("systemctl", "stop", ROUTER)
    assert load.broken == []
    assert (host.show(ROUTER, "ActiveState"), host.show(ROUTER, "Result")) == ("inactive", "success")
