"""The shipped Dockerfile.vllm over a base of our own, under the name that it asks for: Debian and vLLM for CPUs.

vLLM is that of `make vllm`: its packages are copied to where Debian's Python looks, as vLLM's own image has them.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deployed import ASK, MADE, PODMAN, ROOT, ULIMITS, ran, run, tree
from docker_host import OFFLINE, PATHS
from processes import soon
from vllm_server import PYTHON

BASE = "docker.io/vllm/vllm-openai:v0.32.0"
DEBIAN = "localhost/debian-for-vllm:local"
IMAGE = "twofour-vllm:local"
KEY, PORT = "key-of-a-test", "8017"
URL = f"http://127.0.0.1:{PORT}"
# It has no networks of its own here: the port is that of this machine, and closed to others.
HARDENED = (
    *("--network", "host", "--read-only", "--tmpfs", "/tmp:size=256m", "--volume", "/cache", "--shm-size", "256m"),
    *("--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--memory", "3g", *ULIMITS),
    *("--health-interval", "disable"),  # podman has systemd look after it; here the test does
)
AT_ALL = ("--no-healthcheck", *ULIMITS)
ONCE = ("--rm", "--network", "none", *AT_ALL)
BY_VLLM = f"""FROM {DEBIAN}
RUN rm /usr/lib/python3*/EXTERNALLY-MANAGED
COPY . /usr/local/lib/python3.11/dist-packages
ENTRYPOINT ["vllm", "serve"]
"""
LEFT_OUT = "twofour*\n__editable__*\n"


def podman(*words: str | Path, limit_s: float = 120) -> str:
    return ran(*PODMAN, *words, limit_s=limit_s)


def built() -> str:
    """The image, by the target with which a release makes it. Nothing is fetched: all that it needs is in the base."""
    import_base()
    (MADE / "pip.conf").write_text(OFFLINE)
    flags = (
        "--pull-never",
        "--format",
        "docker",
        "--network",
        "host",
        *ULIMITS,
        "-v",
        f"{MADE}/pip.conf:/etc/pip.conf:ro",
    )
    ran("make", "-C", ROOT, "image-vllm", *by_podman(), f"BASE={BASE}", f"BUILD_FLAGS={' '.join(flags)}", limit_s=900)
    return IMAGE


def by_podman() -> tuple[str, ...]:
    """What `make` is told of images here."""
    return f"DOCKER={' '.join(PODMAN)}", f"IMAGE={IMAGE}", f"RUN_FLAGS={' '.join(AT_ALL)}"


def import_base() -> None:
    if run(*PODMAN, "image", "exists", BASE).returncode == 0:
        return
    if not PYTHON.exists():
        ran("make", "-C", ROOT, "vllm", limit_s=1200)
    root, archive = tree("vllm", "python3", "ca-certificates", "libnuma1", "libstdc++6"), MADE / "vllm.tar"
    ran("tar", "--create", "--file", archive, "--directory", root, ".")
    podman("import", "--change", PATHS, archive, DEBIAN, limit_s=300)
    archive.unlink()
    file, ignored = MADE / "Containerfile", MADE / "ignored"
    file.write_text(BY_VLLM)
    ignored.write_text(LEFT_OUT)
    packages = PYTHON.parents[1].resolve() / "lib" / "python3.11" / "site-packages"
    how = ("--pull-never", "--format", "docker", "--ignorefile", ignored, "--file", file, "--tag", BASE)
    podman("build", *how, packages, limit_s=1200)


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A container that serves folder/model, until the block ends."""
    name = f"twofour-{folder.name}"
    given = ("-v", f"{folder}/model:/model:ro", "-v", f"{folder}/api_keys:/run/secrets/api_keys:ro")
    small = ("--env", "VLLM_CPU_KVCACHE_SPACE=1", "--env", "OMP_NUM_THREADS=1", "--env", f"TWOFOUR_PORT={PORT}")
    ours = ("--engine", "vllm", "--port", PORT, "--api-key-file", "/run/secrets/api_keys", "--threads", "1")
    podman(
        "run",
        "--detach",
        "--name",
        name,
        *HARDENED,
        *given,
        *small,
        IMAGE,
        "serve",
        "/model",
        *ours,
        "--",
        "--enforce-eager",
    )
    try:
        assert soon(lambda: run(*PODMAN, "healthcheck", "run", name).returncode == 0, 900), podman("logs", name)
        yield name
    finally:
        podman("rm", "--force", "--volumes", "--time", "0", name)


def ask(path: str, key: str = "", body: str = "") -> str:
    return run(sys.executable, "-c", ASK, f"{URL}{path}", key, body).stdout
