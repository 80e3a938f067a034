"""Pods as the chart renders them, run by podman in a network that is nothing but loopback.

There is no kubelet. What it would do is left out of the pod here, by name, and done by the tests: probes, preStop, the
wait for the end, a start after it. What a cluster would bring has a folder of this machine in its place: claims and
secrets. Ports are not published and volumes have no bounds. All else is the pod that was rendered.
"""

import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from deployed import ASK, PODMAN, STREAM, ULIMITS, ran, run, tool
from docker_host import build

OF_A_KUBELET = ("startupProbe", "readinessProbe", "livenessProbe", "lifecycle", "ports")
Document = dict[str, Any]


def template(documents: list[Document], kind: str) -> Document:
    """The pod spec of the one Deployment or Job among what was rendered."""
    (found,) = [each for each in documents if each["kind"] == kind]
    return dict(found["spec"]["template"]["spec"])


def playable(name: str, spec: Document, folders: Mapping[str, Path]) -> Document:
    """What podman is given. folders: by the name of a claim or secret."""
    pod = copy.deepcopy(spec)
    for container in pod["containers"]:
        for word in OF_A_KUBELET:
            container.pop(word, None)
        for mount in container["volumeMounts"]:
            mount["name"] = f"{name}-{mount['name']}"  # podman's pods share what has the same name
    pod["volumes"] = [_volume(each, folders) | {"name": f"{name}-{each['name']}"} for each in pod["volumes"]]
    pod["restartPolicy"] = "Never"
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod}


def _volume(volume: Document, folders: Mapping[str, Path]) -> Document:
    if "emptyDir" in volume:
        return {"emptyDir": {}}  # its bound is the kubelet's
    source = volume.get("persistentVolumeClaim", {}).get("claimName") or volume["secret"]["secretName"]
    return {"hostPath": {"path": str(folders[source]), "type": "Directory"}}


def make_image(spec: Document) -> None:
    """The shipped one, under the name that was rendered."""
    build("Dockerfile.embedded", "twofour-embedded:local")
    ran(*PODMAN, "tag", "localhost/twofour-embedded:local", spec["containers"][0]["image"])


class Pod:
    """One of one container."""

    def __init__(self, name: str, spec: Document, folders: Mapping[str, Path], folder: Path) -> None:
        (self.container,) = spec["containers"]
        self._pod, self.name = name, f"{name}-{self.container['name']}"
        file, config = folder / f"{name}.yaml", folder / "containers.conf"
        file.write_text(yaml.safe_dump(playable(name, spec, folders)))
        config.write_text(f"[containers]\ndefault_ulimits = {list(ULIMITS[1::2])}\n")
        env = {**os.environ, "CONTAINERS_CONF": str(config)}
        ran(*PODMAN, "play", "kube", "--replace", "--network", "none", file, env=env)

    @property
    def state(self) -> Document:
        found: list[Document] = json.loads(ran(*PODMAN, "inspect", self.name))
        return dict(found[0]["State"])

    @property
    def pid(self) -> int:
        """Of its first process, as this machine knows it."""
        return int(self.state["Pid"])

    def do(self, *command: str) -> str:
        return ran(*PODMAN, "exec", self.name, *command)

    def fails(self, *command: str) -> str:
        """What a command in it says that must not succeed."""
        ended = run(*PODMAN, "exec", self.name, *command)
        assert ended.returncode != 0, ended.stdout
        return ended.stdout

    def logs(self) -> str:
        return run(*PODMAN, "logs", self.name).stdout

    def inside(self, *command: str) -> list[str]:
        """A command of this machine, in the pod's network."""
        return [tool("nsenter"), "--target", str(self.pid), "--net", *command]

    def url(self, path: str, port: str | int = "http") -> str:
        """A port may be named."""
        ports = {each["name"]: each["containerPort"] for each in self.container.get("ports", ())}
        return f"http://127.0.0.1:{ports.get(port, port)}{path}"

    def ask(self, path: str, key: str = "", body: str = "") -> str:
        return ran(*self.inside(sys.executable, "-c", ASK, self.url(path), key, body))

    def refusal(self, path: str, key: str = "", body: str = "") -> str:
        ended = run(*self.inside(sys.executable, "-c", ASK, self.url(path), key, body))
        assert ended.returncode != 0, ended.stdout
        return ended.stdout

    def passes(self, probe: str) -> bool:
        """One question of a rendered probe, as a kubelet asks it."""
        asked = self.container[probe]["httpGet"]
        return (
            run(*self.inside(sys.executable, "-c", ASK, self.url(asked["path"], asked["port"]), "", "")).returncode == 0
        )

    def starts(self) -> bool:
        """Asked by the rendered startup probe, as often as that allows."""
        probe = self.container["startupProbe"]
        for _ in range(probe["failureThreshold"]):
            if self.passes("startupProbe") or not self.state["Running"]:
                break
            time.sleep(probe["periodSeconds"])
        return self.passes("startupProbe")

    def stream(self, path: str, key: str, body: str) -> "subprocess.Popen[str]":
        """A client whose answer has begun."""
        words = self.inside(sys.executable, "-c", STREAM, self.url(path), key, body)
        client = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert client.stdout is not None and client.stdout.readline().startswith("data: ")
        return client

    def signal(self, name: str) -> None:
        ran(*PODMAN, "kill", "--signal", name, self.name)

    def wait(self, limit_s: float) -> int:
        """Its exit status."""
        return int(ran(*PODMAN, "wait", self.name, limit_s=limit_s))

    def close(self) -> None:
        run(*PODMAN, "pod", "kill", self._pod)
        ran(*PODMAN, "pod", "rm", "--force", self._pod)
