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
from twofour.bench.comparison.served import ELSEWHERE, QUESTION, Arm, running_already, start, take_rounds
from twofour.bench.comparison.several_document import document
from twofour.bench.comparison.views import NOTHING_ELSE, Also, refuse_without_slo, views
from twofour.bench.hardware import hardware, versions
from twofour.bench.load.access import Access
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
    also: Also = NOTHING_ELSE,
    api_key: str | None = None,
    progress: Progress = silent,
) -> Report:
    """Compare models that are served here, and servers that run already.

    `qualities`: those that were measured before, by name. `also`: other loads, after that.
    """
    started, machine, experiment = datetime.now(UTC), hardware(), experiment or Experiment()
    placement = servers.place(usable_cpus(), threads)
    refuse_without_slo(experiment, also)
    lost = dict(qualities or {})
    if measure_quality:
        lost = measured_qualities(arms, lost, text)
    require_one_text(lost)
    with _served(arms, placement, logs, Access(api_key), progress) as served, servers.pinned(placement.client_cpus):
        runs, cut_off = take_rounds(served, experiment, progress)
        facts = {name: arm.facts(talk=not cut_off) for name, arm in served.items()}
        seen, cut_off = ([], True) if cut_off else views(served, experiment, also, progress)
    priced = price or (price_of(machine, on_gpu=bool(machine.gpus)) if _ours(arms) else ELSEWHERE)
    found = Findings(
        experiment=experiment,
        started=started,
        command=command,
        hardware=machine,
        versions=versions(),
        placement=placement if _ours(arms) else None,
        arms=facts,
        runs=runs,
        quality=None,
        random_weights=None,
        question=QUESTION,
        price=priced if isinstance(priced, Price) else None,
        unpriced=priced if isinstance(priced, str) else None,
        cut_off=cut_off,
        views=seen,
    )
    return Report(document(found, {arm.name: arm for arm in arms}, lost))


@contextmanager
def _served(
    arms: Sequence[NamedArm], placement: Placement, logs: Path | None, access: Access, progress: Progress
) -> Iterator[Mapping[str, Arm]]:
    """All arms, ready and frozen. They are stopped in the end, whatever happens."""
    with ExitStack() as stack:
        folder = logs or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="twofour-compare-")))
        options = {arm.name: Options(placement.threads, "auto", arm.flags) for arm in arms}
        wanted = {arm.name: (arm.model, options[arm.name]) for arm in arms if not arm.runs}
        started = start(stack, wanted, folder, placement, progress)
        yield {arm.name: started.get(arm.name) or running_already(arm.model, access) for arm in arms}


def _ours(arms: Sequence[NamedArm]) -> bool:
    """Whether all are served here, on this machine."""
    return not any(arm.runs for arm in arms)
