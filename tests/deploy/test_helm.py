"""The chart as the tools of others read it, and the values that it must refuse."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from charts import (
    CHART,
    EMBEDDED,
    GPU,
    RELEASE,
    SCALED,
    VALUE_SETS,
    findings,
    helm,
    manifests,
    merged,
    name_of,
    of_kind,
    read,
    refused,
    rendered,
)
from deployed import MADE, ran, run
from expressions import MONITORING, dashboards

import twofour

pytestmark = pytest.mark.tools

KUBERNETES = ("1.36", "1.37")
CUSTOM = {"ScaledObject", "ServiceMonitor", "PrometheusRule"}
OURS, VLLM = read(EMBEDDED), read(GPU)
# What checkov asks for and we do not do: each with its reason.
SKIPPED: Mapping[str, str] = {
    "CKV_K8S_11": "no limit of CPU: it only slows answers down; a request is there, and embedded.threads",
    "CKV_K8S_15": "a version is not pushed twice, so a node asks for its image once; image.pullPolicy says otherwise",
    "CKV_K8S_22": "with a GPU alone: the hook that brings the driver writes into the root (gpu.writableRoot)",
    "CKV_K8S_38": "the router alone has a token: it asks the Kubernetes API which replicas there are",
    "CKV_K8S_43": "a digest is a value (image.digest) that the release fills in; these sets have none",
}
each_set = pytest.mark.parametrize("values", VALUE_SETS, ids=name_of)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A file of all documents for each value set."""
    folder = tmp_path_factory.mktemp("rendered")
    for values in VALUE_SETS:
        (folder / values.name).write_text(yaml.safe_dump_all(rendered(values)))
    return sorted(folder.iterdir())


@each_set
def test_helm_has_nothing_to_say(values: Path) -> None:
    assert findings(values) == []


def test_kubernetes_takes_every_document(files: list[Path]) -> None:
    versions = [word for version in KUBERNETES for word in ("--kubernetes-version", version)]
    said = ran("kubernetes-validate", "--strict", *versions, *files).splitlines()
    not_known = {line.split("kind ")[1].split()[0] for line in said if not line.startswith("INFO")}
    assert not_known == CUSTOM
    documents = [document for values in VALUE_SETS for document in rendered(values) if document["kind"] not in CUSTOM]
    assert sum(line.startswith("INFO") for line in said) == len(documents) * len(KUBERNETES)


def test_the_oldest_kubernetes_takes_them_too(files: list[Path]) -> None:
    """Chart.yaml names it; a model as an OCI artefact wants a later one."""
    (gpu,) = [file for file in files if file.name == GPU.name]
    assert read(CHART / "Chart.yaml")["kubeVersion"] == ">=1.30.0-0"
    for version, checked in (("1.30", {*files} - {gpu}), ("1.33", {gpu})):
        ran("kubernetes-validate", "--strict", "--no-warn", "--kubernetes-version", version, *sorted(checked))


def test_checkov_finds_what_was_reviewed(files: list[Path]) -> None:
    """Each skip is still needed, too."""
    checkov = MADE / "checkov" / "bin" / "checkov"
    if not checkov.exists():
        pytest.fail('checkov is not installed here; run "make deploy-judges", which gives it an environment of its own')
    words = ("--skip-download", "--framework", "kubernetes", "--output", "json", "--directory", files[0].parent)
    report = json.loads(run(checkov, *words, limit_s=100).stdout)
    assert report["summary"]["passed"] > 400 and report["summary"]["parsing_errors"] == 0
    found: dict[str, set[str]] = {}
    for check in report["results"]["failed_checks"]:
        found.setdefault(check["check_id"], set()).add(f"{check['file_path']} {check['resource']}")
    assert found.keys() == SKIPPED.keys(), found
    assert found["CKV_K8S_22"] == {"/3-vllm-gpu-values.yaml Deployment.models.demo-twofour-engine"}
    assert all(where.endswith("-router") for where in found["CKV_K8S_38"])


def test_it_is_packed_whole(tmp_path: Path) -> None:
    """The rules are links into deploy/monitoring; the archive has what they lead to."""
    archive = helm().package(CHART, destination=str(tmp_path))
    with helm().Chart.load(archive) as packed, helm().Chart.load(CHART) as chart:
        values = read(SCALED)
        assert packed.render(values, name=RELEASE) == chart.render(values, name=RELEASE)
        assert (chart.version, chart.metadata["appVersion"]) == (twofour.__version__, twofour.__version__)


def test_rules_and_dashboards_have_one_source() -> None:
    (rule,) = of_kind(rendered(SCALED), "PrometheusRule").values()
    files = sorted((MONITORING / "rules").glob("*.rules.yml"))
    assert rule["spec"]["groups"] == [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]
    (held,) = of_kind(rendered(SCALED), "ConfigMap").values()
    assert held["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert held["data"] == {file.name: file.read_text() for file in dashboards()}
    assert all((CHART / "files" / file.name).is_symlink() for file in [*files, *dashboards()])


def leaves(tree: Mapping[str, Any], above: str = "") -> set[str]:
    """Of values.yaml: the paths of all values; what the user fills in is a leaf."""
    found: set[str] = set()
    for name, value in tree.items():
        inner = isinstance(value, dict) and value and not {"cpu", "memory"} & value.keys()
        found |= leaves(value, f"{above}{name}.") if inner else {f"{above}{name}"}
    return found


def described(schema: Mapping[str, Any], node: Mapping[str, Any], above: str = "") -> set[str]:
    """Of values.schema.json: the same paths."""
    found: set[str] = set()
    for name, below in node["properties"].items():
        below = schema["$defs"][below["$ref"].removeprefix("#/$defs/")] if "$ref" in below else below
        found |= described(schema, below, f"{above}{name}.") if "properties" in below else {f"{above}{name}"}
    return found


def test_each_value_is_in_the_schema_and_says_what_it_is() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert leaves(read(CHART / "values.yaml")) == described(schema, schema) - {"global"}
    lines = (CHART / "values.yaml").read_text().splitlines()
    bare = [line for line in lines if re.match(r"\s*\w+: \S", line) and " # " not in line]
    assert bare == []


def test_nothing_else_may_be_said() -> None:
    schema = (CHART / "values.schema.json").read_text()
    objects = len(re.findall(r'"properties":', schema))
    assert schema.count('"additionalProperties": false') == objects >= 20


REFUSED: list[tuple[Mapping[str, Any], Mapping[str, Any], str]] = [
    (OURS, {"replicas": -1}, "replicas"),
    (OURS, {"replica": 2}, "replica"),
    (OURS, {"gpu": {"number": 2}}, "number"),
    (OURS, {"engine": "sglang"}, "engine"),
    (OURS, {"image": {"digest": "sha256:1"}}, "digest"),
    (OURS, {"image": {"repository": ""}}, "image.repository is not given"),
    (OURS, {"image": {"tag": "latest"}}, "the tag latest is another image tomorrow"),
    (OURS, {"keys": {"existingSecret": ""}}, "keys.existingSecret is not given"),
    (OURS, {"model": {"existingClaim": ""}}, "model names 0 places"),
    (OURS, {"model": {"newClaim": {"size": "1Gi"}}}, "model names 2 places"),
    (OURS, {"model": {"path": "../other"}}, "path"),
    (OURS, {"drain": {"graceSeconds": 75}}, "would be killed while it drains"),
    (OURS, {"drain": {"drainSeconds": 600, "graceSeconds": 600}}, "give more than 615"),
    (OURS, {"probes": {"startupSeconds": 300}}, "startupSeconds"),
    (OURS, {"embedded": {"lmHead": "int8"}, "gpu": {"count": 1}}, "are for CPUs"),
    (OURS, {"embedded": {"kernels": "cpu"}, "gpu": {"count": 1}}, "embedded.kernels is cpu"),
    (OURS, {"embedded": {"kernels": "cusparselt"}}, "needs a GPU"),
    (OURS, {"vllm": {"args": ["--enforce-eager"]}}, "the engine is embedded"),
    (OURS, {"gpu": {"count": 2}}, "takes one GPU"),
    (VLLM, {"embedded": {"denseValues": "int8"}}, "no counterpart in vLLM"),
    (VLLM, {"embedded": {"threads": 4}}, "no counterpart in vLLM"),
    (VLLM, {"gpu": {"count": 4}}, "each rank has one GPU"),
    (OURS, {"extraArgs": ["--drain-s", "5"]}, "use drain.drainSeconds"),
    (OURS, {"extraArgs": ["--drain=5"]}, "use drain.drainSeconds"),
    (OURS, {"extraArgs": ["--api-key-file=/x"]}, "use keys"),
    (VLLM, {"extraArgs": ["--", "--enforce-eager"]}, "stands in vllm.args"),
    (VLLM, {"vllm": {"args": ["--api-key=x"]}}, "--api-key would show a key"),
    (OURS, {"router": {"extraArgs": ["--api-key", "x"]}}, "put keys into keys.existingSecret"),
    (OURS, {"extraEnv": [{"name": "HF_TOKEN", "value": "x"}]}, "give valueFrom.secretKeyRef"),
    (OURS, {"router": {"enabled": True}}, "router.image.repository is not given"),
    (OURS, {"autoscaling": {"kind": "keda"}}, "autoscaling.prometheusUrl is not given"),
    (OURS, {"autoscaling": {"kind": "hpa", "min": 3, "max": 2}}, "give a larger max"),
    (OURS, {"rollout": {"maxSurge": 0}}, "no rollout can begin"),
    (OURS, {"serve": False}, "nothing to install"),
    (OURS, {"prune": {"enabled": True}}, "prune.source.existingClaim is not given"),
]


@pytest.mark.parametrize(("values", "change", "said"), REFUSED, ids=[said for *_, said in REFUSED])
def test_it_is_refused(values: Mapping[str, Any], change: Mapping[str, Any], said: str) -> None:
    assert said in refused(merged(values, change))


def test_the_same_without_the_fault_is_taken() -> None:
    """The last of these alone is what is refused above."""
    for values in (OURS, VLLM):
        assert manifests(values)
    assert manifests(merged(OURS, {"drain": {"graceSeconds": 76}}))
    assert manifests(merged(OURS, {"gpu": {"count": 1}, "embedded": {"kernels": "cusparselt"}}))
