"""Fault 34: a real server under a real systemd, in a container: killed, stopped, and once too often."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import soon
from systemd_host import SystemdHost

pytestmark = pytest.mark.slow
UNIT, URL = "twofour@tiny.service", "http://127.0.0.1:8001"
KEY = "key-of-a-test"
ENVIRONMENT = "TWOFOUR_MODEL=/srv/twofour/tiny\nTWOFOUR_HOST=127.0.0.1\nTWOFOUR_PORT=8001\nTWOFOUR_FLAGS=--threads 1\n"
# systemd waits less long than the unit says: the rule is the same, and the test shorter.
FASTER = (
    "[Unit]\nStartLimitIntervalSec=600\n[Service]\nWatchdogSec=4\nRestartSec=0.1\nIPAddressDeny=\nIPAddressAllow=\n"
)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Iterator[SystemdHost]:
    made = SystemdHost(tmp_path_factory.mktemp("host"), tiny_model_folder)
    made.write("tiny.env", ENVIRONMENT)
    made.write("tiny.keys", f"{KEY}\n")
    made.drop_in("twofour@.service", FASTER)
    yield made
    made.close()


@pytest.fixture
def running(host: SystemdHost) -> Iterator[SystemdHost]:
    """The server, started anew; `start` returns when it has said READY."""
    host.do("systemctl", "reset-failed")
    started = host.try_("systemctl", "start", UNIT)
    assert host.show(UNIT, "ActiveState") == "active", started + host.journal()
    yield host
    host.try_("systemctl", "stop", UNIT)


def restarts(host: SystemdHost) -> int:
    return int(host.show(UNIT, "NRestarts"))


def answers(host: SystemdHost) -> bool:
    return "ready" in host.try_("/usr/bin/python3", "-c", ready_program())


def ready_program() -> str:
    return f"import urllib.request as u; print(u.urlopen('{URL}/ready').read().decode())"


def test_ready_means_that_it_answers(running: SystemdHost) -> None:
    assert answers(running)
    body = json.dumps({"model": "tiny", "prompt": "hello", "max_tokens": 3})
    assert json.loads(running.ask(f"{URL}/v1/completions", KEY, body))["usage"]["completion_tokens"] == 3
    assert "401" in running.try_("/usr/bin/python3", "-c", f"import urllib.request as u; u.urlopen('{URL}/v1/models')")


def test_it_is_nobody_and_sees_no_key_but_its_own(running: SystemdHost) -> None:
    pid = running.show(UNIT, "MainPID")
    status = running.do("cat", f"/proc/{pid}/status")
    uid = re.search(r"^Uid:\s+(\d+)", status, re.MULTILINE)
    assert uid and 61184 <= int(uid[1]) <= 65519, "the range of dynamic users"
    assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE) and re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
    assert KEY not in running.do("cat", f"/proc/{pid}/cmdline", f"/proc/{pid}/environ") + running.journal()


def test_killed_it_is_started_again(running: SystemdHost) -> None:
    running.signal("KILL", running.show(UNIT, "MainPID"))
    assert soon(lambda: restarts(running) == 1 and answers(running), 120), running.journal()


@pytest.mark.parametrize("which", ["server", "engine"])
def test_one_that_hangs_is_started_again(running: SystemdHost, which: str) -> None:
    """The engine hangs, and the server does not feed the watchdog for it."""
    pid = running.show(UNIT, "MainPID")
    if which == "engine":
        pid = running.do("cat", f"/proc/{pid}/task/{pid}/children").split()[0]
    running.signal("STOP", pid)
    assert soon(lambda: restarts(running) == 1 and answers(running), 120), running.journal()
    assert "Watchdog timeout" in running.journal()


def test_a_stop_is_clean(running: SystemdHost) -> None:
    running.do("systemctl", "stop", UNIT)
    assert (running.show(UNIT, "ActiveState"), running.show(UNIT, "Result")) == ("inactive", "success")
    assert running.show(UNIT, "ExecMainStatus") == "0"


def test_one_that_cannot_start_is_given_up(host: SystemdHost) -> None:
    host.write("tiny.env", ENVIRONMENT.replace("/tiny", "/none"))
    try:
        host.try_("systemctl", "start", UNIT)
        assert soon(lambda: "Start request repeated too quickly" in host.journal(), 300), host.journal()
        assert host.show(UNIT, "ActiveState") == "failed"
    finally:
        host.write("tiny.env", ENVIRONMENT)


def test_without_keys_it_does_not_start(host: SystemdHost) -> None:
    host.write("open.env", ENVIRONMENT)
    host.try_("systemctl", "start", "--no-block", "twofour@open.service")
    assert soon(lambda: host.show("twofour@open.service", "Result") != "success", 60)
    assert "credentials" in host.journal()
