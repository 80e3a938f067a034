"""Rules, alerts and dashboards as their own tools read them, and against what the documentation says is measured."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployed import DEPLOY, ran
from expressions import MONITORING, alerts, dashboards, expressions, recorded

from twofour.serve.edge.observing.http_metrics import REASONS

SERVING = (DEPLOY.parent / "docs" / "serving.md").read_text()
RULES = sorted((MONITORING / "rules").glob("*.yml"))
RULE_TESTS = sorted((MONITORING / "rules" / "tests").glob("*.yml"))
SUFFIXES = ("_bucket", "_count", "_sum")
ANY = re.compile(r"\b(?:vllm|twofour|http_\w+|job|instance)[:_][\w:]+")
each_dashboard = pytest.mark.parametrize("file", dashboards(), ids=lambda file: file.stem)


@pytest.mark.tools
def test_prometheus_reads_all_of_it() -> None:
    said = ran("promtool", "check", "config", MONITORING / "prometheus.yml")
    assert said.count("SUCCESS: ") >= 2 and "FAILED" not in said
    ran("promtool", "check", "rules", *RULES)
    ran("amtool", "check-config", MONITORING / "alertmanager.example.yml")


@pytest.mark.tools
@pytest.mark.parametrize("file", RULE_TESTS, ids=lambda file: file.stem)
def test_rules_do_as_their_tests_say(file: Path) -> None:
    assert "SUCCESS" in ran("promtool", "test", "rules", file)


def test_each_alert_has_a_test_that_fires_and_one_that_is_quiet() -> None:
    cases = [
        (case["alertname"], bool(case["exp_alerts"]))
        for file in RULE_TESTS
        for test in yaml.safe_load(file.read_text())["tests"]
        for case in test.get("alert_rule_test", [])
    ]
    assert sorted(cases) == sorted((alert["alert"], fires) for alert in alerts() for fires in (False, True))


def test_each_alert_says_how_bad_it_is_and_what_to_do() -> None:
    sections = set(re.findall(r"^## (\w+)$", (DEPLOY / "RUNBOOK.md").read_text(), re.MULTILINE))
    for alert in alerts():
        assert alert["labels"]["severity"] in ("page", "ticket", "info")
        assert alert["annotations"]["runbook_url"] == f"RUNBOOK.md#{alert['alert'].lower()}"
        assert alert["annotations"]["summary"]
    assert {alert["alert"] for alert in alerts()} <= sections


@pytest.mark.parametrize("expression", sorted(expressions()))
def test_what_is_asked_for_is_measured(expression: str) -> None:
    for name in ANY.findall(expression):
        stem = next((name.removesuffix(end) for end in SUFFIXES if name.endswith(end)), name)
        assert name in recorded() or f"`{name}`" in SERVING or f"`{stem}`" in SERVING, f"nothing measures {name}"


def test_reasons_are_those_of_the_server() -> None:
    asked = {
        reason
        for text in expressions()
        for group in re.findall(r'reason=~"(.*?)"', text)
        for reason in group.split("|")
    }
    assert {reason for reason in asked if "_" in reason} <= set(REASONS)


@each_dashboard
def test_a_dashboard_can_be_shown(file: Path) -> None:
    """What Grafana asks of it: a name of its own, a data source by variable, panels that do not overlap."""
    board: dict[str, Any] = json.loads(file.read_text())
    variables = {variable["name"] for variable in board["templating"]["list"]}
    assert board["uid"].startswith("twofour-") and len(board["uid"]) <= 40 and board["schemaVersion"] >= 36
    cells: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        place = panel["gridPos"]
        own = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not own & cells and max(x for x, _ in own) < 24
        cells |= own
        used = {name for target in panel["targets"] for name in re.findall(r"\$(\w+)", target["expr"])}
        assert used <= variables
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_dashboards_have_names_of_their_own() -> None:
    assert len({json.loads(file.read_text())["uid"] for file in dashboards()}) == len(dashboards()) >= 2
