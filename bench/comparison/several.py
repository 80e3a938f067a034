"""Any number of arms: the same seeded load on all of them in turns, each against the first, and what each loses.

The first is dense by the fastest kernels there are, as a rule. How arms take turns, `served` says.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from twofour.bench.comparison.experiment import Experiment, Findings
from twofour.bench.comparison.named import NamedArm, measured_qualities, require_one_text
from twofour.bench.comparison.quality import Quality
from twofour.bench.comparison.served import QUESTION, Arm, start, take_rounds
from twofour.bench.comparison.several_document import document
from twofour.bench.hardware import hardware, versions
from twofour.bench.money.cost import Price, price_of
from twofour.bench.report.forms import Report
from twofour.bench.targets import servers
from twofour.bench.targets.servers import Options, Placement
from twofour.prune.machine.processors import usable_cpus
from twofour.prune.progress import Progress, silent


def compare_several(
    arms: Sequence[NamedArm],
    experiment: Experiment | None = None,
    *,
    qualities: Mapping[str, Quality] | None = None,
    measure_quality: bool = True,
    text: Path | None = None,
    price: Price | None = None,
    threads: int | None = None,
    logs: Path | None = None,
    command: Sequence[str] = (),
    progress: Progress = silent,
) -> Report:
    """Compare models that are served here. `qualities`: those that were measured before, by name."""
    started, machine, experiment = datetime.now(UTC), hardware(), experiment or Experiment()
    placement = servers.place(usable_cpus(), threads)
    lost = dict(qualities or {})
    if measure_quality:
        lost = measured_qualities(arms, lost, text)
    require_one_text(lost)
    with _served(arms, placement, logs, progress) as served:
        with servers.pinned(placement.client_cpus):
            runs, cut_off = take_rounds(served, experiment, progress)
        facts = {name: arm.facts(talk=not cut_off) for name, arm in served.items()}
    priced = price or price_of(machine, on_gpu=bool(machine.gpus))
    found = Findings(
        experiment=experiment,
        started=started,
        command=command,
        hardware=machine,
        versions=versions(),
        placement=placement,
        arms=facts,
        runs=runs,
        quality=None,
        random_weights=None,
        question=QUESTION,
        price=priced if isinstance(priced, Price) else None,
        unpriced=priced if isinstance(priced, str) else None,
        cut_off=cut_off,
    )
    return Report(document(found, {arm.name: arm for arm in arms}, lost))


@contextmanager
def _served(
    arms: Sequence[NamedArm], placement: Placement, logs: Path | None, progress: Progress
) -> Iterator[Mapping[str, Arm]]:
    """All arms, ready and frozen. They are stopped in the end, whatever happens."""
    with ExitStack() as stack:
        folder = logs or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="twofour-compare-")))
        wanted = {arm.name: (arm.model, Options(placement.threads, "auto", arm.flags)) for arm in arms}
        yield start(stack, wanted, folder, placement, progress)
