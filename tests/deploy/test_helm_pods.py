"""What every rendered pod keeps to, and what stands around it: the conventions of `deploy/`, each an assertion."""

import argparse
from pathlib import Path
from typing import Any

import pytest
from charts import NAMESPACE, VALUE_SETS, merged, of_kind, pods, read, rendered, rendered_with
from replicas import DISCOVERY, ROUTER

from twofour.prune.commands import prune
from twofour.serve.commands import serve
from twofour.serve.vllm_edge import flags

pytestmark = pytest.mark.tools

EMBEDDED, REPLICAS, GPU, SCALED, PRUNE, HPA = VALUE_SETS
SERVING = [values for values in VALUE_SETS if values != PRUNE]
SELECTED = {f"app.kubernetes.io/{name}" for name in ("name", "instance", "component")}
LABELS = {*SELECTED, *(f"app.kubernetes.io/{name}" for name in ("version", "part-of", "managed-by")), "helm.sh/chart"}
WRITTEN = {"cache", "tmp", "shm", "out"}


def name_of(values: Path) -> str:
    return values.name.removesuffix("-values.yaml")


each_set = pytest.mark.parametrize("values", VALUE_SETS, ids=name_of)
each_server = pytest.mark.parametrize("values", SERVING, ids=name_of)


def deployment(values: Path, part: str = "-engine") -> dict[str, Any]:
    return of_kind(rendered(values), "Deployment")[part]


def pod(values: Path, part: str = "-engine") -> dict[str, Any]:
    found: dict[str, Any] = deployment(values, part)["spec"]["template"]["spec"]
    return found


def container(values: Path, part: str = "-engine") -> dict[str, Any]:
    (found,) = pod(values, part)["containers"]
    return found


def job() -> dict[str, Any]:
    (found,) = of_kind(rendered(PRUNE), "Job").values()
    return found


def served(words: list[str]) -> argparse.Namespace:
    """The command of a server, as the command line reads it."""
    end = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(allow_abbrev=False)
    serve.add_arguments(parser)
    read = parser.parse_args(words[1:end])
    read.passed_on = words[end + 1 :]
    return read


@each_set
def test_a_pod_may_do_little(values: Path) -> None:
    for template in pods(rendered(values)):
        spec = template["spec"]
        assert (
            spec["securityContext"]["runAsNonRoot"]
            and spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        )
        assert min(spec["securityContext"][name] for name in ("runAsUser", "runAsGroup", "fsGroup")) >= 10000
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys() and not spec["enableServiceLinks"]
        (only,) = spec["containers"]
        own = only["securityContext"]
        assert not own["allowPrivilegeEscalation"] and own["capabilities"] == {"drop": ["ALL"]}
        assert own["readOnlyRootFilesystem"] == ("nvidia.com/gpu" not in only["resources"]["limits"])


@each_set
def test_only_the_router_may_ask_kubernetes(values: Path) -> None:
    documents = rendered(values)
    for template in pods(documents):
        asks = template["metadata"]["labels"]["app.kubernetes.io/component"] == "router"
        assert template["spec"]["automountServiceAccountToken"] == asks
    assert all(not account["automountServiceAccountToken"] for account in of_kind(documents, "ServiceAccount").values())
    roles = of_kind(documents, "Role")
    rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}]
    assert [role["rules"] for role in roles.values()] == [rules] * ("-router" in of_kind(documents, "Deployment"))
    assert not of_kind(documents, "ClusterRole")


@each_set
def test_what_is_written_has_a_place_and_the_model_is_read(values: Path) -> None:
    for template in pods(rendered(values)):
        (only,) = template["spec"]["containers"]
        mounts = {mount["name"]: mount for mount in only["volumeMounts"]}
        assert mounts.keys() == {volume["name"] for volume in template["spec"]["volumes"]}
        assert {name for name, mount in mounts.items() if not mount.get("readOnly")} <= WRITTEN
        assert {name: mount["mountPath"] for name, mount in mounts.items()}["tmp"] == "/tmp"
        assert all(volume["emptyDir"]["sizeLimit"] for volume in template["spec"]["volumes"] if "emptyDir" in volume)


@each_set
def test_everything_says_what_it_is(values: Path) -> None:
    for document in rendered(values):
        assert document["metadata"]["labels"].keys() >= LABELS and document["metadata"]["namespace"] == NAMESPACE
    for template in pods(rendered(values)):
        assert template["metadata"]["labels"].keys() >= LABELS


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
def test_probes(values: Path) -> None:
    found = container(values)
    start, ready, live = (found[f"{name}Probe"] for name in ("startup", "readiness", "liveness"))
    assert start["failureThreshold"] * start["periodSeconds"] >= 600
    assert start["httpGet"]["path"] == ready["httpGet"]["path"] == "/ready" and 1 <= ready["periodSeconds"] <= 5
    assert live["httpGet"]["path"] == "/health" and live["periodSeconds"] >= 10 and live["failureThreshold"] >= 3
    deadline = deployment(values)["spec"]["progressDeadlineSeconds"]
    assert deadline >= 1200 and deadline > start["failureThreshold"] * start["periodSeconds"]


@each_server
def test_there_is_time_to_drain(values: Path) -> None:
    found, spec = container(values), pod(values)
    needed = found["lifecycle"]["preStop"]["sleep"]["seconds"] + served(found["args"]).drain_s
    assert spec["terminationGracePeriodSeconds"] > needed
    if "-router" in of_kind(rendered(values), "Deployment"):
        assert pod(values, "-router")["terminationGracePeriodSeconds"] >= spec["terminationGracePeriodSeconds"]


def test_times_of_an_end_are_added_up() -> None:
    drain = {"preStopSeconds": 5, "drainSeconds": 300}
    found = of_kind(rendered_with(merged(read(EMBEDDED), {"drain": drain})), "Deployment")["-engine"]
    assert found["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 320
    assert pod(EMBEDDED)["terminationGracePeriodSeconds"] == 90 and pod(SCALED)["terminationGracePeriodSeconds"] == 150


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


@each_server
def test_the_command_is_one_of_ours(values: Path) -> None:
    found = container(values)
    assert found["command"] == ["twofour"] and found["args"][0] == "serve"
    read = served(found["args"])
    assert (read.host, read.port, read.pre_drain_s) == ("0.0.0.0", found["ports"][0]["containerPort"], 0)
    mounts = {mount["name"]: mount["mountPath"] for mount in found["volumeMounts"]}
    assert Path(mounts["keys"]) == read.api_key_file.parent and read.model.startswith(mounts["model"])
    if read.engine == "vllm":
        flags.arguments(read, read.port, command=True)


def test_vllm_is_given_its_gpus() -> None:
    found, read = container(GPU), served(container(GPU)["args"])
    assert read.engine == "vllm" and read.max_model_len == 8192
    assert read.passed_on == ["--tensor-parallel-size", "2", "--gpu-memory-utilization", "0.9"]
    assert found["resources"]["limits"]["nvidia.com/gpu"] == found["resources"]["requests"]["nvidia.com/gpu"] == 2
    (shm,) = [volume["emptyDir"] for volume in pod(GPU)["volumes"] if volume["name"] == "shm"]
    assert shm == {"medium": "Memory", "sizeLimit": "10Gi"}
    assert pod(GPU)["runtimeClassName"] == "nvidia" and pod(GPU)["tolerations"][0]["key"] == "nvidia.com/gpu"
    (term,) = pod(GPU)["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    assert term["matchExpressions"] == [{"key": "nvidia.com/gpu.compute.major", "operator": "Gt", "values": ["7"]}]
    assert not {"affinity", "runtimeClassName", "tolerations"} & pod(EMBEDDED).keys()


@each_set
def test_memory_has_a_limit_and_cores_have_none(values: Path) -> None:
    for template in pods(rendered(values)):
        resources = template["spec"]["containers"][0]["resources"]
        assert resources["limits"]["memory"] and resources["requests"]["cpu"] and "cpu" not in resources["limits"]


@each_set
def test_keys_are_files_alone(values: Path) -> None:
    for template in pods(rendered(values)):
        (only,) = template["spec"]["containers"]
        secrets = [volume["secret"] for volume in template["spec"]["volumes"] if "secret" in volume]
        serves = only["name"] == "engine"
        assert [(secret["secretName"], secret["defaultMode"]) for secret in secrets] == [
            ("twofour-keys", 0o440)
        ] * serves
        assert not [each for each in only.get("env", ()) if "valueFrom" in each or "KEY" in each["name"]]
    assert not of_kind(rendered(values), "Secret")


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


def test_an_image_is_taken_by_its_digest() -> None:
    digest = f"sha256:{'0' * 64}"
    found = rendered_with(merged(read(EMBEDDED), {"image": {"digest": digest}}))
    assert pods(found)[0]["spec"]["containers"][0]["image"] == f"registry.example/twofour-embedded@{digest}"


def test_pruning_goes_on_where_it_was() -> None:
    spec = job()["spec"]
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
