"""What a decode step at batch 1 takes outside the linears: the engine's against a bare transformers forward's.

Both run the same model, loaded twice, in one process on one thread, where every linear is replaced by a stand-in that
returns a stored tensor of the right shape at once. What is left is measured, in CPU time of the thread:

    bare      `model(token)` over a DynamicCache, with transformers' own attention, then the argmax
    engine    one turn of the engine process: look for commands, schedule, the generic runner, sample, write the report
              to the pipe

Without the model, and for several sequences, a turn is measured in turn.py.

A turn of either is a fresh prompt of `context` tokens and then `steps` steps, of which the median counts. Turns
alternate; a round is one of each, and gives one pair for the ratio. No weights pass through the caches, so they are
warmer than in service, for both.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from time import thread_time
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from twofour.bench.engine import turn
from twofour.bench.stats import paired_ratio
from twofour.bench.turns import whole_rounds
from twofour.prune.errors import ModelError
from twofour.prune.format.folder import resolve
from twofour.prune.model.decoding import with_cache
from twofour.serve.engine.assembly.assemble import assemble
from twofour.serve.engine.loop import Loop
from twofour.serve.engine.types import EngineConfig, Prompt, Sampling
from twofour.serve.model.linear import SparseLinear
from twofour.serve.model.loading import load_model

KIND = "twofour.bench.overhead"
SCHEMA_VERSION = 2
GOAL = 1.15  # of the bare step's time

Turn = Callable[[], list[float]]  # seconds of each step


@dataclass(frozen=True)
class Overhead:
    """Median seconds of a step in each round."""

    linears: int
    dtype: str
    bare_s: tuple[float, ...]
    engine_s: tuple[float, ...]
    around: tuple[turn.Around, ...]


class StandIn(nn.Module):
    """In the place of a linear: finite numbers of the right shape. For one token it computes nothing."""

    def __init__(self, out_features: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.row = torch.linspace(-1, 1, out_features).to(dtype)[None, None]  # [1, 1, out]

    def forward(self, x: Tensor) -> Tensor:  # [1, tokens, in] -> [1, tokens, out]
        return self.row if x.shape[1] == 1 else self.row.expand(1, x.shape[1], -1)


def measure(model: str, context: int, steps: int, rounds: int) -> Overhead:
    """After an interrupt: of the whole rounds until then.

    Raises ModelError for a model without linears, or one that the engine cannot serve.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        folder = str(resolve(model))
        bare, served = (load_model(folder, "cpu", kernels="reference") for _ in range(2))
        config = EngineConfig(folder, device="cpu", max_model_len=context + steps + 1, max_num_seqs=1)
        loop, _ = assemble(config, served)
        linears = _replace_linears(bare)
        _replace_linears(served)
        vocabulary = bare.config.get_text_config().vocab_size
        prompt = [(7 * i + 1) % vocabulary for i in range(context)]
        turns = {"bare": _bare_turn(bare, prompt, steps), "engine": _engine_turn(loop, prompt, steps)}
        found = _alternate(turns, rounds)
        around = turn.measure(vocabulary, bare.dtype, context, steps, rounds)
        return Overhead(linears, str(bare.dtype).removeprefix("torch."), **found, around=tuple(around))
    finally:
        torch.set_num_threads(threads)


def document(found: Overhead, model: str, context: int, steps: int) -> dict[str, Any]:
    """The result, without what ran it on which machine."""
    ratio = paired_ratio(list(zip(found.bare_s, found.engine_s, strict=True)), seed=0)
    return {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "model": model,
        "dtype": found.dtype,
        "context": context,
        "steps": steps,
        "rounds": len(found.bare_s),
        "linears_replaced": found.linears,
        "clock": "CPU time of the thread",
        "bare": {"seconds": list(found.bare_s), "median_s": median(found.bare_s)},
        "engine": {"seconds": list(found.engine_s), "median_s": median(found.engine_s)},
        "ratio": asdict(ratio),
        "goal": GOAL,
        "reached": ratio.point <= GOAL,
        "around_the_model": turn.document(found.around),
    }


def table(document: dict[str, Any]) -> str:
    ratio = document["ratio"]
    spread = "" if ratio["low"] is None else f" [{ratio['low']:.3f}, {ratio['high']:.3f}]"
    return "\n".join(
        [
            f"{document['model']}, {document['dtype']}: one decode step outside its {document['linears_replaced']} "
            f"linears, batch 1, context {document['context']}, one thread, {document['rounds']} rounds",
            f"  bare transformers  {document['bare']['median_s'] * 1e3:8.3f} ms",
            f"  engine             {document['engine']['median_s'] * 1e3:8.3f} ms",
            f"  engine / bare      {ratio['point']:8.3f}x{spread}, goal {document['goal']:g}: "
            f"{'reached' if document['reached'] else 'MISSED'}",
            *turn.lines(document["around_the_model"]),
        ]
    )


def _replace_linears(model: nn.Module) -> int:
    linears = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear | SparseLinear)]
    if not linears:
        raise ModelError(f"{type(model).__name__} has no linears to leave out; give a model with some")
    dtype = next(model.parameters()).dtype
    for name, linear in linears:
        model.set_submodule(name, StandIn(linear.out_features, dtype))
    return len(linears)


def _alternate(turns: dict[str, Turn], rounds: int) -> dict[str, tuple[float, ...]]:
    for warm_up in turns.values():
        warm_up()
    found = whole_rounds(turns, range(rounds))
    return {f"{name}_s": tuple(map(median, laps)) for name, laps in found.items()}


def _bare_turn(model: Any, prompt: Sequence[int], steps: int) -> Turn:
    def step(ids: Tensor, cache: DynamicCache) -> int:
        with torch.inference_mode():
            return int(model(input_ids=ids, **with_cache(model, cache), logits_to_keep=1).logits[0, -1].argmax())

    def decode() -> list[float]:
        cache = DynamicCache(config=model.config)
        token, laps = step(torch.tensor([prompt]), cache), []
        for _ in range(steps):
            began = thread_time()
            token = step(torch.tensor([[token]]), cache)
            laps.append(thread_time() - began)
        return laps

    return decode


def _engine_turn(loop: Loop, prompt: Sequence[int], steps: int) -> Turn:
    request = Prompt("0", tuple(prompt), Sampling(steps + 1, temperature=0.0, ignore_eos=True))
    return lambda: turn.laps(loop, [request])[-steps:]  # the steps before computed the prompt
