"""A Docker engine of its own, in a network that is nothing but loopback, and the shipped images in it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from deployed import ASK, DEPLOY, MADE, PODMAN, ROOT, ULIMITS, ran, run, tool, tree
from networks import in_network_of
from processes import soon

T = TypeVar("T")
BASE = "docker.io/library/python:3.11-slim-bookworm"
PATHS = "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
OFFLINE = "[global]\nno-index = true\nfind-links = /wheels\n"
DAEMON = (
    *("dockerd", "--iptables=false", "--ip6tables=false", "--bridge=none"),
    *("--default-ulimit", "nofile=20000:20000", "--default-ulimit", "nproc=4000:4000"),
)


class DockerHost:
    def __init__(self, folder: Path) -> None:
        self._folder, self._socket = folder, f"unix://{folder}/docker.sock"
        state = ("--data-root", str(MADE / "docker"), "--exec-root", f"{folder}/exec", "--pidfile", f"{folder}/pid")
        for name in (DAEMON[0], "ip", "nsenter"):
            tool(name)
        alone = ("unshare", "--net", "--mount", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
        with (folder / "log").open("wb") as log:
            self._daemon = subprocess.Popen([*alone, *DAEMON, *state, "-H", self._socket], stdout=log, stderr=log)
        assert soon(lambda: run(*self.docker, "info").returncode == 0, 60), (folder / "log").read_text()[-4000:]

    def stand_in(self, name: str, package: str) -> None:
        """An image of others that cannot be had here: Debian's package of the same program."""
        if run(*self.docker, "image", "inspect", name).returncode:
            root, archive = tree(package, package), self._folder / "image.tar"
            ran("tar", "--create", "--file", archive, "--directory", root, ".")
            self.do("import", "--change", f'ENTRYPOINT ["{package}"]', archive, name, limit_s=300)
            archive.unlink()

    @property
    def docker(self) -> tuple[str, ...]:
        return ("docker", "-H", self._socket)

    def do(self, *words: str | Path, limit_s: float = 120) -> str:
        return ran(*self.docker, *words, limit_s=limit_s)

    def load(self, dockerfile: str, name: str) -> None:
        """Build an image as a release does, with a small Debian under the name of its base, and bring it in."""
        build(dockerfile, name)
        archive = self._folder / "image.tar"
        ran(*PODMAN, "save", "--format", "docker-archive", "--output", archive, name, limit_s=300)
        self.do("load", "--input", archive, limit_s=300)
        self.do("tag", f"localhost/{name}", name)
        archive.unlink()

    def inspect(self, container: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = json.loads(self.do("inspect", container))
        return found[0]

    def health(self, container: str) -> str:
        return str(self.inspect(container)["State"]["Health"]["Status"])

    def healthy(self, container: str) -> bool:
        return soon(lambda: self.health(container) == "healthy", 300)

    def inside(self, *command: str) -> list[str]:
        """A command of this machine, in the network of the engine."""
        return [tool("nsenter"), "--target", str(self._daemon.pid), "--net", *command]

    def in_network(self, work: Callable[[], T]) -> T:
        """Do something in a thread that is in the network of the engine, as are the sockets that it opens."""
        return in_network_of(self._daemon.pid, work)

    def ask(self, url: str, key: str = "", body: str = "") -> str:
        return ran(*self.inside(sys.executable, "-c", ASK, url, key, body))

    def try_ask(self, url: str, key: str = "", body: str = "") -> str:
        return run(*self.inside(sys.executable, "-c", ASK, url, key, body)).stdout

    def compose(self, file: Path, *words: str, env: dict[str, str], limit_s: float = 300) -> str:
        own = {**env, "DOCKER_HOST": self._socket}
        how = ("--project-directory", DEPLOY / "compose", "--project-name", "twofour", "--file", file)
        return ran("docker-compose", *how, *words, env=own, limit_s=limit_s)

    def close(self) -> None:
        for container in self.do("ps", "--all", "--quiet").split():
            self.do("rm", "--force", container)
        self._daemon.terminate()
        self._daemon.wait(60)


def build(dockerfile: str, name: str) -> None:
    import_base()
    mounts = ("-v", f"{wheels()}:/wheels:ro", "-v", f"{MADE}/pip.conf:/etc/pip.conf:ro")
    how = ("--pull-never", "--format", "docker", "--network", "host", *ULIMITS, *mounts)
    what = ("--build-arg", f"BASE={BASE}", "--file", DEPLOY / "docker" / dockerfile, "--tag", name)
    ran(*PODMAN, "build", *how, *what, ROOT, limit_s=1200)


def import_base() -> None:
    if run(*PODMAN, "image", "exists", BASE).returncode == 0:
        return
    root, archive = tree("base", "python3", "python3-venv", "python3-dev", "ca-certificates"), MADE / "base.tar"
    ran("tar", "--create", "--file", archive, "--directory", root, ".")
    ran(*PODMAN, "import", "--change", PATHS, archive, BASE, limit_s=300)
    archive.unlink()


def wheels() -> Path:
    """What the images install, fetched once by this machine's pip, which knows where from."""
    folder, done = MADE / "wheels", MADE / "wheels.made"
    (MADE / "pip.conf").write_text(OFFLINE)
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        pins = (ROOT / "constraints.txt").read_text().splitlines()
        torch = next(pin for pin in pins if pin.startswith("torch=="))
        others = MADE / "others.txt"
        others.write_text("\n".join(pin for pin in pins if pin != torch))
        wanted = (f"{torch}+cpu", "setuptools", "vllm-router==0.1.17", f"{ROOT}[json]")
        pip = (sys.executable, "-m", "pip", "download", "--quiet", "--dest", folder, "--constraint", others)
        ran(*pip, *wanted, limit_s=600)
        done.touch()
    return folder
