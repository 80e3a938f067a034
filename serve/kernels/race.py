"""How long each way to multiply takes for each number of tokens, and which is best.

A way is a kernel on its path for few tokens, or on its path for many. All ways take turns, on copies of their weight
that together exceed the caches, as the layers of a model do: one of each is a round, every other in reverse. What a way
takes is a low quantile of its rounds, for whatever disturbs it only adds. A form that cannot take part ends the race
with an error that names it; the caller decides whether the others race again.
"""

import copy
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from typing import Protocol

import torch
from torch import Tensor

# Tokens of a step -> its share of all steps: mostly decoding, some chunks of prompts. "Faster" is by these shares.
TRAFFIC = {
    **{1: 0.3, 2: 0.14, 4: 0.15, 8: 0.15, 16: 0.1, 32: 0.07, 64: 0.01},
    **{96: 0.005, 128: 0.005, 192: 0.005, 256: 0.025, 512: 0.04},
}
DECODE_TOKENS = 64  # steps of up to so many tokens count as decoding
ALWAYS = 1 << 30  # tokens: the path for few takes all
HYSTERESIS = 1.03  # dense that wins by less than this does not win
PREFERENCE = 1.01  # the path for few tokens keeps one order of additions: it is taken if it is at most this much slower
RING_BYTES = 96 << 20  # of the copies of one weight
COPIES = 512
NEARLY_ALL = 0.9  # of the rounds: dense that wins in fewer does not win
ROUNDS = (5, 20)  # the fewest and the most in one bucket
BUCKET_S = 0.02  # for each way: a bucket ends after this, if it has the fewest rounds
QUANTILE = 5  # one in so many rounds was faster than what counts

Seconds = dict[int, float]  # by tokens of a step
Samples = dict[tuple[str, bool], list[float]]  # seconds of each round, by form and path: True is that for few


class Way(Protocol):
    @property
    def nbytes(self) -> int: ...
    @property
    def crossover_tokens(self) -> int: ...
    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor: ...


class Failed(Exception):
    """A form that raised instead of multiplying; the cause is what it raised."""

    def __init__(self, form: str, cause: Exception) -> None:
        super().__init__(form, cause)
        self.form, self.cause = form, cause


@dataclasses.dataclass(frozen=True)
class Result:
    """Seconds of one form of a weight, by its path for few tokens and by that for many."""

    few: Seconds
    many: Seconds
    rounds: tuple["Result", ...] = ()  # the same of each round

    def crossover_tokens(self) -> int:
        """Up to how many tokens the path for few is taken: where the traffic is fastest, of equals the larger."""
        bounds = [0, *self.few]
        best = min(reversed(bounds), key=lambda bound: self._total(bound, PREFERENCE))
        return ALWAYS if best == max(TRAFFIC) else best

    def total(self) -> float:
        """Seconds of the traffic, with that crossover."""
        return self._total(self.crossover_tokens(), 1.0)

    def seconds(self) -> dict[str, Seconds]:
        return {"few": self.few, "many": self.many}

    def clearly_beats(self, other: "Result") -> bool:
        """Whether the traffic is faster, and by enough, as a whole and in nearly all of the rounds."""
        mine, its = self.crossover_tokens(), other.crossover_tokens()

        def wins(own: Result, rival: Result) -> bool:
            return own._total(mine, 1.0) * HYSTERESIS < rival._total(its, 1.0)

        won = [wins(*both) for both in zip(self.rounds, other.rounds, strict=True)]
        return wins(self, other) and sum(won) >= NEARLY_ALL * len(won)

    def _total(self, bound: int, handicap: float) -> float:
        shares = ((tokens, TRAFFIC[tokens]) for tokens in self.few)
        return math.fsum(
            share * (self.few[tokens] if tokens <= bound else self.many[tokens] * handicap) for tokens, share in shares
        )


def race(
    forms: Mapping[str, Way], columns: int, device: torch.device, dtype: torch.dtype, most_tokens: int = ALWAYS
) -> dict[str, Result]:
    """Race forms of one weight [out, columns] on steps of up to `most_tokens` tokens, activations in `dtype`.

    Raises Failed for the first form that cannot take part.
    """
    rings: dict[str, list[Way]] = {}
    for name, form in forms.items():
        with _named(name):
            rings[name] = _ring(form)
    buckets = {
        tokens: _bucket(rings, torch.randn(tokens, columns, device=device).to(dtype))
        for tokens in TRAFFIC
        if tokens <= most_tokens
    }
    return {name: _result(name, buckets) for name in forms}


def seconds_of(forms: Mapping[str, Way], x: Tensor) -> dict[str, float]:
    """Race forms of one weight on these activations alone: the seconds of one product by the better path of each."""
    samples = _bucket({name: _ring(form) for name, form in forms.items()}, x)
    return {name: min(_low(samples[name, few]) for few in (True, False)) for name in forms}


def _result(name: str, buckets: Mapping[int, Samples]) -> Result:
    def by(pick: Callable[[Sequence[float]], float]) -> Result:
        few, many = ({tokens: pick(found[name, few]) for tokens, found in buckets.items()} for few in (True, False))
        return Result(few, many)

    rounds = min(len(seconds) for found in buckets.values() for seconds in found.values())
    return dataclasses.replace(by(_low), rounds=tuple(by(itemgetter(i)) for i in range(rounds)))


def _low(seconds: Sequence[float]) -> float:
    return sorted(seconds)[len(seconds) // QUANTILE]


@contextmanager
def _named(form: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever a kernel, its compiler or its library raises
        raise Failed(form, error) from error


def _ring(form: Way) -> list[Way]:
    count = min(COPIES, max(1, RING_BYTES // form.nbytes))
    return [form, *(copy.deepcopy(form) for _ in range(count - 1))]


def _bucket(rings: Mapping[str, Sequence[Way]], x: Tensor) -> Samples:
    turns: dict[tuple[str, bool], Callable[[], float]] = {}
    with torch.inference_mode():
        for name, few in itertools.product(rings, (True, False)):
            with _named(name):
                turns[name, few] = _turn([_held(form, few) for form in rings[name]], x, few)
                turns[name, few]()  # what the first call sets up is not counted
        return _take_turns(turns)


def _held(form: Way, few: bool) -> Way:
    held: Way = dataclasses.replace(form, crossover_tokens=ALWAYS if few else 0)  # type: ignore[type-var]
    return held


def _take_turns(turns: Mapping[tuple[str, bool], Callable[[], float]]) -> Samples:
    fewest, most = ROUNDS
    seconds: Samples = {key: [] for key in turns}
    for done in range(most):
        if done >= fewest and sum(map(sum, seconds.values())) > BUCKET_S * len(turns):
            break
        for key in turns if done % 2 else reversed(list(turns)):
            with _named(key[0]):
                seconds[key].append(turns[key]())
    return seconds


def _turn(ring: Sequence[Way], x: Tensor, few: bool) -> Callable[[], float]:
    """A function that measures one product with the next copy, which is far from the copy of the other path."""
    if x.is_cuda:
        return _cuda_turn(ring, x)
    copies = itertools.cycle(ring if few else [*ring[len(ring) // 2 :], *ring[: len(ring) // 2]])
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter

    def turn() -> float:
        way, started = next(copies), clock()
        way(x, None)
        return clock() - started

    return turn


def _cuda_turn(ring: Sequence[Way], x: Tensor) -> Callable[[], float]:
    """All copies in one CUDA graph, as a model runs them: the time to start a kernel is hidden."""
    with torch.inference_mode():
        ring[0](x, None)  # compiles
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # After a capture that fails, torch leaves its own stream as the current one; the outer context restores it.
        with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):
            for way in ring:
                way(x, None)

    def turn() -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / len(ring)

    return turn
