"""A Docker engine for all tests of containers, with the image of the server and what it is given."""

from collections.abc import Iterator
from pathlib import Path

import hardened
import pytest
from docker_host import DockerHost


@pytest.fixture(scope="session")
def docker_folder(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """What the containers are given: a model that everybody may read, and keys."""
    made = tmp_path_factory.mktemp("given")
    (made / "model").mkdir()
    for file in tiny_model_folder.iterdir():
        (made / "model" / file.name).write_bytes(file.read_bytes())
    (made / "api_keys").write_text(f"{hardened.KEY}\n")
    for path in (*made.parents[:2], made, made / "model"):
        path.chmod(0o755)
    return made


@pytest.fixture(scope="session")
def docker_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerHost]:
    made = DockerHost(tmp_path_factory.mktemp("docker"))
    try:
        made.load("Dockerfile.embedded", hardened.IMAGE)
        yield made
    finally:
        made.close()


@pytest.fixture
def container(docker_host: DockerHost, docker_folder: Path) -> Iterator[str]:
    """The name of a server's that is healthy."""
    try:
        yield hardened.start(docker_host, docker_folder)
    finally:
        docker_host.do("rm", "--force", "server")
