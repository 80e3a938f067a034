"""The engine of a mock: a batch in real time. Every step ends when it should, however long the process worked.

With a `Machine` it tells of itself what our server does: its log of steps, and in /metrics how large it is.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any, cast

from twofour.bench.load.pace import until
from twofour.bench.proof.answer import Answer
from twofour.bench.proof.batching import Batch, Steps
from twofour.bench.proof.paged import Machine, PagedBatch, Step


def models(more: Mapping[str, Any]) -> dict[str, Any]:
    return {"object": "list", "data": [{"id": "mock", "object": "model", **more}]}


def engine_of(steps: Steps | None, machine: Machine | None) -> "Engine | None":
    if machine:
        return PagedEngine(machine)
    if steps is None:
        return None
    batch = Batch(steps)
    return Engine(batch, lambda key, answer: batch.add(key, answer.prompt_tokens, answer.total))


class Engine:
    def __init__(self, batch: Batch | PagedBatch, add: Callable[[int, Answer], None]) -> None:
        self._batch, self._add = batch, add
        self._answers: dict[int, tuple[Answer, asyncio.Future[None]]] = {}
        self._asked = asyncio.Event()

    async def run(self) -> None:
        while True:
            await self._asked.wait()
            ends_at = perf_counter()
            while not self._batch.idle:
                ends_at += self._begin(ends_at)
                await until(ends_at)
                for key in self._batch.end():
                    self._token(cast(int, key))
            self._asked.clear()

    async def answer(self, answer: Answer) -> None:
        key, done = id(answer), asyncio.get_running_loop().create_future()
        self._answers[key] = answer, done
        self._add(key, answer)
        self._asked.set()
        try:
            await done
        finally:
            del self._answers[key]
            self._batch.drop(key)

    def holds(self, answer: Answer) -> bool:
        """Whether it could ever be given."""
        return True

    def told(self, path: str) -> dict[str, Any] | str | None:
        """What it says of itself at a path, as JSON or as a text; None: nothing."""
        return None

    def _begin(self, now: float) -> float:
        return self._batch.begin()

    def _token(self, key: int) -> None:
        answer, done = self._answers.get(key, (None, None))
        if answer is None or done is None or done.done():
            return
        answer.token()
        if answer.complete:
            done.set_result(None)


class PagedEngine(Engine):
    def __init__(self, machine: Machine) -> None:
        self._machine, self._paged = machine, PagedBatch(machine)
        self._started: deque[float] = deque(maxlen=self._paged.log.maxlen)
        paged = self._paged
        super().__init__(paged, lambda key, answer: paged.add(key, answer.words, answer.total))

    def holds(self, answer: Answer) -> bool:
        return self._paged.holds(answer.prompt_tokens, answer.total)

    def told(self, path: str) -> dict[str, Any] | str | None:
        if path == "/metrics":
            return self.metrics()
        if path == "/v1/models":
            return models({"max_model_len": self._machine.pages * self._machine.page})
        return self.step_log() if path == "/debug/steps" else None

    def step_log(self) -> dict[str, Any]:
        """As our server's."""
        columns = zip(*self._paged.log, strict=True) if self._paged.log else [()] * len(Step._fields)
        named = dict(zip(Step._fields, map(list, columns), strict=True))
        return {"total": self._paged.total, "started_at": list(self._started), **named}

    def metrics(self) -> str:
        """What our server says of its limits and of what is under way."""
        machine, batch = self._machine, self._paged
        cache = f'block_size="{machine.page}",num_gpu_blocks="{machine.pages}"'
        cache += f',enable_prefix_caching="{machine.remembers}"'
        rows = {
            "twofour:max_num_seqs": machine.sequences,
            "twofour:max_num_batched_tokens": machine.tokens,
            "twofour:step_piece_tokens": 0,
            "twofour:kv_capacity_tokens": machine.pages * machine.page,
            f"vllm:cache_config_info{{{cache}}}": 1,
            "vllm:num_requests_running": batch.under_way,
            "vllm:num_requests_waiting": batch.waiting,
            "vllm:num_preemptions_total": batch.preemptions,
        }
        return "".join(f"{name} {value}\n" for name, value in rows.items())

    def _begin(self, now: float) -> float:
        self._started.append(now + self._machine.between_s)
        return self._batch.begin()
