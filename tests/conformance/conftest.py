"""A server for the judges, and the source archive of vLLM, which `make test-all` has put beside the tools."""

import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from vllm_server import PYTHON, quiet

Serve = Callable[..., AbstractContextManager[str]]


@pytest.fixture(scope="session")
def serve(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Serve:
    """`twofour serve` for the length of a `with` block; gives its address."""
    engine = request.config.getoption("--engine")

    @contextmanager
    def served(model: Path, *flags: str) -> Iterator[str]:
        log = tmp_path_factory.mktemp("serve") / "log"
        command = ["-m", "twofour", "serve", str(model), "--port", "0", "--threads", "1", *flags]
        if engine == "vllm":
            command = [str(PYTHON), "-P", *command, "--engine", "vllm", "--", "--enforce-eager"]
        else:
            command = [sys.executable, *command]
        env = {**os.environ, **(quiet(log.parent) if engine == "vllm" else {})}
        with (
            log.open("w") as errors,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=env) as process,
        ):
            assert process.stdout is not None
            ready = next((line for line in process.stdout if line.startswith("ready at")), None)
            assert ready is not None, log.read_text()[-2000:]
            yield ready.split()[2].removesuffix("/v1;")
            process.terminate()
            assert process.wait(60) == 0, log.read_text()[-2000:]
        assert engine == "vllm" or "Traceback" not in log.read_text()

    return served


@pytest.fixture(scope="session")
def vllm_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tests and the examples of vLLM, unpacked; nothing else of it."""
    archive = next(Path(sys.prefix).glob("vllm-*.tar.gz"), None)
    if archive is None:
        pytest.skip("needs vLLM's source archive: make test-all downloads it")
    folder = tmp_path_factory.mktemp("vllm")
    with tarfile.open(archive) as tar:
        wanted = [member for member in tar if member.name.split("/")[1:2] in (["tests"], ["examples"])]
        tar.extractall(folder, wanted, filter="data")
    return next(folder.iterdir())
