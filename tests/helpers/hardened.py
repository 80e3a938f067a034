"""The server in a container as it is shipped: no rights, no file system that can be written, a limit of memory."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
from deployed import STREAM
from docker_host import DockerHost

IMAGE, URL, KEY = "twofour-embedded:local", "http://127.0.0.1:8000", "key-of-a-test"
NO_RIGHTS = (
    *("--network", "host", "--init", "--read-only", "--tmpfs", "/tmp:size=64m", "--cap-drop", "ALL"),
    *("--security-opt", "no-new-privileges", "--pids-limit", "512"),
)
KEPT = ("--restart", "unless-stopped")
MEMORY = ("--memory", "2g")
SERVE = ("serve", "/model", "--threads", "1", "--drain-s", "60", "--api-key-file", "/run/secrets/api_keys")
# Long enough to be under way when the server is told to end.
LONG = {"model": "model", "prompt": "hello", "max_tokens": 900, "ignore_eos": True, "stream": True}
GOLDEN = {"model": "model", "prompt": "Once upon a time", "max_tokens": 48, "temperature": 0, "ignore_eos": True}


def given(folder: Path) -> tuple[str, ...]:
    """Flags that mount a model and keys."""
    return ("-v", f"{folder}/model:/model:ro", "-v", f"{folder}/api_keys:/run/secrets/api_keys:ro")


def start(host: DockerHost, folder: Path, *flags: str, name: str = "server") -> str:
    """The name of a container that is healthy."""
    host.do("run", "--detach", "--name", name, *NO_RIGHTS, *KEPT, *(flags or MEMORY), *given(folder), IMAGE, *SERVE)
    assert host.healthy(name), host.do("logs", name)
    return name


def streaming(host: DockerHost) -> "subprocess.Popen[str]":
    """A client whose stream has begun."""
    words = host.inside(sys.executable, "-c", STREAM, f"{URL}/v1/completions", KEY, json.dumps(LONG))
    client = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None and client.stdout.readline().startswith("data: ")
    return client


def post(host: DockerHost, body: bytes | dict[str, Any], url: str = URL) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}

    def asked() -> httpx.Response:
        return httpx.post(f"{url}/v1/completions", content=content, headers=headers, timeout=120, trust_env=False)

    return host.in_network(asked)


def golden(host: DockerHost) -> str:
    answer = post(host, GOLDEN)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def metric(host: DockerHost, name: str, url: str = URL) -> float:
    text = host.in_network(lambda: httpx.get(f"{url}/metrics", timeout=10, trust_env=False).text)
    return sum(float(line.rpartition(" ")[2]) for line in re.findall(rf"^{name}\{{.*$", text, re.MULTILINE))


def pids(host: DockerHost, container: str) -> tuple[int, int]:
    """The server and its engine, by the numbers that this machine knows them by; above them is an init."""
    server = child(int(host.inspect(container)["State"]["Pid"]))
    return server, child(server)


def child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
