"""One run of a sweep: a server at a pace in a round, judged by the Slo."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from twofour.bench.load import gates
from twofour.bench.load.run import Run, measure
from twofour.bench.load.slo import attain
from twofour.bench.sweep.load import Load, Pace
from twofour.bench.targets.running import Running
from twofour.prune.errors import ServerError
from twofour.prune.progress import Progress, Step

OVERLOAD = {"errors", "rate_shortfall", "latency_drift"}  # gates that a server with too much to do fails
CLIENT = {"send_lag_p99", "loop_lag_p99"}  # gates that a client with too much to do fails


@dataclass(frozen=True)
class Found:
    """What came of a sweep. cut_off: what ended it before its time."""

    visits: "list[Visit]"
    cut_off: KeyboardInterrupt | ServerError | None = None


@dataclass(frozen=True)
class Visit:
    server: str
    pace: Pace
    round: int
    run: Run

    @property
    def over_capacity(self) -> bool:
        """Requests came faster than the server answers them: what is measured then, is the length of the run."""
        return self.run.over_saturated or "rate_shortfall" in self._failed

    @property
    def spoiled(self) -> set[str]:
        """Gates that failed, but those that fail because the server is over capacity, which is a finding."""
        return self._failed - OVERLOAD if self.over_capacity else self._failed

    @property
    def client_is_late(self) -> bool:
        return bool(self._failed & CLIENT)

    @property
    def _failed(self) -> set[str]:
        return {gate.name for gate in gates.failed(self.run.gates)}


def visit(
    server: Running, load: Load, pace: Pace, round_: int, progress: Progress, requests: int | None = None
) -> Visit:
    """Measure a server that is awake. requests: other than the load has."""
    labelled = _labelled(progress, f"{server.name}, {pace}, round {round_ + 1}")
    run = measure(server.service, load.schedule(pace, round_, requests), progress=labelled)
    return Visit(server.name, pace, round_, replace(run, slo=attain(load.slo, run.records)) if load.slo else run)


def until_cut_off(sweep: Callable[[list[Visit]], None]) -> Found:
    """What a sweep put into its list until it ended, was interrupted or met a server that failed.

    Where that is nothing, the interrupt or the error comes out of here.
    """
    visits = list[Visit]()
    try:
        sweep(visits)
    except (KeyboardInterrupt, ServerError) as cut_off:
        if not visits:
            raise
        return Found(visits, cut_off)
    return Found(visits)


def _labelled(progress: Progress, label: str) -> Progress:
    def show(step: Step) -> None:
        progress(replace(step, stage=f"{label}: {step.stage}"))

    return show
