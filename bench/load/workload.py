"""What is asked of one server: a seeded schedule of prompts, lengths and arrival times.

Prompts are plain English words, about one token each; no tokenizer is asked, the server's usage tells the truth. Every
prompt begins with `NONCE_WORDS` words that depend on the run and on the request, so that no request finds the beginning
of another in a prefix cache, whatever ran before; they are part of the planned length. Requests that are meant to share
a beginning are of one family. Arrivals, lengths and words have random streams of their own: another rate does not
change the prompts. `twofour.bench.traffic` makes schedules of any other kind.
"""

import hashlib
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice, repeat, takewhile
from typing import Any

from twofour.bench.load import arrivals
from twofour.bench.load.records import Message, Request
from twofour.prune.errors import InputError

NONCE_WORDS = 4
LONGEST = 10_000_000  # tokens; no model states a longer context

# 256 words, each one token with or without a space before it (checked in SmolLM2's vocabulary),
# so that a byte of the nonce is a word and all nonces are equally long.
_TEXT = """
able about above act add after again age ago air all almost alone along already also always among amount
and animal answer any area arm around art ask away baby back bad ball bank base bear beat because bed
been before begin being below best better between big bird bit black blood blue board boat body bone book
born both bottom box boy bread break bright brother brown build built burn business buy call came can
capital car card care case cat catch cause cell center central century certain chair change character
charge chief child children choose church circle city claim class clean clear clock close cloth cloud
coast cold color column come common company compare complete condition consider continue control cook
cool copy corn correct cost could count country course cover create crop cross current cut dark daughter
day dead deal death deep degree depend describe design develop did die difficult direct distance divide
doctor does dog dollar done door double down draw dream drive drop dry during each early earth east easy
eat edge effect egg eight either electric else end energy engine enough enter equal even event ever every
exact example except exercise expect experience experiment eye face fact fair fall family famous far farm
fast father feed feel feet felt few field fight figure fill final find fine fire first fish fit five flat
floor flow flower fly follow food foot force forest form forward found four free fresh friend front fruit
full game gas general get girl give glass go gold
"""
WORDS = tuple(_TEXT.split())


@dataclass(frozen=True)
class Lengths:
    """A number of tokens: fixed, or lognormal with this mean and `sigma`, the deviation of its logarithm."""

    mean: int
    sigma: float = 0.0

    @property
    def mean_square(self) -> float:
        return self.mean**2 * math.exp(self.sigma**2)

    def draw(self, random_: random.Random) -> int:
        if not self.sigma:
            return self.mean
        centre = math.log(self.mean) - self.sigma**2 / 2
        return max(1, round(random_.lognormvariate(centre, self.sigma)))

    def __str__(self) -> str:
        return f"{self.mean}~{self.sigma:g}" if self.sigma else str(self.mean)


def lengths(text: str) -> Lengths:
    """Read `128`, all of that length, or `128~0.3`, lognormal with that mean and sigma."""
    mean, _, sigma = text.partition("~")
    try:
        parsed = Lengths(int(mean), float(sigma or 0))
    except ValueError:
        raise InputError(f"{text!r} is not a length; write 128 or 128~0.3") from None
    if not 1 <= parsed.mean <= LONGEST or not 0 <= parsed.sigma <= 2:
        raise InputError(f"length {text!r} is out of range; the mean is from 1 to {LONGEST:,}, sigma from 0 to 2")
    return parsed


@dataclass(frozen=True)
class Limits:
    """What bounds a load, besides its requests."""

    duration_s: float | None = None  # nothing is sent later
    max_in_flight: int | None = None  # of an open loop: what is due waits while so many are under way
    stop_over_saturated: bool = False  # end an open loop that the server cannot keep up with
    warm_up: int | None = None  # requests; None: as many as at once, and one


UNLIMITED = Limits()


@dataclass(frozen=True)
class Schedule:
    """What one server is asked in one run, whichever server it is."""

    requests: Sequence[Request]
    concurrency: int | None  # so many at a time; None: an open loop, each request at its time
    made_of: Mapping[str, Any]  # plain data, for documents
    limits: Limits = UNLIMITED

    @property
    def at_once(self) -> int:
        """How many requests are under way at most, as far as it is said; 0: it is not."""
        return min(self.concurrency or self.limits.max_in_flight or 0, len(self.requests))

    @property
    def changes(self) -> bool:
        """An open loop whose rate changes by itself: a ramp, or a trace."""
        return self.concurrency is None and not self.made_of.keys().isdisjoint({"rate_to", "trace"})


def synthetic(
    requests: int,
    prompt_tokens: Lengths,
    output_tokens: Lengths,
    seed: int,
    *,
    concurrency: int | None = None,
    rate: float | None = None,
) -> Schedule:
    """Prompts of plain words, at so many a time, or Poisson arrivals at `rate` requests per second."""
    made_of = {
        "requests": requests,
        "concurrency": concurrency,
        "rate": rate,
        "prompt_tokens": str(prompt_tokens),
        "output_tokens": str(output_tokens),
        "seed": seed,
    }
    return Schedule(schedule(requests, prompt_tokens, output_tokens, seed, rate), concurrency, made_of)


def schedule(
    requests: int, prompt_tokens: Lengths, output_tokens: Lengths, seed: int, rate: float | None = None
) -> list[Request]:
    """The requests of a load: Poisson arrivals at `rate` requests per second, all at 0.0 for a closed loop."""
    _refuse(requests, prompt_tokens, rate)
    sizes = random.Random(f"{seed}/lengths")
    vocabulary = random.Random(f"{seed}/words")
    times: Iterator[float] = arrivals.poisson(rate, seed) if rate else repeat(0.0)
    scheduled = []
    for index, at_s in enumerate(islice(times, requests)):
        tokens = max(NONCE_WORDS + 1, prompt_tokens.draw(sizes))
        scheduled.append(
            Request(index, at_s, words(tokens - NONCE_WORDS, vocabulary), tokens, output_tokens.draw(sizes))
        )
    return scheduled


def words(tokens: int, draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=tokens))


def messages(request: Request, nonce: str) -> list[Message]:
    """The conversation as it is sent: it begins with the words of `nonce` and of the request, or of its family."""
    family = str(request.index) if request.family is None else request.family
    digest = hashlib.blake2b(f"{nonce}/{family}".encode(), digest_size=NONCE_WORDS).digest()
    first, *others = [*request.history, Message("user", request.prompt)]
    opened = " ".join([*(WORDS[byte] for byte in digest), first.content])
    return [Message(first.role, opened), *others]


def marked(request: Request, nonce: str) -> str:
    """The same as one text, for an endpoint that completes it."""
    return " ".join(message.content for message in messages(request, nonce))


def shared_share(requests: Sequence[Request]) -> float:
    """How much of what is sent an earlier request began with, too, by words: what a prefix cache may find."""
    if all(request.family is None for request in requests):
        return 0.0
    seen, shared, total = set[int](), 0, 0
    for request in requests:
        sent = marked(request, "").split()
        total += len(sent)
        beginnings = list(accumulate(sent, lambda so_far, word: hash((so_far, word)), initial=0))[1:]
        shared += sum(1 for _ in takewhile(seen.__contains__, beginnings))
        seen.update(beginnings)
    return shared / total


def _refuse(requests: int, prompt_tokens: Lengths, rate: float | None) -> None:
    if requests < 1:
        raise InputError(f"{requests} requests measure nothing; ask for at least 1")
    if prompt_tokens.mean <= NONCE_WORDS:
        raise InputError(
            f"prompts of {prompt_tokens} tokens are too short; {NONCE_WORDS} words go to the nonce, "
            f"ask for at least {NONCE_WORDS + 1}"
        )
    if rate is not None and not (rate > 0 and math.isfinite(rate)):
        raise InputError(f"a rate of {rate} requests per second is impossible; give a number above 0")
