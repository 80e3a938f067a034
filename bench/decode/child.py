"""A process that decodes when it is asked to: python -m twofour.bench.decode.child RUNTIME JSON

Its answers go to what was standard output; what a library prints there goes to standard error.
"""

import json
import os
import sys
from collections.abc import Callable
from time import perf_counter
from typing import IO, Any

import torch

from twofour.bench.decode.arms import OURS
from twofour.bench.decode.decoder import Decoder, Ours, Transformers
from twofour.prune.errors import TwofourError
from twofour.serve.engine.types import EngineConfig


class Session:
    """One arm: a prompt in its cache, and turns that all begin at its end."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder, self._context, self._next = decoder, 0, list[int]()

    def facts(self) -> dict[str, Any]:
        return self._decoder.facts()

    def prepare(self, prompt: list[int], batch: int) -> dict[str, Any]:
        self._next, self._context = self._decoder.prepare(prompt, batch), len(prompt)
        return {}

    def turn(self, threads: int, warm: int, steps: int) -> dict[str, Any]:
        """Steps after the prompt, of which the first few are not counted."""
        torch.set_num_threads(threads)
        tokens, seconds, first = self._next, list[float](), list[int]()
        for step in range(warm + steps):
            first.append(tokens[0])
            began = perf_counter()
            tokens = self._decoder.step(tokens, self._context + step)
            seconds.append(perf_counter() - began)
        return {"seconds": seconds[warm:], "tokens": first}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    runtime, given = sys.argv[1], json.loads(sys.argv[2])
    questions: dict[str, Callable[..., dict[str, Any]]] = {}

    def loaded() -> dict[str, Any]:
        session = Session(_decoder(runtime, **given))
        questions.update(prepare=session.prepare, turn=session.turn)
        return session.facts()

    questions["load"] = loaded
    for line in sys.stdin:
        question = json.loads(line)
        _answer(answers, questions[question.pop("what")], question)


def _decoder(runtime: str, model: str, options: dict[str, str], batch: int, length: int) -> Decoder:
    if runtime not in OURS:
        return Transformers(model, options.get("dtype", "auto"))
    own: dict[str, Any] = {name.replace("-", "_"): value for name, value in options.items()}
    config = EngineConfig(model, device="cpu", **({"kernels": "cpu"} | own))
    return Ours(config, runtime, batch, length)


def _answer(answers: IO[str], what: Callable[..., dict[str, Any]], question: dict[str, Any]) -> None:
    try:
        answer = what(**question)
    except TwofourError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
