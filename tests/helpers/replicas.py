"""Replicas of `twofour serve` behind the real vllm-router, and clients that ask it without a pause."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import openai

HOST = "127.0.0.1"
MODEL = "toy"
START_S = 240.0
ROUTER = (
    *("--policy", "round_robin", "--retry-max-retries", "5"),
    *("--cb-failure-threshold", "3", "--cb-timeout-duration-secs", "2", "--cb-success-threshold", "1"),
    *("--health-check-endpoint", "/ready", "--health-check-interval-secs", "1", "--health-check-timeout-secs", "2"),
    *("--health-failure-threshold", "1", "--health-success-threshold", "1"),
    *("--worker-startup-check-interval", "1", "--max-payload-size", "8388608"),
)
# In Kubernetes it finds them by their labels.
DISCOVERY = (
    *("--service-discovery", "--service-discovery-namespace", "{namespace}"),
    *("--service-discovery-port", "{port}", "--selector"),
)
VLLM_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind((HOST, 0))
        return int(bound.getsockname()[1])


@dataclass
class Replica:
    """One server on a port that stays its own; started, ended and started again."""

    command: tuple[str, ...]
    log: Path
    core: int
    port: int = field(default_factory=free_port)
    host: str = HOST
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def place(self) -> tuple[str, ...]:
        return ("--host", self.host, "--port", str(self.port))

    def start(self) -> None:
        own = {"VLLM_CPU_OMP_THREADS_BIND": str(self.core), "VLLM_CACHE_ROOT": str(self.log.parent / "cache")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "twofour", *self.command[:1], *self.place, *self.command[1:]],
                env={**os.environ, **VLLM_ENVIRONMENT, **own},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def is_ready(self) -> bool:
        assert self.process is not None and self.process.poll() is None, f"it has ended, see {self.log}"
        with suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/ready", timeout=2).status_code == 200
        return False

    def answered(self) -> int:
        """How many requests for text it has answered since it was started."""
        text = httpx.get(f"{self.url}/metrics", timeout=5).text
        lines = [line for line in text.splitlines() if line.startswith("vllm:request_success_total")]
        return int(sum(float(line.rpartition(" ")[2]) for line in lines))

    def terminate(self, limit_s: float = 90) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(limit_s)

    def kill(self) -> None:
        """SIGKILL its first process, as the kernel does to one that takes too much memory."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def end(self) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)


def wait_until(true: Callable[[], object], what: str, limit_s: float = START_S) -> None:
    end_at = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end_at, f"waited {limit_s:g} s for {what}"
        time.sleep(0.1)


@contextmanager
def started(found: Sequence[Replica]) -> Iterator[None]:
    """All of them, ready, for the length of a `with` block."""
    try:
        for replica in found:
            replica.start()
        for replica in found:
            wait_until(replica.is_ready, f"a replica, see {replica.log}")
        yield
    finally:
        for replica in found:
            replica.end()


@contextmanager
def router(replicas: list[Replica], log: Path) -> Iterator[str]:
    """The URL of a router in front of them."""
    with routed(("--worker-urls", *(replica.url for replica in replicas)), log) as url:
        yield url


@contextmanager
def routed(workers: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> Iterator[str]:
    """The same with other words by which it finds them."""
    port, metrics = free_port(), free_port()
    command = [sys.executable, "-m", "vllm_router.launch_router", "--host", HOST, "--port", str(port), *ROUTER]
    command += ["--prometheus-host", HOST, "--prometheus-port", str(metrics), *workers]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, start_new_session=True, env={**os.environ, **(env or {})}
        )
    try:
        wait_until(lambda: is_up(f"http://{HOST}:{port}"), "the router")
        yield f"http://{HOST}:{port}"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def is_up(url: str) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(f"{url}/v1/models", timeout=5).status_code == 200
    return False


def at_once(work: Callable[[], None]) -> None:
    work()


@dataclass
class Load:
    """Clients that ask one after the other for as long as they run; every second answer is a stream."""

    url: str
    clients: int = 3
    tokens: int = 24
    model: str = MODEL
    key: str = "none"
    whole: int = 0
    broken: list[str] = field(default_factory=list)
    stopped: bool = False

    async def run(self) -> None:
        client = openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, timeout=120)
        async with client:
            await asyncio.gather(*(self._ask(client, number) for number in range(self.clients)))

    async def _ask(self, client: openai.AsyncOpenAI, number: int) -> None:
        turn = number
        while not self.stopped:
            turn += 1
            try:
                ended = await (self._stream if turn % 2 else self._answer)(client, f"question {turn}")
            except Exception as error:  # whatever a client sees counts
                self.broken.append(f"{'stream' if turn % 2 else 'answer'}: {type(error).__name__}: {error}")
            else:
                self.whole += ended
                if not ended:
                    self.broken.append("truncated")
            await asyncio.sleep(0.05)

    async def _answer(self, client: openai.AsyncOpenAI, prompt: str) -> bool:
        answer = await client.completions.create(
            model=self.model, prompt=prompt, max_tokens=self.tokens, extra_body={"ignore_eos": True}
        )
        assert answer.usage is not None
        return answer.usage.completion_tokens == self.tokens

    async def _stream(self, client: openai.AsyncOpenAI, prompt: str) -> bool:
        """Whether it has come whole: a reason to end, and the usage, which stands in the last event of all."""
        reason, tokens = None, None
        stream = await client.completions.create(
            model=self.model,
            prompt=prompt,
            max_tokens=self.tokens,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        async for event in stream:
            reason = event.choices[0].finish_reason or reason if event.choices else reason
            tokens = event.usage.completion_tokens if event.usage else tokens
        return reason == "length" and tokens == self.tokens


@contextmanager
def under_load(load: Load, inside: Callable[[Callable[[], None]], None] = at_once) -> Iterator[Load]:
    """Clients that ask without a pause. inside: calls what it is given where the router can be reached."""
    thread = threading.Thread(target=inside, args=(lambda: asyncio.run(load.run()),))
    thread.start()
    try:
        wait_until(lambda: load.whole >= 5 or load.broken, "first answers", 60)
        assert load.broken == []
        yield load
    finally:
        load.stopped = True
        thread.join(150)
