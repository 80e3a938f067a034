"""A real server in a process of its own, and what must be true of it after every fault.

The time limits of the pass rules are multiplied by TWOFOUR_FAULT_SLACK, 10 unless it is set; 1 is for a quiet machine.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from processes import soon

SLACK = float(os.environ.get("TWOFOUR_FAULT_SLACK", "10"))
PROGRAM = Path(__file__).with_name("serve_program.py")
GOLDEN = {"prompt": "Once upon a time", "max_tokens": 48, "temperature": 0, "ignore_eos": True}
LONG = {"prompt": "There was a long story", "max_tokens": 4000, "temperature": 0, "ignore_eos": True}
Say = Callable[[str, float, float | None], None]
START_S = 60.0  # not a rule: a hung start must not hang the tests


@dataclass
class Server:
    """`twofour serve`, as a supervisor runs it."""

    process: "subprocess.Popen[str]"
    log_path: Path
    url: str = ""
    golden: str = ""
    fds: int = 0
    quiet_bytes: int = 0
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers=self.headers, timeout=60 * SLACK, trust_env=False, **options)

    def get(self, path: str) -> httpx.Response:
        with self.client() as client:
            return client.get(path)

    def complete(self, **fields: Any) -> httpx.Response:
        with self.client() as client:
            return client.post("/v1/completions", json={"model": "m", "max_tokens": 3, **fields})

    @contextmanager
    def stream(self, **fields: Any) -> Iterator["Stream"]:
        """A stream of which the first token is there."""
        body = {"model": "m", **LONG, "stream": True, **fields}
        with self.client() as client, client.stream("POST", "/v1/completions", json=body) as answer:
            yield Stream(answer)

    def text(self) -> str:
        answer = self.complete(**GOLDEN)
        assert answer.status_code == 200, answer.text
        text: str = answer.json()["choices"][0]["text"]
        return text

    def metric(self, name: str) -> float:
        lines = [line for line in self.get("/metrics").text.splitlines() if line.startswith(name + "{")]
        assert lines, f"{name} is not in /metrics"
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def engine_pid(self) -> int:
        own = self.process.pid
        children = [int(pid) for pid in Path(f"/proc/{own}/task/{own}/children").read_text().split()]
        return next(pid for pid in children if b"hurt_child" in Path(f"/proc/{pid}/cmdline").read_bytes())

    def open_fds(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def settled_fds(self) -> int:
        """Without the connections that are being closed."""
        fewest = self.open_fds()
        for _ in range(20):
            time.sleep(0.01)
            fewest = min(fewest, self.open_fds())
        return fewest

    def rss_bytes(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def ready(self) -> bool:
        return self.get("/ready").status_code == 200

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        return self.process.wait(10 * SLACK)

    def idle(self) -> bool:
        series = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        return sum(self.metric(f"vllm:{name}") for name in series) == 0

    def whole(self) -> None:
        """The common pass rule."""
        assert self.process.poll() is None, self.log
        assert self.get("/health").status_code == 200
        assert self.text() == self.golden
        within(self.idle, 5)
        within(lambda: self.open_fds() == self.fds, 5)
        assert "secret" not in self.log.replace("/secret/path", "")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@dataclass
class Stream:
    """The events of an answer, as they come."""

    answer: httpx.Response

    def __post_init__(self) -> None:
        assert self.answer.status_code == 200, self.answer.read()
        self._lines = self.answer.iter_lines()
        self.first = next(line for line in self._lines if line)

    def rest(self) -> list[Any]:
        """The other documents; the last line is the end that is always said."""
        lines = [line.removeprefix("data: ") for line in [self.first, *self._lines] if line]
        assert lines[-1] == "[DONE]"
        return [json.loads(line) for line in lines[:-1]]


def within(true: Callable[[], bool], limit_s: float) -> None:
    assert soon(true, limit_s * SLACK), f"not within {limit_s:g} s x {SLACK:g}"


class Start:
    """Starts servers of one model, and ends them all."""

    def __init__(self, model: Path, folder: Path) -> None:
        self._model, self._folder = model, folder
        self._servers: list[Server] = []

    def launch(self, *flags: str, model: Path | None = None, env: dict[str, str] | None = None, **how: Any) -> Server:
        """Start a server and do not wait for it."""
        settings = json.dumps({name: how.pop(name, {}) for name in ("patience", "engine", "deadlines")})
        log_path = self._folder / f"{len(self._servers)}.log"
        served = ["--served-model-name", "m", "--dtype", "float32", "--device", "cpu", "--threads", "1", "--port", "0"]
        with log_path.open("w") as log:
            process = subprocess.Popen(
                [sys.executable, str(PROGRAM), settings, str(model or self._model), *served, *flags],
                stdout=subprocess.PIPE,
                stderr=how.pop("stderr", log),
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
                **how,
            )
        self._servers.append(Server(process, log_path))
        return self._servers[-1]

    def listening(self, *flags: str, **how: Any) -> Server:
        """Start a server and wait until it listens; it loads yet."""
        server = self.launch(*flags, **how)
        within(lambda: bool(self._url(server)) or server.process.poll() is not None, START_S)
        assert server.process.poll() is None, server.log
        server.url = self._url(server)
        return server

    def __call__(self, *flags: str, **how: Any) -> Server:
        """Start a server, wait until it has loaded, and ask it for the golden text."""
        headers = how.pop("headers", {})
        server = self.listening(*flags, **how)
        server.headers = headers
        within(lambda: server.process.poll() is not None or server.ready(), START_S)
        assert server.process.poll() is None, server.log
        server.golden = server.text()
        within(server.idle, 5)
        server.fds = server.settled_fds()
        return server

    @staticmethod
    def _url(server: Server) -> str:
        found = re.search(r"listening on (http://[\d.:]+)", server.log)
        return found[1] if found else ""

    def close(self) -> None:
        for server in self._servers:
            server.close()


@pytest.fixture(scope="module")
def start(roomy_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    made = Start(roomy_model_folder, tmp_path_factory.mktemp("logs"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def server(roomy_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """For all tests that leave it as they found it, engine restarts included."""
    made = Start(roomy_model_folder, tmp_path_factory.mktemp("logs"))
    yield made(patience={"hang_s": 5, "deaths": 99})
    made.close()


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool], float], None]:
    return within


@pytest.fixture
def say(record_property: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]) -> Say:
    """Print a figure beside its rule, if there is one, and hold it to the rule times the slack."""

    def said(what: str, found: float, limit: float | None) -> None:
        record_property(what, found)
        with capsys.disabled():
            rule = "no rule" if limit is None else f"rule: at most {limit:g}"
            print(f"\n  {what}: {found:.4g} ({rule})", end="")
        assert limit is None or found <= limit * SLACK, what

    return said
