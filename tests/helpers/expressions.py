"""What the rules and dashboards of `deploy/monitoring` ask Prometheus."""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from deployed import DEPLOY

MONITORING = DEPLOY / "monitoring"
LIMIT = re.compile(r"\s(?:==|>=|<=|>|<)\s*[\d.]+(?:\s*\*\s*[\d.]+)?")


def rules(file: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((MONITORING / "rules" / f"{file}.rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [*rules("alerts"), *rules("optional")]


def recorded() -> set[str]:
    return {rule["record"] for rule in rules("recording")}


def dashboards() -> list[Path]:
    return sorted((MONITORING / "grafana").glob("*.json"))


def panels() -> list[tuple[str, str]]:
    """The title of each panel with each of its expressions, for all replicas."""
    found = [
        (panel["title"], target["expr"].replace("$instance", ".*"))
        for file in dashboards()
        for panel in json.loads(file.read_text())["panels"]
        for target in panel["targets"]
    ]
    return found


def expressions() -> set[str]:
    """All but those of other exporters."""
    own = [*rules("alerts"), *rules("recording")]
    return {rule["expr"] for rule in own} | {expression for _, expression in panels()}


def without_limits(expression: str) -> str:
    """What an alert looks at, whether or not it would fire."""
    return LIMIT.sub("", re.sub(r"absent\((.*)\)", r"\1", expression))
