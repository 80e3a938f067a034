"""How long a plan takes: one option, and fifty, on one core."""

from dataclasses import replace
from time import process_time

from twofour.bench.capacity.demand import demand
from twofour.bench.capacity.option import options
from twofour.bench.capacity.plan import Asked, answers
from twofour.bench.capacity.profile import Profile
from twofour.bench.capacity.search import Promise
from twofour.bench.load.slo import parse
from twofour.bench.proof.plan_measured import MACHINE, TRAFFIC
from twofour.bench.proof.plan_simulated import profile
from twofour.bench.traffic.traffic import Rate


def plan_s(count: int) -> float:
    """Seconds of one core, for a peak that needs a handful of machines."""
    known = profile(MACHINE, TRAFFIC)
    asked = Asked(demand(replace(TRAFFIC, rate=Rate(120.0))), Promise(parse("ttft_p95=200ms,itl_p95=60ms")))
    begun = process_time()
    answers(replace(asked, extrapolate=True), options([_other(known, number) for number in range(count)], {}))
    return process_time() - begun


def _other(known: Profile, number: int) -> Profile:
    """A little slower each."""
    slower = 1 + 0.005 * number
    steps = replace(known.replica.steps, fixed_s=known.replica.steps.fixed_s * slower)
    return replace(known, name=f"option {number}", replica=replace(known.replica, steps=steps))
