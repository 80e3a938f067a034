"""A scripted engine behind the real application, on a real socket."""

import asyncio
import queue
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest
import uvicorn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from twofour.prune.errors import ServerError
from twofour.serve.app import create_app
from twofour.serve.config import ServeConfig
from twofour.serve.edge.lifecycle import Lifecycle
from twofour.serve.edge.observe import Watcher
from twofour.serve.engine.types import EngineInfo, Finish, Logprob, Piece, Prompt, Stats, StepRecord
from twofour.serve.listening import listen
from twofour.serve.server import QuietServer, Tls, http_config, url_of

CONTEXT = 256
SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>"]
MERGES = [("h", "e"), ("l", "l"), ("o", "w"), ("he", "ll"), ("Ġ", "w")]
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['content'] == 'refuse me' %}{{ raise_exception('no') }}{% endif %}"
    "<|user|>{{ message['role'] }}: {{ message['content'] }}<|end|>{% endfor %}<|assistant|>"
)
REPLY = "hello wörld, 🤗 all"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, a few merges and three special tokens."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in MERGES)]
    vocab = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", chat_template=TEMPLATE)


@dataclass
class ScriptedEngine:
    """Says what the script says, one token a piece, and notes how each sequence ended."""

    vocab_size: int
    eos: int
    script: Callable[[Prompt], Sequence[int]]
    hold_after: int | None = None  # tokens, then wait for `release`
    fail_after: int | None = None  # tokens, then end with an error of this sequence alone
    failure: str = "division by zero in /secret/path"
    leave_after: int | None = None  # tokens, then end without saying so: a defect
    kv_tokens: int = 4096
    healthy: bool = True
    ready: bool = True
    heartbeat_age_s: float = 0.1
    stats: Stats = field(default_factory=Stats)
    prompts: list[Prompt] = field(default_factory=list)
    ended: "queue.Queue[str]" = field(default_factory=queue.Queue)
    started: "queue.Queue[str]" = field(default_factory=queue.Queue)  # first tokens, or waiting
    stopped: bool = False
    open: int = 0
    restarts: int = 0
    steps: list[StepRecord] = field(default_factory=list)
    step_sizes: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._release, self._died = asyncio.Event(), asyncio.Event()
        self.loop: asyncio.AbstractEventLoop | None = None

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(
            model="/secret/path/model",
            context_length=CONTEXT,
            vocab_size=self.vocab_size,
            eos_token_ids=(self.eos,),
            block_size=16,
            kv_tokens=self.kv_tokens,
            weight_bytes=2000,
            linear_bytes=1500,
            kernels={"reference": 7, "dense": 2},
            device="cpu",
            dtype="float32",
            sparse=True,
            cuda_graphs=36,
            cuda_graph_bytes=5000,
        )

    async def start(self) -> None:
        self.ready = self.healthy = True
        self._died.clear()

    async def stop(self) -> None:
        self.stopped = True

    async def death(self) -> str:
        await self._died.wait()
        return "the engine ended"

    def kill(self) -> None:
        self.die()

    def release(self) -> None:
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self._release.set)

    def die(self) -> None:
        self.healthy = self.ready = False
        self.release()
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self._died.set)

    async def submit(self, prompt: Prompt) -> AsyncIterator[Piece]:
        if not self.ready:
            raise ServerError("the engine at /secret/path is not ready")
        self.prompts.append(prompt)
        self.open += 1
        how = "cancelled"
        try:
            async for piece in self._pieces(prompt):
                yield piece
                if piece.finish is not None:
                    how = str(piece.finish)
        finally:
            self.open -= 1
            self.ended.put(how)

    async def _pieces(self, prompt: Prompt) -> AsyncIterator[Piece]:
        sampling = prompt.sampling
        first = Piece(prompt.id, queue_s=0.01, prefill_s=0.02, prompt_logprobs=scores_of_prompt(prompt))
        reply = [*self.script(prompt), self.eos][: sampling.max_tokens]
        if not reply:
            yield replace(first, finish=Finish.LENGTH)
        for position, token in enumerate(reply):
            await self._act(position)
            if position == self.leave_after:
                return
            if position == self.fail_after:
                yield Piece(prompt.id, finish=Finish.ERROR, error=self.failure)
                return
            stops = token == self.eos
            last = position == len(reply) - 1
            piece = first if position == 0 else Piece(prompt.id)
            finish = Finish.STOP if stops else Finish.LENGTH if last else None
            scores = () if sampling.logprobs is None else (score(token, sampling.logprobs),)
            yield replace(piece, tokens=(token,), logprobs=scores, finish=finish, stopped_by=token if stops else None)

    async def _act(self, position: int) -> None:
        await asyncio.sleep(0)
        if position == (self.hold_after or 0):
            self.started.put("here")
        if position == self.hold_after:
            await self._release.wait()
            if not self.healthy:
                raise ServerError("the engine at /secret/path has died")


def score(token: int, k: int) -> Logprob:
    """The token itself is the second likeliest."""
    likeliest = ((token + 1) % 256, -0.25)
    return Logprob(token, -1.5, tuple([likeliest, (token, -1.5), (0, float("-inf"))][:k]))


def scores_of_prompt(prompt: Prompt) -> tuple[Logprob | None, ...]:
    k = prompt.sampling.prompt_logprobs
    if k is None:
        return ()
    return (None, *(score(token, k) for token in prompt.tokens[1:]))


@dataclass
class Running:
    """A server, its engine, and a client for it."""

    url: str
    engine: ScriptedEngine
    lifecycle: Lifecycle
    loop: asyncio.AbstractEventLoop
    client: httpx.Client
    address: tuple[str, int]

    def complete(self, **fields: Any) -> httpx.Response:
        return self.client.post("/v1/completions", json={"model": "m", "prompt": "hi", **fields})

    def chat(self, *messages: Any, **fields: Any) -> httpx.Response:
        said = list(messages) or [{"role": "user", "content": "hi"}]
        return self.client.post("/v1/chat/completions", json={"model": "m", "messages": said, **fields})

    def metric(self, name: str) -> float:
        """The sum of a series over its labels; `name` may end in a label, as in `x{reason="y"`."""
        lines = self.client.get("/metrics").text.splitlines()
        found = [line for line in lines if line.startswith(name) and line[len(name)] in "{ ,}"]
        assert found, f"{name} is not in /metrics"
        return sum(float(line.rpartition(" ")[2]) for line in found)

    def eventually(self, true: Callable[[], bool]) -> None:
        """For what the server's thread does soon, after its answer; the time is a limit, not a measure."""
        end_at = time.monotonic() + 30
        while not true():
            assert time.monotonic() < end_at
            time.sleep(0.005)

    def control(self) -> None:
        """Alive, and a plain completion says what it always says."""
        assert self.client.get("/health").status_code == 200
        answer = self.complete(max_tokens=100)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["text"] == REPLY


class Launcher:
    """Starts servers, and stops them all at the end."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self._stops: list[Callable[[], None]] = []

    def engine(self, reply: str = REPLY, **script: Any) -> ScriptedEngine:
        ids = self.ids(reply)
        eos = self.tokenizer.convert_tokens_to_ids("<|end|>")
        return ScriptedEngine(len(self.tokenizer), eos, lambda prompt: ids, **script)

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def __call__(
        self,
        engine: ScriptedEngine | None = None,
        watchers: Sequence[Watcher] = (),
        tls: Tls | None = None,
        **config: Any,
    ) -> Running:
        engine = engine or self.engine()
        listener = listen("127.0.0.1", 0)
        # A client that reads nothing is noticed after 64 KiB, not after the 4 MB that the system takes otherwise.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        address = listener.getsockname()
        lifecycle = Lifecycle()
        served = ServeConfig(served_model_name="m", **config)
        app = create_app(engine, served, self.tokenizer, lifecycle=lifecycle, watchers=watchers)
        server = QuietServer(http_config(app, tls))
        loop, thread = in_background(server, listener)
        engine.loop = loop
        url = url_of(listener, tls)
        client = httpx.Client(base_url=url, timeout=10, trust_env=False)
        self._stops += [client.close, lambda: end(server, thread)]
        return Running(url, engine, lifecycle, loop, client, address)

    def close(self) -> None:
        for stop in reversed(self._stops):
            stop()


def in_background(
    server: uvicorn.Server, listener: socket.socket
) -> tuple[asyncio.AbstractEventLoop, threading.Thread]:
    loop = asyncio.new_event_loop()

    def work() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(server.serve(sockets=[listener]))

    thread = threading.Thread(target=work)
    thread.start()
    return loop, thread


def end(server: uvicorn.Server, thread: threading.Thread) -> None:
    server.should_exit = server.force_exit = True
    thread.join(timeout=10)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture
def launch(byte_tokenizer: PreTrainedTokenizerFast) -> Iterator[Launcher]:
    launcher = Launcher(byte_tokenizer)
    yield launcher
    launcher.close()


@pytest.fixture(scope="module")
def launch_once(byte_tokenizer: PreTrainedTokenizerFast) -> Iterator[Launcher]:
    launcher = Launcher(byte_tokenizer)
    yield launcher
    launcher.close()


@pytest.fixture(scope="module")
def shared(launch_once: Launcher) -> Running:
    """One server for the tests that leave it as they found it."""
    return launch_once()


def check_refusal(answer: Any, status: int, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The answer has that status and OpenAI's body, all four fields of it."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert 0 < len(error["message"]) < 400
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert (error["code"], error["param"]) == (code, param)
    assert answer.headers["content-type"] == "application/json"
    return error


@pytest.fixture(scope="session")
def refused() -> Callable[..., dict[str, Any]]:
    return check_refusal
