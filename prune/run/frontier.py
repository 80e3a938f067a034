"""Several mixtures from one text, one walk and one set of measurements: a folder for each budget, `OUT/0.40` and so on.

Each is trained by itself, and published when it is done. What is measured and walked is in the journal beside OUT; a
frontier that was cut off goes on with the first budget whose folder is not there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twofour.prune.config import PruneConfig
from twofour.prune.format import folder
from twofour.prune.format.checkpoint import MANIFEST
from twofour.prune.format.folder import read_json
from twofour.prune.format.origin import origin
from twofour.prune.machine import heap
from twofour.prune.machine.precision import full_precision
from twofour.prune.model.attention import quick_attention
from twofour.prune.policy.prices import Clock
from twofour.prune.progress import Progress, silent
from twofour.prune.run import choose, footprint
from twofour.prune.run.choose import Judge
from twofour.prune.run.journal import Journal
from twofour.prune.run.prepare import Prepared, prepare
from twofour.prune.run.prune import (
    as_mixture,
    both_texts,
    described_text,
    pruned_as,
    recorded,
    require_unchanged,
    walked,
)
from twofour.prune.run.report import About, Pruned, Report, write
from twofour.prune.run.request import model_stamps, request
from twofour.prune.run.shortage import shortage_named


@dataclass(frozen=True)
class Frontier:
    """The reports of all mixtures, by their budgets. Printed, it is a table."""

    reports: dict[float, Report]

    def __str__(self) -> str:
        head = f"{'budget':>8} {'cost':>8} {'KL predicted':>13} {'KL':>8}  folder"
        return "\n".join([head, *(_row(budget, report) for budget, report in self.reports.items())])

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the manifests by folder."""
        return {str(report.folder): report.manifest for report in self.reports.values()}


def _row(budget: float, report: Report) -> str:
    policy = report.manifest["policy"]
    figures = f"{policy['share']:8.4f} {policy['predicted_kl']:13.4f} {policy['kl']:8.4f}"
    return f"{budget:8g} {figures}  {report.folder}"


def frontier(
    model: str | Path, out: str | Path, config: PruneConfig, progress: Progress = silent, clock: Clock | None = None
) -> Frontier:
    """Write a mixture for each budget of `config.frontier` into the new folder `out`. clock: as for `prune`."""
    out, journal = Path(out), Journal(Path(out))
    if not journal.folder.exists():
        folder.refuse_existing(out)
    source = folder.resolve(str(model), config.revision)
    base, before = origin(str(model), source), model_stamps(source)
    with journal, shortage_named():
        ready = prepare(source, config, journal.begun, clock)
        choose.refuse_impossible(ready)
        about = About(str(model), source, base, ready.config, described_text(ready), ready.head)
        journal.begin(request(ready.config, ready.forward_dtype, before, ready.decided))
        others = footprint.more_results_bytes(ready.anatomy, ready.config)
        folder.require_space(out, ready.disk_bytes + others - journal.size)
        left = [budget for budget in config.frontier if not place(out, budget).exists()]
        for budget, pruned in mixtures(ready, left, journal, progress):
            require_unchanged(source, before)
            with folder.new_folder(place(out, budget), inside=journal.folder) as part:
                write(part, place(out, budget), about, pruned, journal.spent_s)
    places = {budget: place(out, budget) for budget in config.frontier}
    return Frontier({budget: Report(each, read_json(each / MANIFEST)) for budget, each in places.items()})


def place(out: Path, budget: float) -> Path:
    """Return the folder of a budget."""
    name = f"{budget:.2f}"
    return out / (name if float(name) == budget else f"{budget:g}")


def mixtures(
    ready: Prepared, budgets: Sequence[float], journal: Journal, progress: Progress
) -> Iterator[tuple[float, Pruned]]:
    """Yield a mixture for each budget, to be written before the next is made: they are the same model in memory."""
    with heap.reused(), quick_attention(ready.anatomy.model), full_precision():
        ids, judged = both_texts(ready, journal, progress)
        batches = recorded(ready, ids, journal)
        blocks = walked(ready, batches, journal, progress)
        judge = Judge(ready, judged, journal.weights())
        for budget in budgets:
            journal.point = f"{place(Path(), budget)}-"
            mixed, whole = as_mixture(ready, ids, batches, judge, budget, journal, progress)
            yield budget, pruned_as(ready, blocks, mixed, whole, journal)
