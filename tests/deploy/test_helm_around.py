"""What stands around the rendered pods: Services, networks, scaling, monitoring, the router, the job that prunes."""

import argparse
from pathlib import Path
from typing import Any

import pytest
from charts import (
    EMBEDDED,
    GPU,
    HPA,
    NAMESPACE,
    PRUNE,
    REPLICAS,
    SCALED,
    SELECTED,
    VALUE_SETS,
    container,
    deployment,
    merged,
    name_of,
    of_kind,
    pods,
    read,
    rendered,
    rendered_with,
)
from replicas import DISCOVERY, ROUTER

from twofour.prune.commands import prune

pytestmark = pytest.mark.tools

each_set = pytest.mark.parametrize("values", VALUE_SETS, ids=name_of)
each_server = pytest.mark.parametrize("values", [values for values in VALUE_SETS if values != PRUNE], ids=name_of)


@each_set
def test_selectors_never_change_and_find_their_pods(values: Path) -> None:
    documents = rendered(values)
    labels = [template["metadata"]["labels"] for template in pods(documents)]
    selectors = [document["spec"]["selector"] for document in of_kind(documents, "Service").values()]
    for kind in ("Deployment", "PodDisruptionBudget"):
        selectors += [document["spec"]["selector"]["matchLabels"] for document in of_kind(documents, kind).values()]
    selectors += [found["spec"]["podSelector"]["matchLabels"] for found in of_kind(documents, "NetworkPolicy").values()]
    for selector in selectors:
        assert selector.keys() == SELECTED
        assert sum(selector.items() <= own.items() for own in labels) == 1


@each_server
def test_rollouts_and_evictions_take_one_at_a_time(values: Path) -> None:
    documents = rendered(values)
    budgets = of_kind(documents, "PodDisruptionBudget")
    assert budgets.keys() == of_kind(documents, "Deployment").keys()
    assert all(budget["spec"]["maxUnavailable"] == 1 for budget in budgets.values())
    assert all("minAvailable" not in budget["spec"] for budget in budgets.values())
    strategy = deployment(values)["spec"]["strategy"]["rollingUpdate"]
    flipped = {"maxUnavailable": 1, "maxSurge": 0}
    assert strategy == (flipped if values == GPU else {"maxUnavailable": 0, "maxSurge": 1})
    assert deployment(values)["spec"]["revisionHistoryLimit"] == 5


def test_a_server_reaches_nothing_and_no_hub_is_asked() -> None:
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in container(EMBEDDED)["env"]
    policies = of_kind(rendered(REPLICAS), "NetworkPolicy")
    assert policies["-engine"]["spec"]["egress"] == []
    assert all(policy["spec"]["policyTypes"] == ["Ingress", "Egress"] for policy in policies.values())
    more = of_kind(rendered(HPA), "NetworkPolicy")["-engine"]["spec"]["egress"]
    assert [sorted(port["port"] for port in rule["ports"]) for rule in more] == [[53, 53], [4318]]


def peers(values: Path, part: str) -> list[dict[str, Any]]:
    ingress = of_kind(rendered(values), "NetworkPolicy")[part]["spec"]["ingress"]
    return [peer for rule in ingress for peer in rule["from"]]


def test_who_may_ask() -> None:
    """Replicas are asked by the router and by Prometheus; the router by whom the values name."""
    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    router = {"podSelector": {"matchLabels": deployment(REPLICAS, "-router")["spec"]["selector"]["matchLabels"]}}
    assert peers(REPLICAS, "-engine") == [router, monitoring]
    assert peers(REPLICAS, "-router") == [
        {"namespaceSelector": {"matchLabels": {"twofour-clients": "yes"}}},
        monitoring,
    ]
    assert peers(EMBEDDED, "-engine") == [{"podSelector": {}}, monitoring]
    closed = rendered_with(merged(read(EMBEDDED), {"networkPolicy": {"clients": []}}))
    (policy,) = of_kind(closed, "NetworkPolicy").values()
    assert policy["spec"]["ingress"][0]["from"] == [monitoring]


@pytest.mark.parametrize("values", [REPLICAS, SCALED], ids=name_of)
def test_the_router_has_the_flags_that_were_tested(values: Path) -> None:
    words = container(values, "-router")["args"]
    said = " ".join(words)
    tested = dict(zip(ROUTER[::2], ROUTER[1::2], strict=True))
    tested["--policy"] = read(values)["router"].get("policy", "round_robin")
    assert all(f"{flag} {value}" in said for flag, value in tested.items())
    assert " ".join(DISCOVERY).format(namespace=NAMESPACE, port=8000) in said
    selector = words[words.index("--selector") + 1 : words.index("--policy")]
    labels = deployment(values)["spec"]["selector"]["matchLabels"]
    assert dict(word.split("=") for word in selector) == labels


def test_one_service_is_asked_whichever_part_answers() -> None:
    for values, part in ((EMBEDDED, "engine"), (REPLICAS, "router")):
        asked = of_kind(rendered(values), "Service")[""]["spec"]
        assert asked["selector"]["app.kubernetes.io/component"] == part and [
            port["name"] for port in asked["ports"]
        ] == ["http"]


def test_it_is_scaled_by_what_waits() -> None:
    (scaled,) = of_kind(rendered(SCALED), "ScaledObject").values()
    (trigger,) = scaled["spec"]["triggers"]
    assert "replicas" not in deployment(SCALED)["spec"] and "replicas" not in deployment(HPA)["spec"]
    assert trigger["metricType"] == "AverageValue" and "vllm:num_requests_waiting" in trigger["metadata"]["query"]
    assert scaled["spec"]["cooldownPeriod"] >= 300 and scaled["spec"]["fallback"]["replicas"] == 2
    (plain,) = of_kind(rendered(HPA), "HorizontalPodAutoscaler").values()
    behaviors = [scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"], plain["spec"]["behavior"]]
    assert all(behavior["scaleDown"]["stabilizationWindowSeconds"] >= 300 for behavior in behaviors)
    for document in (scaled, plain):
        assert document["spec"]["scaleTargetRef"]["name"] == deployment(SCALED)["metadata"]["name"]


def test_prometheus_finds_replicas_and_router() -> None:
    """By the operator under the names that the rules ask for, else by annotations."""
    documents = rendered(SCALED)
    for part, job_name in (("-engine", "twofour"), ("-router", "twofour-router")):
        monitor, service = of_kind(documents, "ServiceMonitor")[part]["spec"], of_kind(documents, "Service")[part]
        assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        assert monitor["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
        assert monitor["endpoints"][0]["relabelings"][0]["replacement"] == job_name
        assert service["spec"]["publishNotReadyAddresses"]
    assert all("annotations" not in template["metadata"] for template in pods(documents))
    ports = [template["metadata"]["annotations"]["prometheus.io/port"] for template in pods(rendered(REPLICAS))]
    assert sorted(ports) == ["29000", "8000"]


def test_pruning_goes_on_where_it_was() -> None:
    (job,) = of_kind(rendered(PRUNE), "Job").values()
    spec = job["spec"]
    template = spec["template"]["spec"]
    (only,) = template["containers"]
    assert only["image"] == container(EMBEDDED)["image"] and only["command"] == ["twofour"]
    parser = argparse.ArgumentParser(allow_abbrev=False)
    prune.add_arguments(parser)
    asked = parser.parse_args(only["args"][1:])
    assert (only["args"][0], asked.model, str(asked.out)) == ("prune", "/dense/smol", "/out/smol-2of4")
    claims = {volume["name"]: volume.get("persistentVolumeClaim") for volume in template["volumes"]}
    (claim,) = of_kind(rendered(PRUNE), "PersistentVolumeClaim").values()
    assert claims["out"] == {"claimName": claim["metadata"]["name"]} and claims["dense"]["readOnly"]
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert spec["backoffLimit"] > 0 and template["restartPolicy"] == "Never"
    moved, unread = spec["podFailurePolicy"]["rules"]
    assert moved["action"] == "Ignore" and moved["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert (unread["action"], unread["onExitCodes"]["values"]) == ("FailJob", [2])


def test_another_command_is_another_job() -> None:
    """Kubernetes refuses to change one; what does not concern it leaves it as it is."""
    names = []
    for change in ({}, {"prune": {"args": ["--preset", "best"]}}, {"replicas": 7}):
        names += [*of_kind(rendered_with(merged(read(PRUNE), change)), "Job")]
    assert names[0] == names[2] != names[1]
