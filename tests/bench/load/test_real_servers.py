"""Servers that nobody scripted, asked by the load client: our own over TLS, and that of transformers."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import certificates
import httpx
import pytest
from processes import soon

from twofour.bench.load.access import Access
from twofour.bench.load.endpoint import Endpoint, served_model
from twofour.bench.load.run import Run, document, measure
from twofour.bench.load.service import Api, Service
from twofour.bench.load.workload import Lengths, synthetic
from twofour.bench.targets.servers import Options, serve_command, started
from twofour.prune.errors import ServerError

START_S = 300.0
KEY = "sk-SECRET-0123"
APIS: tuple[Api, ...] = ("completions", "chat")
LOAD = synthetic(4, Lengths(8), Lengths(6), 0, concurrency=2)


@contextmanager
def own_server(model: Path, certificate: Path, folder: Path) -> Iterator[str]:
    (folder / "keys").write_text(KEY)
    flags = ("--ssl-certfile", str(certificate), "--api-key-file", str(folder / "keys"), "--served-model-name", "m")
    command, log = serve_command(str(model), Options(threads=1, flags=flags)), folder / "log"
    with started(command, log):
        assert soon(lambda: "ready at" in log.read_text(), START_S), log.read_text()
        found = re.search(r"ready at (https://[\d.:]+)", log.read_text())
        assert found
        yield found[1]


@contextmanager
def transformers_server(model: Path, folder: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("transformers")
    command = [program] if program.exists() else [sys.executable, "-P", "-m", "transformers.cli.transformers"]
    asked = [*command, "serve", str(model), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("wb") as log, subprocess.Popen(asked, stdout=log, stderr=log, env=env) as process:
        try:
            assert soon(lambda: well(port), START_S), (folder / "log").read_text()
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def well(port: int) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200
    return False


def whole(run: Run) -> None:
    """Every token of every answer has come, one by one, and was counted."""
    assert [record.error for record in run.records] == [None] * 4
    assert [(record.output_tokens, record.kinds) for record in run.records] == [(6, {"text": 6})] * 4
    assert run.summary.token_counts == "per chunk"


@pytest.mark.slow
def test_our_own_server_over_tls(tiny_model_folder: Path, tmp_path: Path) -> None:
    certificate = certificates.made_in(tmp_path)
    access = Access(KEY, ca_file=certificate)
    with own_server(tiny_model_folder, certificate, tmp_path) as url:
        assert served_model(url, access) == "m"
        for api in APIS:
            run = measure(Service(url, "m", access, api=api), LOAD)
            whole(run)
            assert document(run, False)["load"]["tls"] == "of a file"
            assert bool(run.template_tokens) == (api == "chat")
        state = Endpoint(url, "m", access).scrape()
        with pytest.raises(ServerError, match="status 401"):
            measure(Service(url, "m", Access("wrong", ca_file=certificate)), LOAD)
    assert state and state.memory.weight_bytes


@pytest.mark.slow
def test_the_server_of_transformers(tiny_model_folder: Path, tmp_path: Path) -> None:
    """It refuses ignore_eos by name, sends its usage at the end, and no [DONE]."""
    with transformers_server(tiny_model_folder, tmp_path) as url:
        for api in APIS:
            with pytest.raises(ServerError, match=r"ignore_eos.*give --plain"):
                measure(Service(url, str(tiny_model_folder), api=api), LOAD)
            whole(measure(Service(url, str(tiny_model_folder), api=api, plain=True), LOAD))
