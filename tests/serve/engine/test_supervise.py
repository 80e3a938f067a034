"""Restarts with an engine that dies on demand, then with a real process: killed, stopped, and once too often."""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from twofour.prune.errors import ServerError
from twofour.serve.engine import supervise
from twofour.serve.engine.process import ProcessEngine
from twofour.serve.engine.supervise import Patience, keep_running
from twofour.serve.engine.types import Engine, EngineConfig, EngineInfo, Finish, Piece, Prompt, Sampling

INFO = EngineInfo("m", 8, 9, (), 16, 64, 5, 4, {}, "cpu", "float32", False)


class Mortal:
    """Lives as long as its script says, by a clock of its own; None: it cannot be started."""

    info = INFO
    step_limit_s = 0.0

    def __init__(self, lives_s: Sequence[float | None]) -> None:
        self.lives_s, self.now, self.killed = list(lives_s), 0.0, 0
        self.pauses_s: list[float] = []

    @property
    def heartbeat_age_s(self) -> float:
        return 0.0

    async def start(self) -> None:
        if not self.lives_s:
            raise asyncio.CancelledError
        if self.lives_s[0] is None:
            self.lives_s.pop(0)
            raise ServerError("no such model")

    async def death(self) -> str:
        self.now += self.lives_s.pop(0) or 0.0
        return "the engine process ended (exit status 1)"

    def kill(self) -> None:
        self.killed += 1

    async def sleep(self, seconds: float) -> None:
        self.pauses_s.append(seconds)
        self.now += seconds


def story(engine: Any, patience: Patience) -> tuple[list[EngineInfo], str]:
    """What was announced, and why it was given up ("": it was not)."""
    announced: list[EngineInfo] = []
    try:
        asyncio.run(keep_running(engine, announced.append, patience, lambda: engine.now, engine.sleep))
    except ServerError as error:
        return announced, str(error)
    except asyncio.CancelledError:
        return announced, ""


def test_the_pause_doubles_and_the_last_death_is_final() -> None:
    engine = Mortal([1.0] * 9)
    announced, why = story(engine, Patience(pause_s=1, longest_pause_s=5, deaths=5))
    assert engine.pauses_s == [1, 2, 4, 5]
    assert announced == [INFO]
    assert why.startswith("the engine process ended (exit status 1), death 5 within 3600 s: it is not started again")


def test_deaths_of_long_ago_do_not_count() -> None:
    engine = Mortal([10, 100, 100, 100, 10, 10])
    _, why = story(engine, Patience(pause_s=1, deaths=3, window_s=100))
    assert engine.pauses_s == [1, 1, 1, 1, 2]
    assert "death 3 within 100 s" in why


def test_a_start_that_fails_is_a_death_but_the_first_is_the_end() -> None:
    engine = Mortal([1.0, None, 1.0])
    assert story(engine, Patience(deaths=9)) == ([INFO], "")
    assert engine.pauses_s == [1, 2, 4]
    assert story(Mortal([None, 1.0]), Patience()) == ([], "no such model")
    assert "could not be started (no such model), death 2" in story(Mortal([1.0, None]), Patience(deaths=2))[1]


def test_a_load_without_end_is_given_up() -> None:
    class Stuck(Mortal):
        async def start(self) -> None:
            await super().start()
            if len(self.lives_s) == 1:
                await asyncio.Event().wait()

    _, why = story(Stuck([1.0, 1.0]), Patience(hang_s=0.01, deaths=2))
    assert "the engine did not load within 0.01 s, death 2" in why


class Silent(Mortal):
    """Says at each look how old its heartbeat is, and ends after the last."""

    def __init__(self, ages_s: Sequence[float]) -> None:
        super().__init__([])
        self._ages_s, self._over = list(ages_s), asyncio.Event()

    @property
    def heartbeat_age_s(self) -> float:
        age_s = self._ages_s.pop(0) if self._ages_s else 0.0
        if not self._ages_s:
            self._over.set()
        return age_s

    async def death(self) -> str:
        await self._over.wait()
        return "it ended"


@pytest.mark.parametrize(
    ("ages_s", "kills"), [([0, 400, 0, 400, 0], 0), ([0, 400, 400, 0], 1), ([300, 300, 300], 0), ([301, 301], 1)]
)
def test_only_two_late_looks_in_a_row_kill(ages_s: list[float], kills: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """When all processes were stopped, as by a suspended machine, this one may wake first."""
    monkeypatch.setattr(supervise, "LOOK_EVERY_S", 0.001)
    engine = Silent(ages_s)
    assert asyncio.run(supervise.end_of_life(cast(Engine, engine), hang_s=300)) == "it ended"
    assert engine.killed == kills


def test_a_step_that_may_take_so_long_is_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "LOOK_EVERY_S", 0.001)
    for ages_s, kills in (([900, 900, 0], 0), ([901, 901, 0], 1)):
        engine = Silent(ages_s)
        engine.step_limit_s = 900.0
        asyncio.run(supervise.end_of_life(cast(Engine, engine), hang_s=300))
        assert engine.killed == kills


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.3, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(path)
    return path


class Clock:
    """Real time, except when a test puts it forward."""

    ahead_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s


class Kept:
    """A real engine that is kept running, and when it has begun each pause."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.engine = ProcessEngine(EngineConfig(str(folder), device="cpu", threads=1), self.clock)
        self.paused: asyncio.Queue[float] = asyncio.Queue()
        self.resume = asyncio.Semaphore(0)

    async def sleep(self, seconds: float) -> None:
        self.paused.put_nowait(seconds)
        await self.resume.acquire()

    async def until_ready(self, keeping: "asyncio.Task[None]") -> None:
        async with asyncio.timeout(120):
            while not self.engine.ready and not keeping.done():
                await asyncio.sleep(0.01)
        assert not keeping.done()

    def signal(self, number: signal.Signals) -> None:
        assert self.engine.pid is not None
        os.kill(self.engine.pid, number)


def keep(folder: Path, patience: Patience, scene: Callable[[Kept, "asyncio.Task[None]"], Awaitable[None]]) -> None:
    async def main() -> None:
        kept = Kept(folder)
        keeping = asyncio.ensure_future(keep_running(kept.engine, print, patience, kept.clock, kept.sleep))
        try:
            await kept.until_ready(keeping)
            await scene(kept, keeping)
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            await kept.engine.stop()

    asyncio.run(main())


def prompt(id: str, max_tokens: int) -> Prompt:
    return Prompt(id, (5, 6, 7), Sampling(max_tokens=max_tokens, temperature=0, ignore_eos=True))


async def text(engine: ProcessEngine) -> list[int]:
    return [token async for piece in engine.submit(prompt("golden", 12)) for token in piece.tokens]


async def last(stream: Any) -> Piece:
    return [piece async for piece in stream][-1]


def test_killed_it_comes_back_with_the_same_text_and_stopped_it_is_killed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "LOOK_EVERY_S", 0.01)

    async def scene(kept: Kept, keeping: "asyncio.Task[None]") -> None:
        engine, size_of_a_prompt = kept.engine, 3
        before, steps = await text(engine), len(engine.steps)
        stream = engine.submit(prompt("under way", 250))
        await anext(stream)
        kept.signal(signal.SIGKILL)
        assert (await last(stream)).finish is Finish.ERROR
        assert await kept.paused.get() == 1
        assert (engine.healthy, engine.ready, engine.restarts) == (False, False, 0)
        with pytest.raises(ServerError, match="not ready"):
            engine.submit(prompt("too soon", 1))
        kept.resume.release()
        await kept.until_ready(keeping)
        assert (engine.healthy, engine.restarts) == (True, 1)
        assert await text(engine) == before
        assert len(engine.steps) >= steps + 12
        assert sum(engine.step_sizes.values()) == len(engine.steps)
        assert engine.step_sizes[size_of_a_prompt] == 3
        await hang(kept)
        with pytest.raises(ServerError, match=r"killed by SIGKILL\), death 2 within 1e\+06 s: it is not started again"):
            await keeping
        assert not engine.healthy

    keep(folder, Patience(hang_s=300, deaths=2, window_s=1e6), scene)


async def hang(kept: Kept) -> None:
    stream = kept.engine.submit(prompt("under way", 250))
    await anext(stream)
    kept.signal(signal.SIGSTOP)
    end = asyncio.ensure_future(last(stream))
    while not end.done():  # what it sent before is heard first
        kept.clock.ahead_s += 400
        await asyncio.sleep(0.05)
    assert end.result().error == "the engine process ended (killed by SIGKILL)"
