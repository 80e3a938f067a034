"""Profiles and machines that a plan can be asked about, made by hand."""

from dataclasses import replace
from statistics import fmean

from twofour.bench.capacity import hull
from twofour.bench.capacity.profile import Around, EngineLimits, Profile, Replica
from twofour.bench.capacity.simulate import Simulated, Usage
from twofour.bench.capacity.step_model import StepModel
from twofour.bench.load.records import Chunks, Record
from twofour.bench.load.workload import Lengths, Schedule
from twofour.bench.traffic.traffic import Rate, Traffic

LIMITS = EngineLimits(16, 512, 400, 16, 2048)
STEPS = StepModel(0.01, 2e-5, 2e-4, 1e-8)


def profile(name: str = "dense", faster: float = 1.0, **changed: object) -> Profile:
    """Its weights are read, and prompts computed, so many times as fast."""
    steps = replace(STEPS, fixed_s=STEPS.fixed_s / faster, prefill_s=STEPS.prefill_s / faster)
    draws = [replace(steps, fixed_s=steps.fixed_s * times) for times in (0.98, 1.0, 1.02)]
    replica = Replica(LIMITS, steps, Around(0.001, 0.0))
    made = Profile(name, "m", replica, hull.around([1, 16], [0, 512], [0, 6400]), draws=draws)
    return replace(made, **changed)  # type: ignore[arg-type]


def traffic(rate: float, prompt: int = 64, output: int = 16, seed: int = 0) -> Traffic:
    return Traffic(
        requests=None, rate=Rate(rate), prompt_tokens=Lengths(prompt), output_tokens=Lengths(output), seed=seed
    )


class Machines:
    """A simulator whose truth is known: a first token comes after wait / (1 - load), each further one after wait."""

    def __init__(self, capacity: float, wait_s: float) -> None:
        self.capacity, self.wait_s = capacity, wait_s
        self.asked: list[tuple[float, int]] = []

    def __call__(self, schedule: Schedule, replica: Replica, count: int, router: str, seed: int) -> Simulated:
        """The rate is that of evenly spaced arrivals, or the mean."""
        rate = 1 / fmean(
            after.at_s - before.at_s for before, after in zip(schedule.requests, schedule.requests[1:], strict=False)
        )
        self.asked.append((rate, count))
        load = rate / count / self.capacity
        first = self.wait_s / (1 - load) if load < 1 else 1e6
        return Simulated([self._record(each.index, each.at_s, first) for each in schedule.requests], [USAGE] * count)

    def _record(self, index: int, at: float, first: float) -> Record:
        chunks = Chunks.of([(at + first, 1), (at + first + self.wait_s, 1)])
        return Record(index, at, at, at, chunks, chunks[-1].at, prompt_tokens=10, output_tokens=2, status=200)


USAGE = Usage(
    steps=1,
    busy_s=1.0,
    preemptions=0,
    most_running=1,
    most_waiting=0,
    most_kv_share=0.1,
    most_prefill=10,
    most_attended=11,
    cached_tokens=0,
    requests=1,
)
