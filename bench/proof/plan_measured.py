"""The planner on servers in real time: a profile is measured, then loads that it has not seen.

Profiles and validations are made by their verbs, in processes of their own, as a user makes them.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twofour.bench.capacity import profile as profiles
from twofour.bench.capacity import search
from twofour.bench.capacity.demand import demand
from twofour.bench.capacity.profile import Profile
from twofour.bench.capacity.search import Promise, World
from twofour.bench.capacity.step_model import StepModel
from twofour.bench.capacity.validation import Validated, document, utilisation, validate
from twofour.bench.load import step_log
from twofour.bench.load.endpoint import Endpoint, served_model
from twofour.bench.load.run import Run, measure
from twofour.bench.load.service import Service
from twofour.bench.load.slo import Slo, parse
from twofour.bench.load.step_log import Glance
from twofour.bench.load.workload import Lengths
from twofour.bench.proof import paged_fleet
from twofour.bench.proof.mock import Script, serving
from twofour.bench.proof.paged import Machine
from twofour.bench.proof.plan_simulated import REQUESTS, schedule
from twofour.bench.sweep.limit import find_limits
from twofour.bench.sweep.load import Load
from twofour.bench.targets.running import Running
from twofour.bench.targets.servers import Options, serve_command, started
from twofour.bench.traffic.traffic import Rate, Traffic
from twofour.prune.errors import ServerError
from twofour.prune.progress import Progress, silent

MACHINE = Machine(0.008, 30e-6, 60e-6, 6e-8, 1e-8, between_s=0.0002, noise=0.02)
TRAFFIC = Traffic(prompt_tokens=Lengths(256, 0.4), output_tokens=Lengths(48, 0.4), seed=7000)
SERVED = Traffic(prompt_tokens=Lengths(96, 0.4), output_tokens=Lengths(32, 0.4), seed=7000)
UNSEEN = (0.5, 0.7, 0.8, 0.9)  # of capacity
UNSEEN_SERVED = (0.4, 0.65, 0.85)


LIMITS = ("--max-num-seqs", "32", "--max-num-batched-tokens", "512")  # of a step; vLLM does not say them
PASSED_ON = {"vllm": ("--", "--gpu-memory-utilization", "0.3")}  # of a CPU's memory; it would take nearly all


@dataclass(frozen=True)
class Length:
    """How long parts take. What a real server takes for a step drifts by the minute: its parts are longer."""

    profile_min: float = 3.0
    run_s: float = 60.0
    served_min: float = 10.0  # as `bench profile` does unless told otherwise
    served_s: float = 90.0


@dataclass(frozen=True)
class Served:
    """at_pace: the same runs, the profile's steps multiplied by the pace of each; none of a server without a log."""

    validation: dict[str, Any]
    at_pace: dict[str, Any]
    paces: list[float]


def on_mock(length: Length, cpu: int | None, progress: Progress) -> dict[str, Any]:
    """Profiled, then loaded by rates that the profile has not seen: what plan-validate says."""
    most = paged_fleet.capacity(schedule(TRAFFIC, 1.0, 400), MACHINE)
    with serving(Script(machine=MACHINE), cpu) as mock:
        known = measured_profile(mock.url, "mock", length.profile_min, TRAFFIC)
        runs = _loaded(known, mock.url, [share * most for share in UNSEEN], TRAFFIC, length.run_s, progress)
        return _plain(known, [validate(known, run, name) for name, run, _ in runs])


def knees(length: Length, requests: int, cpu: int | None) -> tuple[float | None, float | None]:
    """The highest rate that keeps a promise on the mock: as a profile has it, and as `bench sweep` measures it."""
    promised, found = _promise(), list[float]()
    with serving(Script(machine=MACHINE), cpu) as mock:
        known = measured_profile(mock.url, "mock", length.profile_min, TRAFFIC)
        server = Running("mock", Service(mock.url, "mock"))
        _, limits = find_limits([server], Load(TRAFFIC, promised, requests), 1, 0.02, silent)
    for bracket in (search.highest_rate(_world(known, promised, requests), 0.02), limits[0].bracket):
        found += [] if bracket.open else [bracket.middle]
    return (found[0], found[1]) if len(found) == 2 else (None, None)


def on_server(model: Path, name: str, engine: str, length: Length, progress: Progress) -> Served:
    """The same on a server of ours, or of vLLM, that is started for it."""
    flags = ("--engine", engine, *LIMITS, *PASSED_ON.get(engine, ()))
    with TemporaryDirectory() as folder, _running(model, flags, Path(folder) / "log") as url:
        known = measured_profile(url, name, length.served_min, SERVED, LIMITS)
        runs = list(_loaded(known, url, rates(known), SERVED, length.served_s, progress))
    at_pace = [validate(_slower(known, pace), run, name) for name, run, pace in runs if pace]
    plain = _plain(known, [validate(known, run, name) for name, run, _ in runs])
    return Served(plain, _plain(known, at_pace), [pace for *_, pace in runs if pace])


def rates(known: Profile) -> list[float]:
    """So much of what a server like this gets done when there is always more to do."""
    used = utilisation(known.replica, replace(SERVED, rate=Rate(1.0), requests=REQUESTS).sketch())
    if used is None:
        raise ServerError(f"the profile {known.name} does not tell how much its server gets done; measure it again")
    return [share / used for share in UNSEEN_SERVED]


def measured_profile(url: str, name: str, minutes: float, traffic: Traffic, limits: Sequence[str] = ()) -> Profile:
    """By `bench profile`. A profile whose gates failed is used, and says so."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / "profile.json"
        lengths = [f"--prompt-tokens={traffic.prompt_tokens}", f"--output-tokens={traffic.output_tokens}"]
        words = ["profile", url, "--name", name, "--minutes", str(minutes), *lengths, *limits, "--out", str(out)]
        done = subprocess.run([sys.executable, "-m", "twofour", "bench", *words], capture_output=True, text=True)
        if not out.exists():
            raise ServerError(f"bench profile ended with status {done.returncode}: {done.stderr[-1000:]}")
        return profiles.read(out)


def _loaded(
    known: Profile, url: str, rates: Sequence[float], traffic: Traffic, run_s: float, progress: Progress
) -> Iterator[tuple[str, Run, float | None]]:
    """Runs, each with its name and its pace."""
    service = Service(url, served_model(url))
    endpoint = Endpoint(url, service.model)
    for number, rate in enumerate(rates):
        seeded = replace(traffic, seed=traffic.seed + number, rate=Rate(rate), requests=max(60, round(rate * run_s)))
        before = step_log.read(endpoint.step_log())
        run = measure(service, seeded.schedule(), progress=progress)
        yield f"{known.name} at {rate:.3g}/s", run, pace(known, before, step_log.read(endpoint.step_log()))


def pace(known: Profile, before: Glance | None, after: Glance | None) -> float | None:
    """What the steps between took, over what the profile says of just these. None: the server keeps no log.

    Away from 1, the machine or the model of a step has changed since the profile, whatever the simulator does.
    """
    steps = after.since(before) if before and after else []
    takes = known.replica.steps.seconds
    said = sum(takes(step.prefill_tokens, step.decodes, step.kv_tokens, step.prefill_pairs) for step in steps)
    return sum(step.seconds for step in steps) / said if said else None


def _slower(known: Profile, by: float) -> Profile:
    def scaled(steps: StepModel) -> StepModel:
        return StepModel(*(by * seconds for seconds in astuple(steps)))

    replica = replace(known.replica, steps=scaled(known.replica.steps))
    return replace(known, replica=replica, draws=[scaled(draw) for draw in known.draws])


def _plain(known: Profile, found: Sequence[Validated]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(document(known, found)))
    return plain


def _promise() -> Slo:
    """What the mock's engine just keeps at 0.75 of its capacity, in a long run without time."""
    most = paged_fleet.capacity(schedule(TRAFFIC, 1.0, 400), MACHINE)
    asked = schedule(replace(TRAFFIC, seed=1), 0.75 * most, 10 * REQUESTS)
    steady = [record for record in paged_fleet.serve(asked, MACHINE).records if record.chunks]
    waits = sorted(record.chunks[0].at - record.scheduled_at for record in steady)
    return parse(f"ttft_p95={waits[round(0.95 * len(waits))] * 1000:.3f}ms")


def _world(known: Profile, promised: Slo, requests: int) -> World:
    asked = demand(replace(TRAFFIC, rate=Rate(1.0)))
    return World(known.replica, asked, Promise(promised), requests, TRAFFIC.seed)


@contextmanager
def _running(model: Path, engine: Sequence[str], log: Path) -> Iterator[str]:
    with started(serve_command(str(model), Options(1, flags=engine)), log) as server:
        yield server.url()
