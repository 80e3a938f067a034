"""The chart of `deploy/helm`, rendered by Helm's own library, without a cluster."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployed import DEPLOY

CHART = DEPLOY / "helm" / "twofour"
VALUE_SETS = sorted((CHART / "ci").glob("*-values.yaml"))
EMBEDDED, REPLICAS, GPU, SCALED, PRUNE, HPA = VALUE_SETS
RELEASE, NAMESPACE = "demo", "models"
SELECTED = {f"app.kubernetes.io/{name}" for name in ("name", "instance", "component")}


def rendered(values: Path | None = None) -> list[dict[str, Any]]:
    """Every document that a value set gives; None: of the first set, that of one embedded server."""
    return rendered_with(read(values or EMBEDDED))


def rendered_with(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [document for text in manifests(values).values() for document in yaml.safe_load_all(text) if document]


def manifests(values: Mapping[str, Any]) -> dict[str, str]:
    """By template, as text, NOTES.txt left out. Raises HelmError where Helm refuses the values."""
    with helm().Chart.load(CHART) as chart:
        chart.validate_schema(dict(values))
        found: dict[str, str] = chart.render(dict(values), name=RELEASE, namespace=NAMESPACE)
    return {name: text for name, text in found.items() if name.endswith(".yaml")}


def refused(values: Mapping[str, Any]) -> str:
    """What Helm says of values that it must not take."""
    with pytest.raises(helm().HelmError) as caught:
        manifests(values)
    return str(caught.value)


def findings(values: Path) -> list[str]:
    """What `helm lint --strict` has against a value set. It looks past `fail`, which rendering does not."""
    report = helm().lint(CHART, read(values), strict=True, namespace=NAMESPACE)
    said = [f"{message['path']}: {message['error']}" for message in report["messages"] if message["severity"] > 1]
    return [*said, *report["errors"]]


def merged(values: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """As `helm --set` does: of a map, what is not named stays."""
    found = dict(values)
    for name, value in change.items():
        old = found.get(name)
        found[name] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return found


def of_kind(documents: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    """By name, without what every name of this release begins with: "-engine"; "" is the one of no part."""
    found = [document for document in documents if document["kind"] == kind]
    return {document["metadata"]["name"].removeprefix(f"{RELEASE}-twofour"): document for document in found}


def pods(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The templates of all pods."""
    return [document["spec"]["template"] for document in documents if document["kind"] in ("Deployment", "Job")]


def deployment(values: Path, part: str = "-engine") -> dict[str, Any]:
    return of_kind(rendered(values), "Deployment")[part]


def pod(values: Path, part: str = "-engine") -> dict[str, Any]:
    found: dict[str, Any] = deployment(values, part)["spec"]["template"]["spec"]
    return found


def container(values: Path, part: str = "-engine") -> dict[str, Any]:
    (found,) = pod(values, part)["containers"]
    return found


def name_of(values: Path) -> str:
    return values.name.removesuffix("-values.yaml")


def read(values: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(values.read_text())
    return found


def helm() -> Any:
    """The package index has Helm as a library, `helm-python-sdk`, and nowhere as a program."""
    try:
        import helm_python
    except ImportError:
        pytest.fail('helm-python-sdk is not installed here; run "make deploy-judges", which asks the package index')
    return helm_python
