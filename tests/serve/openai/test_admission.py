"""Work before the engine: admitted, off the event loop, within the deadline, and large requests one at a time."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from twofour.serve.openai import serving
from twofour.serve.openai.parsing import parse
from twofour.serve.openai.prompts.encoding import Encoder
from twofour.serve.openai.prompts.threads import LARGE

Refused = Callable[..., dict[str, Any]]
LONG = "x" * (LARGE + 1)


class Held:
    """Encodes long texts when it is let go, and notes what is done with large requests, in order."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.threads: set[threading.Thread] = set()
        self.let_go = threading.Event()

    def encode(self, encoder: Encoder, text: str, limit: int, special_tokens: bool = False) -> list[int]:
        if len(text) > LARGE:
            self.steps.append("encode")
            self.threads.add(threading.current_thread())
            assert self.let_go.wait(30)
        return [1]

    def parse(self, raw: bytes, model: Any) -> Any:
        self.steps += ["parse"] * (len(raw) > LARGE)
        return parse(raw, model)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    made = Held()
    monkeypatch.setattr(Encoder, "encode", lambda *given: made.encode(*given))
    monkeypatch.setattr(serving, "parse", made.parse)
    yield made
    made.let_go.set()


def tokenize(server: Any, text: str) -> Any:
    return server.client.post("/tokenize", json={"prompt": text})


def test_large_requests_are_prepared_one_at_a_time_and_nobody_else_waits(launch: Any, held: Held) -> None:
    server = launch(launch.engine(), max_queue=4)
    with ThreadPoolExecutor(3) as clients:
        answers = [clients.submit(tokenize, server, LONG) for _ in range(3)]
        server.eventually(lambda: server.lifecycle.in_flight == 3 and len(held.steps) >= 2)
        assert server.client.get("/health").status_code == 200
        assert tokenize(server, "a").json()["tokens"] == [1]
        assert held.steps == ["parse", "encode"]
        held.let_go.set()
        assert {answer.result().status_code for answer in answers} == {200}
    assert held.steps == ["parse", "encode"] * 3
    assert len(held.threads) == 1


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize", "/v1/completions"])
def test_what_is_being_tokenised_counts(launch: Any, held: Held, refused: Refused, path: str) -> None:
    server = launch(launch.engine(), max_queue=1)
    with ThreadPoolExecutor(1) as clients:
        first = clients.submit(tokenize, server, LONG)
        server.eventually(lambda: "encode" in held.steps)
        body = {"model": "m", "prompt": "a"} if path != "/detokenize" else {"tokens": [1]}
        refused(server.client.post(path, json=body), 503, "engine_overloaded")
        held.let_go.set()
        assert first.result().status_code == 200
    assert server.client.post(path, json=body).status_code == 200


def test_the_deadline_holds_before_the_engine_is_asked(launch: Any, held: Held, refused: Refused) -> None:
    server = launch(launch.engine(), deadline_s=0.2)
    refused(tokenize(server, LONG), 504, "timeout")
    refused(server.complete(prompt=LONG), 504, "timeout")  # while the thread is busy with the first
    assert server.client.get("/health").status_code == 200


def test_as_much_as_is_tokenised_at_a_time(shared: Any, refused: Refused) -> None:
    assert tokenize(shared, "a" * (1 << 15)).json()["count"] == 1 << 15  # more than the model's context
    refused(tokenize(shared, "a" * (1 << 17)), 400, None, "prompt")
    refused(tokenize(shared, "a" * 300_000), 400, None, "prompt")
    ids = [1] * ((1 << 15) + 1)
    refused(shared.client.post("/detokenize", json={"tokens": ids}), 400, None, "tokens")
