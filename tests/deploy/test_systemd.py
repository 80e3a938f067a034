"""The units as systemd reads them, and their commands as our own parsers and the router's documentation do."""

import argparse
import re
import shlex
import sys
from pathlib import Path

import pytest
from deployed import DEPLOY, ran
from replicas import ROUTER

from twofour.serve.commands import serve

UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
WORST = 2.0  # of 10
each_unit = pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)


def settings(unit: Path) -> dict[str, str]:
    return dict(re.findall(r"^(\w+)=(.*)$", unit.read_text(), re.MULTILINE))


def environment(name: str) -> dict[str, str]:
    return settings(DEPLOY / "systemd" / name)


def filled(command: str, values: dict[str, str]) -> list[str]:
    """As systemd does: ${NAME} is one word, $NAME its words."""
    words = []
    for word in command.split():
        found = re.fullmatch(r"\$\{?(\w+)\}?", word)
        words += [word] if not found else [values[found[1]]] if "{" in word else shlex.split(values[found[1]])
    return words


@pytest.mark.tools
@each_unit
def test_systemd_reads_it(unit: Path, tmp_path: Path) -> None:
    """With a program in the place of ours: it asks for one that is there."""
    copy = tmp_path / unit.name
    copy.write_text(re.sub(r"ExecStart=\S+", f"ExecStart={sys.executable}", unit.read_text()))
    assert ran("systemd-analyze", "verify", copy) == ""


@pytest.mark.tools
@each_unit
def test_it_may_do_little(unit: Path) -> None:
    said = ran("systemd-analyze", "security", "--offline=yes", f"--threshold={WORST * 10:.0f}", unit)
    found = re.search(r"exposure level for \S+: ([\d.]+)", said)
    assert found and float(found[1]) <= WORST


def test_the_command_is_one_of_ours() -> None:
    unit = settings(DEPLOY / "systemd" / "twofour@.service")
    words = filled(unit["ExecStart"], environment("twofour.env.example"))
    assert words[:2] == ["/opt/twofour/bin/twofour", "serve"]
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    read = parser.parse_args(words[2:])
    assert (read.host, read.port, str(read.api_key_file)) == ("127.0.0.1", 8001, "%d/api-keys")
    assert int(unit["TimeoutStopSec"]) >= read.pre_drain_s + read.drain_s + 30


def test_the_router_has_the_flags_that_were_tested() -> None:
    words = filled(
        settings(DEPLOY / "systemd" / "twofour-router.service")["ExecStart"], environment("router.env.example")
    )
    said = " ".join(words)
    pairs = set(zip(ROUTER[::2], ROUTER[1::2], strict=True)) - {("--worker-startup-check-interval", "1")}
    assert all(f"{flag} {value}" in said for flag, value in pairs)
    assert "--worker-urls http://127.0.0.1:8001 http://127.0.0.1:8002 --" in said


def test_keys_are_credentials() -> None:
    unit = settings(DEPLOY / "systemd" / "twofour@.service")
    assert unit["LoadCredential"] == "api-keys:/etc/twofour/%i.keys"
    assert not [name for name in environment("twofour.env.example") if "KEY" in name]


@each_unit
def test_it_is_started_again(unit: Path) -> None:
    """Whatever the status: an engine can end with 0, too."""
    assert settings(unit)["Restart"] == "always"
