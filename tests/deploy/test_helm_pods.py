"""What every rendered pod keeps to: the conventions of `deploy/`, each an assertion."""

import argparse
from pathlib import Path

import pytest
from charts import (
    EMBEDDED,
    GPU,
    NAMESPACE,
    PRUNE,
    SCALED,
    SELECTED,
    VALUE_SETS,
    container,
    deployment,
    merged,
    name_of,
    of_kind,
    pod,
    pods,
    read,
    rendered,
    rendered_with,
)

from twofour.serve.commands import serve
from twofour.serve.vllm_edge import flags

pytestmark = pytest.mark.tools

LABELS = {*SELECTED, *(f"app.kubernetes.io/{name}" for name in ("version", "part-of", "managed-by")), "helm.sh/chart"}
WRITTEN = {"cache", "tmp", "shm", "out"}
each_set = pytest.mark.parametrize("values", VALUE_SETS, ids=name_of)
each_server = pytest.mark.parametrize("values", [values for values in VALUE_SETS if values != PRUNE], ids=name_of)


def served(words: list[str]) -> argparse.Namespace:
    """The command of a server, as the command line reads it."""
    end = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(allow_abbrev=False)
    serve.add_arguments(parser)
    asked = parser.parse_args(words[1:end])
    asked.passed_on = words[end + 1 :]
    return asked


@each_set
def test_a_pod_may_do_little(values: Path) -> None:
    for template in pods(rendered(values)):
        spec = template["spec"]
        of_pod = spec["securityContext"]
        assert of_pod["runAsNonRoot"] and of_pod["seccompProfile"] == {"type": "RuntimeDefault"}
        assert min(of_pod[name] for name in ("runAsUser", "runAsGroup", "fsGroup")) >= 10000
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
def test_the_command_is_one_of_ours(values: Path) -> None:
    found = container(values)
    assert found["command"] == ["twofour"] and found["args"][0] == "serve"
    asked = served(found["args"])
    assert (asked.host, asked.port, asked.pre_drain_s) == ("0.0.0.0", found["ports"][0]["containerPort"], 0)
    mounts = {mount["name"]: mount["mountPath"] for mount in found["volumeMounts"]}
    assert Path(mounts["keys"]) == asked.api_key_file.parent and asked.model.startswith(mounts["model"])
    if asked.engine == "vllm":
        flags.arguments(asked, asked.port, command=True)


def test_vllm_is_given_its_gpus() -> None:
    found, asked = container(GPU), served(container(GPU)["args"])
    assert asked.engine == "vllm" and asked.max_model_len == 8192
    assert asked.passed_on == ["--tensor-parallel-size", "2", "--gpu-memory-utilization", "0.9"]
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


def test_an_image_is_taken_by_its_digest() -> None:
    digest = f"sha256:{'0' * 64}"
    found = rendered_with(merged(read(EMBEDDED), {"image": {"digest": digest}}))
    assert pods(found)[0]["spec"]["containers"][0]["image"] == f"registry.example/twofour-embedded@{digest}"
