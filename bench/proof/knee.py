"""The highest rate that keeps an Slo, where it is known: does the search of `bench sweep` find it?

The Slo is what the server's steps, in a long simulation, just keep at a rate that is chosen first. So that rate is the
answer. Every sequence makes a step longer by half of what it takes alone, so times depend on the rate steeply.
"""

import math
from collections.abc import Sequence
from statistics import fmean

import numpy as np

from twofour.bench.load.service import Service
from twofour.bench.load.slo import Slo, parse
from twofour.bench.load.workload import Lengths
from twofour.bench.proof import simulation
from twofour.bench.proof.batching import Steps
from twofour.bench.proof.mock import Script, serving
from twofour.bench.proof.truth import MODEL
from twofour.bench.sweep.limit import Limit, find_limits
from twofour.bench.sweep.load import Load
from twofour.bench.targets.running import Running
from twofour.bench.traffic.traffic import Traffic
from twofour.prune.progress import silent

STEPS = Steps(base_s=0.00025, read_s=5e-7, decode_s=0.000125, sequences=32)
PROMPT, OUTPUT, SIGMA = 32, 16, 0.3
KNEE = 0.7 * STEPS.capacity(PROMPT, OUTPUT)  # requests per second
_LONG = 50_000  # requests


def promise() -> Slo:
    """What is just kept at the knee: the p95 of TPOT."""
    asked = simulation.poisson(_LONG, KNEE, 1, PROMPT, OUTPUT, SIGMA)
    found = np.percentile([each.tpot for each in simulation.open_loop(STEPS, asked)], 95)
    return parse(f"tpot_p95={found * 1000:.3f}ms")


def search(requests: int, rounds: int, cpu: int | None) -> list[Limit]:
    """What `bench sweep --slo` finds on the mock."""
    traffic = Traffic(prompt_tokens=Lengths(PROMPT, SIGMA), output_tokens=Lengths(OUTPUT, SIGMA), seed=1)
    load = Load(traffic, promise(), requests)
    with serving(Script(steps=STEPS), cpu) as mock:
        _, limits = find_limits([Running(MODEL, Service(mock.url, MODEL))], load, rounds, 0.02, silent)
    return limits


def off(limits: Sequence[Limit]) -> float | None:
    """How far the rate that was found is from the knee, as a share of it; None: nothing was found."""
    middles = [each.bracket.middle for each in limits if not each.bracket.open]
    return abs(math.exp(fmean(map(math.log, middles))) / KNEE - 1) if middles else None
