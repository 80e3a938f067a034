"""The files for KServe as its controller reads them: a preset and a service laid over it, and templates filled in."""

import os
import subprocess
from pathlib import Path
from typing import Any

import yaml
from deployed import DEPLOY

FILES = sorted((DEPLOY / "kserve").glob("*.yaml"))
Document = dict[str, Any]
TLS = "{{ if .GlobalConfig.EnableTLS }}"
PRESET = "kserve-config-llm-worker-pipeline-parallel"


def documents() -> list[Document]:
    return [document for file in FILES for document in yaml.safe_load_all(file.read_text())]


def one(kind: str, name: str) -> Document:
    (found,) = [each for each in documents() if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def pods() -> dict[str, Document]:
    """The pod specs of both services, as far as our files say them."""
    nodes, preset = one("LLMInferenceService", "twofour-nodes"), one("LLMInferenceServiceConfig", PRESET)
    whole = laid_over(preset["spec"], nodes["spec"])
    single = one("LLMInferenceService", "twofour")["spec"]["template"]
    return {"single": single, "leader": whole["template"], "worker": whole["worker"]}


def laid_over(base: Any, patch: Any) -> Any:
    """A strategic merge: lists of things with names go together by name, other lists and words are replaced."""
    if isinstance(base, dict) and isinstance(patch, dict):
        return {**base, **{key: laid_over(base[key], value) if key in base else value for key, value in patch.items()}}
    if isinstance(base, list) and isinstance(patch, list) and all(isinstance(each, dict) for each in (*base, *patch)):
        by_name = {each["name"]: each for each in base}
        return list(laid_over(by_name, {each["name"]: each for each in patch}).values())
    return patch


def filled(text: str, tls: bool) -> str:
    """What the controller writes for the templates that our files have; another one stays as it is."""
    before, found, rest = text.partition(TLS)
    while found:
        branch, _, after = rest.partition("{{ end }}")
        yes, _, no = branch.partition("{{ else }}")
        before, found, rest = (before + (yes if tls else no) + after).partition(TLS)
    values = {
        "{{ .Spec.Model.Name }}": "large-2of4",
        "{{ .ObjectMeta.Namespace }}": "models",
        "{{ or .Spec.Parallelism.Tensor 1 }}": "4",
    }
    for template, value in values.items():
        before = before.replace(template, value)
    return before


def container(pod: Document) -> Document:
    (found,) = pod["containers"]
    assert found["name"] == "main", "KServe mounts the model into this one"
    return dict(found)


def variables(pod: Document) -> dict[str, Any]:
    """None: taken from elsewhere."""
    return {each["name"]: each.get("value") for each in container(pod)["env"]}


def shell_words(role: str, rank: int, tls: bool, folder: Path) -> list[str]:
    """What vllm is given in a group of two, where the leader's name is known at the second question alone."""
    programs = {
        "vllm": '#!/bin/sh\nprintf "%s\\n" "$@"\n',
        "getent": f"#!/bin/sh\ntest -e {folder}/asked || {{ touch {folder}/asked; exit 2; }}\n",
        "sleep": "#!/bin/sh\n",
    }
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    pod = pods()[role]
    group = {"LWS_GROUP_SIZE": "2", "LWS_WORKER_INDEX": str(rank), "LWS_LEADER_ADDRESS": "group-0.service"}
    own = {name: filled(value, tls) for name, value in variables(pod).items() if value is not None}
    command = [filled(word, tls) for word in container(pod)["command"]]
    env = {"PATH": f"{folder}:{os.environ['PATH']}", **group, **own}
    ended = subprocess.run([*command, "--seed", "1"], env=env, capture_output=True, text=True, timeout=20, check=True)
    return ended.stdout.splitlines()
