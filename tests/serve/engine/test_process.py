"""The real engine process, with a tiny model: started, killed, stopped, orphaned."""

import asyncio
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import alive, soon
from transformers import LlamaConfig, LlamaForCausalLM

from twofour.prune.errors import InputError, ServerError
from twofour.serve.engine.assembly import assemble
from twofour.serve.engine.process import STALE_S, ProcessEngine, expected_s
from twofour.serve.engine.types import EngineConfig, Finish, Piece, Prompt, Sampling, StepRecord

LENGTH = 256


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=LENGTH, initializer_range=0.3, eos_token_id=0,
        pad_token_id=1,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def config(folder: Path, **options: Any) -> EngineConfig:
    defaults: dict[str, Any] = {"device": "cpu", "dtype": "float32", "threads": 1}
    return EngineConfig(str(folder), **defaults | options)


class Clock:
    """Real time, except when a test puts it forward."""

    ahead_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s


class Shared:
    """One engine for all tests that leave it whole; starting one takes seconds."""

    def __init__(self, runner: "asyncio.Runner", folder: Path) -> None:
        self.runner, self.clock = runner, Clock()
        self.engine = ProcessEngine(config(folder), self.clock)

    def tell(self, story: Callable[[ProcessEngine], Coroutine[Any, Any, None]]) -> None:
        self.runner.run(story(self.engine))


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[Shared]:
    with asyncio.Runner() as runner:
        made = Shared(runner, folder)
        runner.run(made.engine.start())
        yield made
        runner.run(made.engine.stop())


def prompt(id: str, **sampling: Any) -> Prompt:
    defaults: dict[str, Any] = {"max_tokens": 12, "temperature": 0, "ignore_eos": True}
    return Prompt(id, (5, 6, 7), Sampling(**defaults | sampling))


async def collect(engine: ProcessEngine, p: Prompt) -> list[Piece]:
    return [piece async for piece in engine.submit(p)]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what the other process is about to do."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


def test_text_crosses_the_pipe_as_generate_has_it(shared: Shared, folder: Path) -> None:
    async def story(engine: ProcessEngine) -> None:
        wishes = {"logprobs": 2, "prompt_logprobs": 1, "logit_bias": {3: 0.0}, "stop_token_ids": (63,)}
        plain, rich = await asyncio.gather(collect(engine, prompt("a")), collect(engine, prompt("b", **wishes)))
        model: Any = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokens, mask = torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.int64)
        out = model.generate(tokens, attention_mask=mask, max_new_tokens=12, do_sample=False, eos_token_id=[])
        expected = out[0, 3:].tolist()
        assert [token for piece in plain for token in piece.tokens] == expected
        assert [token for piece in rich for token in piece.tokens] == expected
        assert rich[-1].finish is Finish.LENGTH
        assert [len(piece.logprobs[0].top) for piece in rich] == [2] * 12
        assert [entry and entry.token for entry in rich[0].prompt_logprobs] == [None, 6, 7]
        assert engine.stats.steps == len(engine.steps) > 0
        assert engine.info.context_length == LENGTH
        assert (engine.info.vocab_size, engine.info.eos_token_ids, engine.info.dtype) == (64, (0,), "float32")
        assert engine.info.weight_bytes == sum(t.nbytes for t in [*model.parameters(), *model.buffers()])

    shared.tell(story)


def test_closing_or_dropping_a_stream_cancels_it(shared: Shared) -> None:
    async def story(engine: ProcessEngine) -> None:
        closed, dropped = (engine.submit(prompt(id, max_tokens=250)) for id in "ab")
        await anext(closed)
        await anext(dropped)
        assert engine.stats.kv_tokens_used > 0
        await closed.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(closed)
        del dropped
        await until(lambda: engine.stats.running == engine.stats.kv_tokens_used == 0)
        assert engine.stats.steps < 250
        assert len(await collect(engine, prompt("a"))) == 12, "the same id may come again"

    shared.tell(story)


def test_a_frozen_engine_is_alive_but_not_ready(shared: Shared) -> None:
    async def story(engine: ProcessEngine) -> None:
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(0)  # what it sent before
            assert engine.ready and not engine.stalled
            shared.clock.ahead_s += STALE_S
            assert engine.healthy and engine.stalled
            assert not engine.ready
            with pytest.raises(ServerError, match="not ready"):
                engine.submit(prompt("late"))
        finally:
            os.kill(engine.pid, signal.SIGCONT)
        await until(lambda: engine.ready)  # the heartbeat is back
        assert engine.heartbeat_age_s < STALE_S

    shared.tell(story)


SLOW_CHILD = """
import sys
from multiprocessing.connection import Connection
from twofour.serve.engine.messages import Report, decode_command, encode
from twofour.serve.engine.types import EngineInfo, Stats, StepRecord
pipe = Connection(int(sys.argv[1]))
pipe.recv_bytes()
measured = StepRecord(64, 0, 64, 8.0)
info = EngineInfo("m", 999, 9, (), 16, 999, 5, 4, {}, "cpu", "float32", False, warm_step=measured)
pipe.send_bytes(encode({"info": info}))
while command := decode_command(pipe.recv_bytes()):  # after each: a step begins, or ends in 100 s, or all have ended
    news = {"a": {"begun": 512}, "b": {"report": Report((), Stats(running=1), StepRecord(512, 0, 512, 100.0))}}
    pipe.send_bytes(encode(news.get(command.id, {"report": Report((), Stats())})))
"""


def test_a_long_chunk_on_a_slow_machine_is_not_a_hang() -> None:
    """64 tokens took 8 s: 512 may take five times 64 s. They took 100: the next step may take five times as long."""

    async def story() -> None:
        clock = Clock()
        engine = ProcessEngine(EngineConfig("m"), clock, ("-P", "-c", SLOW_CHILD))
        await engine.start()
        kept = []
        for id, limit_s in (("", 0.0), ("a", 320.0), ("b", 500.0), ("c", 0.0)):
            if id:
                kept.append(engine.submit(prompt(id)))
                await until(lambda limit_s=limit_s: engine.step_limit_s == limit_s)
            await quiet(engine)
            for age_s, ready in ((max(limit_s, STALE_S) - 2, True), (max(limit_s, STALE_S), False)):
                clock.ahead_s += age_s
                assert engine.ready is ready, (id, age_s)
                clock.ahead_s -= age_s
        await engine.stop()

    asyncio.run(story())


async def quiet(engine: ProcessEngine) -> None:
    """Until nothing new has been heard for a moment."""
    while engine.heartbeat_age_s < 0.05:
        await asyncio.sleep(0.02)


def test_how_long_a_step_takes_is_asked_of_those_that_were_as_large() -> None:
    few, many = StepRecord(0, 2, 9, 0.5), StepRecord(100, 0, 100, 4.0)
    assert expected_s(1, []) == math.inf
    assert expected_s(2, [few, few, many]) == 4.0
    assert expected_s(100, [few] * 9 + [many]) == 4.0
    assert expected_s(300, [few, many]) == 12.0
    outlier = StepRecord(0, 1, 9, 1000.0)
    assert expected_s(1, [outlier, *[few] * 198]) == 0.5, "the machine was suspended once"


def test_signals_meant_for_the_server_do_not_end_the_engine(shared: Shared) -> None:
    async def story(engine: ProcessEngine) -> None:
        assert engine.pid is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(engine.pid, number)
        assert len(await collect(engine, prompt("a"))) == 12

    shared.tell(story)


def test_a_killed_engine_fails_its_requests_and_can_be_started_again(folder: Path) -> None:
    async def killed(engine: ProcessEngine) -> None:
        streams = [engine.submit(prompt(str(i), max_tokens=250)) for i in range(3)]
        await anext(streams[0])
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        for stream in streams:
            last = [piece async for piece in stream][-1]
            assert last.finish is Finish.ERROR
            assert last.error == "the engine process ended (killed by SIGKILL)"
        assert not engine.healthy
        assert not engine.ready

    async def stopped(engine: ProcessEngine) -> None:
        assert len(await collect(engine, prompt("again"))) == 12
        stream = engine.submit(prompt("a", max_tokens=250))
        await anext(stream)
        await engine.stop()
        last = [piece async for piece in stream][-1]
        assert (last.finish, last.error) == (Finish.ERROR, "the engine process ended (exit status 0)")
        assert not engine.healthy

    async def lives() -> None:
        engine = ProcessEngine(config(folder))
        for story in (killed, stopped):
            await engine.start()
            await story(engine)

    before = set(os.listdir("/dev/fd"))
    asyncio.run(lives())
    assert set(os.listdir("/dev/fd")) <= before


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"max_model_len": LENGTH + 1}, f"max_model_len 257 is over the model's own {LENGTH}"),
        ({"dtype": "float23"}, "float23"),
        ({"max_num_seqs": 0}, "max_num_seqs is 0"),
        ({"max_num_batched_tokens": 3}, "max_num_batched_tokens 3 is below max_num_seqs 32"),
        ({"max_model_len": 100, "kv_tokens": 64}, "the cache holds 64"),
    ],
)
def test_what_prevents_a_start_is_said(folder: Path, options: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why):
        assemble.start(config(folder, **options | {"threads": None}))


@pytest.mark.parametrize("asked", [None, "bfloat16"])
def test_the_dtype_is_the_checkpoints_unless_asked(folder: Path, asked: str | None) -> None:
    _, info = assemble.start(config(folder, dtype=asked, threads=None))
    stored = json.loads((folder / "config.json").read_text())["dtype"]
    assert stored == "float32" and info.dtype == (asked or stored)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    engine = ProcessEngine(config(tmp_path))
    with pytest.raises(ServerError, match=str(tmp_path)):
        asyncio.run(engine.start())
    assert not engine.healthy


PARENT = """
import asyncio, os, sys
from twofour.serve.engine.process import ProcessEngine
from twofour.serve.engine.types import EngineConfig, Prompt, Sampling
async def main():
    engine = ProcessEngine(EngineConfig(sys.argv[1], device="cpu", threads=1))
    await engine.start()
    await anext(engine.submit(Prompt("a", (5,), Sampling(max_tokens=200, ignore_eos=True))))
    print(engine.pid, flush=True)
    os.kill(os.getpid(), 9)
asyncio.run(main())
"""


def test_the_death_of_its_parent_ends_the_engine(folder: Path) -> None:
    parent = subprocess.run([sys.executable, "-c", PARENT, str(folder)], capture_output=True, text=True, timeout=120)
    assert parent.returncode == -signal.SIGKILL
    assert soon(lambda: not alive(int(parent.stdout)), 30), "the engine outlives its parent"
