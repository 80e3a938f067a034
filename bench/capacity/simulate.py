"""The Records that so many replicas behind a router would give a Schedule, without any time passing."""

from twofour.bench.capacity.profile import Replica
from twofour.bench.load.records import Record
from twofour.bench.load.workload import Schedule


def simulate(
    schedule: Schedule, replica: Replica, count: int = 1, router: str = "round_robin", seed: int = 0
) -> list[Record]:
    """Times are seconds after the start of the run. seed: of the residuals and of what a router draws."""
    raise NotImplementedError
