"""A machine of its own with a real systemd: a container that has no network but its loopback."""

import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from deployed import ASK, DEPLOY, MADE, PODMAN, ULIMITS, ran, run, tree, wheel
from networks import in_network_of
from processes import soon

T = TypeVar("T")

INSTALLED = Path("/opt/twofour")
COMMAND = "#!/usr/bin/python3\nimport sys\nfrom {} import main\nsys.exit(main())\n"
COMMANDS = {"twofour": "twofour.cli", "vllm-router": "vllm_router.launch_router"}


class SystemdHost:
    """router: with vllm-router beside twofour."""

    def __init__(self, folder: Path, model: Path, router: bool = False) -> None:
        self._folder, self._name, self._router = folder, f"twofour-{folder.name}", router
        mounts = [*self._packages(), *self._units(), (self._readable(model), Path("/srv/twofour/tiny"))]
        volumes = [word for here, there in mounts for word in ("-v", f"{here}:{there}:ro")]
        (folder / "etc").mkdir()
        root = tree("systemd", "python3", "python3-venv", "ca-certificates", "systemd", "systemd-sysv")
        how = ("--privileged", "--systemd=always", "--network", "none", *ULIMITS, "-v", f"{folder}/etc:/etc/twofour")
        self._podman(
            "run",
            "--replace",
            "-d",
            "--name",
            self._name,
            *how,
            *volumes,
            "--rootfs",
            f"{root}:O",
            "/lib/systemd/systemd",
        )
        assert soon(lambda: "running" in self.try_("systemctl", "is-system-running"), 60), self.journal()
        self.do("mount", "--make-rshared", "/")  # as on a machine; credentials are mounted in another namespace

    def _packages(self) -> list[tuple[Path, Path]]:
        """The wheel unpacked, and what this interpreter has installed: the container's has the same version."""
        package = self._folder / "package"
        with zipfile.ZipFile(wheel()) as archive:
            archive.extractall(package)
        sites = [Path(path) for path in sys.path if path.endswith("site-packages")]
        sites += [router()] if self._router else []
        places = [INSTALLED / "package", *(INSTALLED / f"site{number}" for number in range(len(sites)))]
        paths, bin = self._folder / "twofour.pth", self._folder / "bin"
        paths.write_text("".join(f"{place}\n" for place in places))
        bin.mkdir()
        for name, module in COMMANDS.items():
            (bin / name).write_text(COMMAND.format(module))
            (bin / name).chmod(0o755)
        debian = (paths, Path("/usr/lib/python3/dist-packages/twofour.pth"))
        return [*zip([package, *sites], places, strict=True), debian, (bin, INSTALLED / "bin")]

    def _readable(self, model: Path) -> Path:
        """A copy that everybody may read, as the server is nobody."""
        copy = Path(shutil.copytree(model, self._folder / "model"))
        for path in (copy, *copy.iterdir()):
            path.chmod(0o755 if path.is_dir() else 0o644)
        return copy

    def _units(self) -> list[tuple[Path, Path]]:
        return [(unit, Path("/etc/systemd/system") / unit.name) for unit in (DEPLOY / "systemd").glob("*.service")]

    def _podman(self, *words: str) -> str:
        return ran(*PODMAN, *words, limit_s=600)

    def write(self, name: str, text: str) -> None:
        """A file of /etc/twofour that root alone reads."""
        file = self._folder / "etc" / name
        file.write_text(text)
        file.chmod(0o600)

    def drop_in(self, unit: str, text: str) -> None:
        """Lay settings over those of a unit."""
        self.write("drop-in.conf", text)
        self.do("mkdir", "-p", f"/etc/systemd/system/{unit}.d")
        self.do("cp", "/etc/twofour/drop-in.conf", f"/etc/systemd/system/{unit}.d/test.conf")
        self.do("systemctl", "daemon-reload")

    def in_network(self, work: Callable[[], T]) -> T:
        return in_network_of(int(self._podman("inspect", "--format", "{{.State.Pid}}", self._name)), work)

    def do(self, *command: str) -> str:
        return self._podman("exec", self._name, *command)

    def try_(self, *command: str) -> str:
        return run(*PODMAN, "exec", self._name, *command).stdout

    def show(self, unit: str, name: str) -> str:
        return self.do("systemctl", "show", "--value", "--property", name, unit).strip()

    def ask(self, url: str, key: str = "", body: str = "") -> str:
        return self.do("/usr/bin/python3", "-c", ASK, url, key, body)

    def signal(self, name: str, pid: str) -> None:
        self.do("sh", "-c", f"kill -{name} {pid}")  # a word of the shell: there is no such program

    def journal(self) -> str:
        """Of our units alone: the kernel's lines are of all that the machine does."""
        return self.try_("journalctl", "--no-pager", "--lines", "60", "--unit", "twofour*")

    def close(self) -> None:
        self._podman("rm", "--force", "--time", "0", self._name)


def router() -> Path:
    """vllm-router and what it needs, installed once."""
    folder = MADE / "router"
    if not (folder / "vllm_router").is_dir():
        MADE.mkdir(exist_ok=True)
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--target", folder)
        ran(*pip, "vllm-router==0.1.17", limit_s=600)
    return folder
