"""The tools that judge and run `deploy/`: asked for by name, and a test that lacks one fails and says how to get it."""

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
MADE = ROOT / ".deploy"  # kept from run to run: what takes minutes to make
RELEASE = "bookworm"
PODMAN = (
    *("podman", "--runtime", "runc", "--cgroup-manager", "cgroupfs"),
    *("--root", str(MADE / "podman"), "--runroot", "/tmp/twofour-podman"),
)
# A host that has no right to raise a limit cannot give a container the usual ones.
ULIMITS = ("--ulimit", "nofile=20000:20000", "--ulimit", "nproc=4000:4000")
# python -c ASK URL KEY BODY: for where there is no other client.
ASK = (
    "import sys, urllib.request as u; r = u.Request(sys.argv[1], sys.argv[3].encode() or None, "
    "{'Authorization': 'Bearer ' + sys.argv[2], 'Content-Type': 'application/json'}); "
    "print(u.urlopen(r, timeout=60).read().decode())"
)
# The same for a stream, line by line as it comes.
STREAM = (
    "import sys, urllib.request as u; r = u.Request(sys.argv[1], sys.argv[3].encode(), {'Authorization': 'Bearer ' + "
    "sys.argv[2], 'Content-Type': 'application/json'})\n"
    "for line in u.urlopen(r, timeout=120): print(line.decode(), end='', flush=True)"
)


def tool(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if not found:
        pytest.fail(f'{name} is not installed here; run "make deploy-tools deploy-judges", as root on a Debian')
    return found


def run(
    *command: str | Path, limit_s: float = 120, env: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """stderr stands behind stdout."""
    words = [tool(str(command[0])), *map(str, command[1:])]
    return subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=limit_s, env=env, check=False
    )


def ran(*command: str | Path, limit_s: float = 120, env: Mapping[str, str] | None = None) -> str:
    """What a command that must succeed has said."""
    ended = run(*command, limit_s=limit_s, env=env)
    assert ended.returncode == 0, f"{' '.join(map(str, command))} ended with {ended.returncode}: {ended.stdout[-4000:]}"
    return ended.stdout


def tree(name: str, *packages: str) -> Path:
    """A folder with a small Debian in it, made once from its packages."""
    folder, done = MADE / name, MADE / f"{name}.made"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        MADE.mkdir(exist_ok=True)
        ran(
            "debootstrap",
            "--variant=minbase",
            f"--include={','.join(packages)}",
            RELEASE,
            folder,
            mirror(),
            limit_s=600,
        )
        done.touch()
    return folder


def mirror() -> str:
    """Where apt takes this release from."""
    known = ran("apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME)").splitlines()
    found = [line.split()[0] for line in known if line.endswith(f" {RELEASE}")]
    assert found, f"apt knows no source of {RELEASE}; run the tests on it, or give apt one"
    return found[0]


def wheel() -> Path:
    """Of this checkout, built anew where a source is newer."""
    folder = MADE / "wheel"
    built = sorted(folder.glob("twofour-*.whl"))
    if not built or built[-1].stat().st_mtime < newest_source():
        shutil.rmtree(folder, ignore_errors=True)
        ran(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT, limit_s=600)
        built = sorted(folder.glob("twofour-*.whl"))
    return built[-1]


def newest_source() -> float:
    folders = [ROOT / name for name in ("root", "prune", "serve", "bench")]
    files = [file for folder in folders for file in folder.rglob("*") if file.suffix in (".py", ".c", ".cpp", ".h")]
    return max(file.stat().st_mtime for file in [*files, ROOT / "pyproject.toml", ROOT / "setup.py"])
