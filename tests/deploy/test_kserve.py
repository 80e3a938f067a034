"""The files for KServe: what a pod of them may do, how long it has to end, and the command that a shell makes of it."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from custom_resources import is_custom
from deployed import ran
from kserve import Document, container, documents, filled, laid_over, one, pods, shell_words, variables

BUFFER_S = 5  # what KServe keeps of the grace for the end of the process
each_pod = pytest.mark.parametrize("name", ["single", "leader", "worker"])


def pre_stop_s(pod: Document) -> int:
    sleep, seconds = container(pod)["lifecycle"]["preStop"]["exec"]["command"]
    assert sleep == "/bin/sleep"
    return int(seconds)


@each_pod
def test_a_pod_may_do_little(name: str) -> None:
    pod = pods()[name]
    rights, user = container(pod)["securityContext"], pod["securityContext"]
    assert rights["capabilities"] == {"drop": ["ALL"]} and rights["allowPrivilegeEscalation"] is False
    assert user["runAsNonRoot"] and user["runAsUser"] >= 10000 and user["runAsGroup"] >= 10000
    assert user["seccompProfile"] == rights["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False


@each_pod
def test_a_gpu_is_asked_for_and_memory_limited(name: str) -> None:
    asked = container(pods()[name])["resources"]
    assert asked["limits"]["nvidia.com/gpu"] == asked["requests"]["nvidia.com/gpu"]
    assert asked["limits"]["memory"] == asked["requests"]["memory"]
    assert "cpu" in asked["requests"] and "cpu" not in asked["limits"], "a limit would only slow a step down"


@each_pod
def test_what_it_writes_to_has_a_bound(name: str) -> None:
    pod = pods()[name]
    sizes = {each["name"]: each["emptyDir"].get("sizeLimit") for each in pod["volumes"] if "emptyDir" in each}
    mounted = {each["mountPath"]: each["name"] for each in container(pod)["volumeMounts"]}
    assert all(sizes.values()) and {"/home", "/dev/shm"} <= set(mounted) and set(sizes) <= set(mounted.values())


@each_pod
def test_the_image_is_ours_and_has_a_version(name: str) -> None:
    assert re.fullmatch(r"\S+/twofour-vllm:\d+\.\d+\.\d+", container(pods()[name])["image"])


def test_one_node_drains_within_its_grace() -> None:
    """vLLM gets what KServe computes: the grace less its own 15 s of preStop and a buffer."""
    pod = pods()["single"]
    assert pre_stop_s(pod) == 15 and pod["terminationGracePeriodSeconds"] - pre_stop_s(pod) - BUFFER_S >= 60


def test_a_leader_drains_within_its_grace_and_its_workers_wait_for_it() -> None:
    leader, worker = pods()["leader"], pods()["worker"]
    drain_s = int(re.findall(r"--shutdown-timeout (\d+)", variables(leader)["ROLE_ARGS"])[0])
    assert drain_s >= 60 and leader["terminationGracePeriodSeconds"] > pre_stop_s(leader) + drain_s
    assert worker["terminationGracePeriodSeconds"] > pre_stop_s(worker) > pre_stop_s(leader) + drain_s


def test_groups_are_as_large_as_the_model_is_cut() -> None:
    spec = one("LLMInferenceService", "twofour-nodes")["spec"]
    gpus = container(pods()["worker"])["resources"]["limits"]["nvidia.com/gpu"]
    assert spec["parallelism"]["tensor"] == int(gpus) and spec["parallelism"]["pipeline"] >= 2


@pytest.mark.parametrize("kind", ["PodDisruptionBudget", "NetworkPolicy"])
def test_what_stands_beside_selects_the_pods(kind: str) -> None:
    """By the labels that KServe gives them."""
    name = {"PodDisruptionBudget": "twofour", "NetworkPolicy": "twofour-nodes"}[kind]
    spec = one(kind, name)["spec"]
    selector = spec.get("podSelector") or spec["selector"]
    assert selector["matchLabels"]["app.kubernetes.io/name"] == one("LLMInferenceService", name)["metadata"]["name"]


@pytest.mark.tools
def test_kubernetes_takes_what_stands_beside(tmp_path: Path) -> None:
    """From the oldest that KServe v0.20 takes."""
    file = tmp_path / "beside.yaml"
    file.write_text(yaml.safe_dump_all(each for each in documents() if not is_custom(each)))
    versions = [word for version in ("1.32", "1.37") for word in ("--kubernetes-version", version)]
    said = ran("kubernetes-validate", "--strict", *versions, file).splitlines()
    assert len(said) == 4 and all(line.startswith("INFO") for line in said)


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize(("role", "rank"), [("leader", 0), ("worker", 1)])
def test_a_shell_makes_this_of_the_command(role: str, rank: int, tls: bool, tmp_path: Path) -> None:
    words = shell_words(role, rank, tls, tmp_path)
    assert words[:2] == ["serve", "/mnt/models"]
    said = dict(pairwise(words))
    assert (said["--nnodes"], said["--pipeline-parallel-size"], said["--tensor-parallel-size"]) == ("2", "2", "4")
    assert (said["--node-rank"], said["--master-addr"]) == (str(rank), "group-0.service")
    assert ("--headless" in words) == (role == "worker") and ("--shutdown-timeout" in words) == (role == "leader")
    assert ("--ssl-certfile" in words) == (tls and role == "leader")
    assert words[-4:] == ["--max-num-queued-reqs", "256", "--seed", "1"], "then come additional flags, then args"
    assert not any("{{" in word or "$" in word for word in words)


def test_a_merge_is_by_name() -> None:
    base = {"a": [{"name": "x", "v": 1, "w": [1, 2]}, {"name": "y"}], "b": 1}
    patch = {"a": [{"name": "x", "w": [3]}, {"name": "z"}], "c": 2}
    assert laid_over(base, patch) == {
        "a": [{"name": "x", "v": 1, "w": [3]}, {"name": "y"}, {"name": "z"}],
        "b": 1,
        "c": 2,
    }


def test_templates_are_filled_by_branch() -> None:
    text = "{{ if .GlobalConfig.EnableTLS }}s{{ else }}p{{ end }}-{{ if .GlobalConfig.EnableTLS }}t{{ end }}."
    assert (filled(text, True), filled(text, False)) == ("s-t.", "p-.")
