"""Dockerfiles and compose files, as their own tools read them."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployed import DEPLOY, ROOT, ran
from replicas import ROUTER

COMPOSE = DEPLOY / "compose"
FILES = [("compose.yaml",), ("compose.yaml", "compose.gpu.yaml"), ("compose.replicas.yaml",)]
PINNED = re.compile(r"\$\{\w+:-[\w./-]+:[\w.-]+\}")


def services(file: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((COMPOSE / file).read_text())["services"]
    return found


EACH = [(file, name) for file in ("compose.yaml", "compose.replicas.yaml") for name in services(file)]


@pytest.mark.tools
@pytest.mark.parametrize("file", sorted((DEPLOY / "docker").glob("Dockerfile.*")), ids=lambda file: file.name)
def test_hadolint_has_nothing_to_say(file: Path) -> None:
    assert ran("hadolint", file) == ""


@pytest.mark.tools
@pytest.mark.parametrize("files", FILES, ids="+".join)
def test_compose_reads_it(files: tuple[str, ...]) -> None:
    words = [word for file in files for word in ("--file", str(COMPOSE / file))]
    ran("docker-compose", *words, "config", "--quiet", env={**os.environ, "TWOFOUR_MODEL": "/srv/model"})


@pytest.mark.parametrize(("file", "name"), EACH)
def test_a_service_may_do_little(file: str, name: str) -> None:
    service = services(file)[name]
    assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges"]
    assert service.get("read_only", False) or name == "grafana"
    assert PINNED.fullmatch(service["image"]) and "latest" not in service["image"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    assert "restart" in service or name == "prune"


@pytest.mark.parametrize(("file", "name"), [(file, name) for file, name in EACH if "engine" in name])
def test_an_engine_has_keys_and_time_to_drain(file: str, name: str) -> None:
    service = services(file)[name]
    words = service["command"]
    assert words[words.index("--api-key-file") + 1] == "/run/secrets/api_keys"
    before = int(words[words.index("--pre-drain-s") + 1]) if "--pre-drain-s" in words else 0
    drain = int(words[words.index("--drain-s") + 1])
    assert int(service["stop_grace_period"].removesuffix("s")) >= before + drain + 30
    assert words[words.index("--port") + 1] == service.get("environment", {}).get("TWOFOUR_PORT", "8000")


def test_the_router_has_the_flags_that_were_tested() -> None:
    said = " ".join(services("compose.replicas.yaml")["router"]["command"].split())
    pairs = set(zip(ROUTER[::2], ROUTER[1::2], strict=True)) - {("--worker-startup-check-interval", "1")}
    assert all(f"{flag} {value}" in said for flag, value in pairs)


def test_examples_hold_no_secret_and_images_no_more_than_the_source() -> None:
    assert not re.findall(r"=.*(?:key|password)\w*:", (COMPOSE / ".env.example").read_text(), re.IGNORECASE)
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = re.findall(r"^COPY (?!--)(.*) \S+$", (DEPLOY / "docker" / "Dockerfile.embedded").read_text(), re.MULTILINE)
    assert sorted(kept) == sorted(" ".join(copied).split())
