"""The chart's pods, run by podman as they are rendered: what they may do, how they end, how they heed their limits."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from charts import rendered_with
from pods import Document, Pod, make_image, template
from processes import soon

from twofour.prune import check

pytestmark = pytest.mark.slow
KEY, GIB = "key-of-a-test", 1 << 30
SHORT = {"model": "toy", "prompt": "hello", "max_tokens": 4}
LONG = {"model": "toy", "prompt": "hello", "max_tokens": 300, "ignore_eos": True, "stream": True}
LIMITS = {"cpu": "1", "memory": "2Gi"}
SERVING = {
    "image": {"repository": "registry.example/twofour-embedded"},
    "model": {"name": "toy", "path": "toy", "existingClaim": "models"},
    "keys": {"existingSecret": "keys", "key": "api_keys"},
    "drain": {"preStopSeconds": 3, "drainSeconds": 60},
    "resources": {"requests": LIMITS, "limits": LIMITS},
}
PRUNING = {
    "serve": False,
    "image": SERVING["image"],
    "model": {"existingClaim": "pruned"},
    "prune": {
        "enabled": True,
        "source": {"existingClaim": "models", "path": "toy"},
        "target": {"path": "toy-2of4"},
        "args": ["--method", "wanda", "--calibration", "self", "--samples", "8", "--length", "64"],
    },
    "extraEnv": [{"name": "OMP_NUM_THREADS", "value": "1"}],
}
READ = (
    "from twofour.prune.machine import control_groups as c; from twofour.prune.machine.processors import usable_cores;"
    "print(min(each.limit for each in c.memory()), c.cpus(), usable_cores())"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, large_model_folder: Path) -> dict[str, Path]:
    """What stands for claims and secrets. A kubelet gives volumes and secrets to the pod's group."""
    made = tmp_path_factory.mktemp("volumes")
    found = {name: made / name for name in ("models", "keys", "pruned")}
    for folder in found.values():
        folder.mkdir()
    (found["models"] / "toy").mkdir()
    for file in large_model_folder.iterdir():
        (found["models"] / "toy" / file.name).write_bytes(file.read_bytes())
    (found["keys"] / "api_keys").write_text(f"{KEY}\n")
    for path in (found["keys"] / "api_keys", found["pruned"]):
        path.chmod(0o700)
        os.chown(path, 10001, 10001)
    return found


@pytest.fixture(scope="module")
def spec() -> Document:
    found = template(rendered_with(SERVING), "Deployment")
    make_image(found)
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, spec: Document, folders: dict[str, Path]) -> Iterator[Pod]:
    pod = Pod("server", spec, folders, tmp_path_factory.mktemp("pod"))
    assert pod.starts(), pod.logs()
    yield pod
    pod.close()


def test_it_is_ready_and_answers_who_has_a_key(server: Pod) -> None:
    assert server.passes("readinessProbe") and server.passes("livenessProbe")
    answer = json.loads(server.ask("/v1/completions", KEY, json.dumps(SHORT)))
    assert answer["usage"]["completion_tokens"] == 4
    assert "401" in server.refusal("/v1/completions", "", json.dumps(SHORT))
    assert KEY not in server.logs()


def test_it_is_nobody_with_no_rights(server: Pod) -> None:
    status = dict(re.findall(r"^(\w+):\s+(.+)$", server.do("cat", "/proc/1/status"), re.MULTILINE))
    assert status["Uid"].split() == status["Gid"].split() == ["10001"] * 4
    assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapInh")} == {0}
    assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2"


def test_it_writes_to_its_own_volumes_alone(server: Pod) -> None:
    for place in ("/", "/opt/twofour", "/model/toy", "/run/secrets/twofour"):
        assert re.search("Read-only file system|Permission denied", server.fails("touch", f"{place}/x"))
    assert "Read-only file system" in server.fails("touch", "/opt/x")
    server.do("touch", "/cache/x", "/tmp/x")


def test_its_limits_are_known_to_it(server: Pod) -> None:
    """Of control groups, as they look from within a container."""
    memory, cpus, cores = server.do("python3", "-c", READ).split()
    assert (int(memory), float(cpus), int(cores)) == (2 * GIB, 1.0, 1)


def test_its_cache_is_sized_by_its_limit_of_memory(server: Pod, folders: dict[str, Path]) -> None:
    config = json.loads((folders["models"] / "toy" / "config.json").read_text())
    heads, layers, size = config["num_key_value_heads"], config["num_hidden_layers"], config["hidden_size"]
    per_token = 2 * 2 * layers * heads * size // config["num_attention_heads"]
    (line,) = re.findall(r"^vllm:cache_config_info\{.*$", server.ask("/metrics"), re.MULTILINE)
    found = {name: int(value) for name, value in re.findall(r'(block_size|num_gpu_blocks)="(\d+)"', line)}
    share = found["block_size"] * found["num_gpu_blocks"] * per_token / (2 * GIB)
    assert 0.09 < share < 0.125, "an eighth of what the weights leave of it"


@pytest.mark.parametrize("cores", [1, 2])
def test_as_many_threads_work_as_its_limit_pays_for(
    server: Pod, spec: Document, folders: dict[str, Path], tmp_path: Path, cores: int
) -> None:
    """With two, it shows that threads which work are seen here."""
    if cores == 1:
        assert working_threads(server) == 1 and "one computes" not in server.logs()
        return
    container = {**spec["containers"][0], "resources": {"limits": {**LIMITS, "cpu": str(cores)}}}
    container["args"] = [*container["args"], "--threads", str(cores)]
    pod = Pod("wide", {**spec, "containers": [container]}, folders, tmp_path)
    try:
        assert pod.starts(), pod.logs()
        assert working_threads(pod) == cores
    finally:
        pod.close()


def working_threads(pod: Pod) -> int:
    """How many threads of the engine share the work of an answer. Beside other work one may do little: a fiftieth."""
    before = spent(pod)
    pod.ask("/v1/completions", KEY, json.dumps({**LONG, "stream": False}))
    took = {thread: ticks - before.get(thread, 0) for thread, ticks in spent(pod).items()}
    return sum(ticks > sum(took.values()) / 50 for ticks in took.values())


def spent(pod: Pod) -> dict[str, int]:
    """Clock ticks of each thread of the processes below the server's."""
    server = Path(f"/proc/{pod.pid}/task/{pod.pid}/children")
    tasks = [task for pid in server.read_text().split() for task in Path(f"/proc/{pid}/task").iterdir()]
    fields = {task.name: (task / "stat").read_text().rpartition(")")[2].split() for task in tasks}
    return {name: int(found[11]) + int(found[12]) for name, found in fields.items()}


def test_it_ends_as_it_is_rendered(spec: Document, folders: dict[str, Path], tmp_path: Path) -> None:
    """preStop, in which it takes requests, then SIGTERM in the middle of a stream, and all that within the grace."""
    pod = Pod("ending", spec, folders, tmp_path)
    try:
        assert pod.starts(), pod.logs()
        pre_stop_s = pod.container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert not soon(lambda: not pod.passes("readinessProbe"), pre_stop_s), "it takes requests"
        with pod.stream("/v1/completions", KEY, json.dumps(LONG)) as client:
            pod.signal("TERM")
            assert soon(lambda: not pod.passes("readinessProbe"), 10)
            assert "503" in pod.refusal("/v1/completions", KEY, json.dumps(SHORT))
            assert client.poll() is None, "the stream goes on"
            rest, _ = client.communicate(timeout=120)
        assert rest.rstrip().endswith("data: [DONE]")
        assert pod.wait(spec["terminationGracePeriodSeconds"] - pre_stop_s) == 0
    finally:
        pod.close()


def test_pruning_goes_on_where_it_was_killed(spec: Document, folders: dict[str, Path], tmp_path: Path) -> None:
    job = template(rendered_with(PRUNING), "Job")
    assert job["containers"][0]["image"] == spec["containers"][0]["image"], "which was made"
    out = folders["pruned"] / "toy-2of4"
    first = out.parent / f".{out.name}.unfinished" / "block-0.safetensors"
    pod = Pod("prune", job, folders, tmp_path)
    try:
        assert soon(lambda: first.with_name("block-1.safetensors").exists(), 300), pod.logs()
        pod.signal("KILL")
        assert pod.wait(20) == 137 and not out.exists()
        done = blocks(first.parent)
        kept = first.stat()
        pod = Pod("prune", job, folders, tmp_path)
        assert soon(lambda: blocks(first.parent) > done, 300), pod.logs()
        assert (first.stat().st_ino, first.stat().st_mtime_ns) == (kept.st_ino, kept.st_mtime_ns), "made once"
        assert pod.wait(600) == 0, pod.logs()
    finally:
        pod.close()
    assert check(out).ok


def blocks(journal: Path) -> int:
    return len(list(journal.glob("block-*.safetensors")))
