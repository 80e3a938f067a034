"""Dense against 2:4: the same seeded load on all arms, interleaved, with ratios that carry an interval.

Where the servers are ours, dense is served twice: as torch multiplies (torch dense, what users run today) and by
the fastest kernels there are (best dense). How they take turns, `served` says.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from twofour.bench.comparison import quality as qualities
from twofour.bench.comparison.document import document
from twofour.bench.comparison.experiment import Experiment, Findings
from twofour.bench.comparison.quality import Quality
from twofour.bench.comparison.served import ELSEWHERE, QUESTION, Arm, running_already, start, take_rounds
from twofour.bench.comparison.views import NOTHING_ELSE, Also, refuse_without_slo, views
from twofour.bench.hardware import Hardware, hardware, versions
from twofour.bench.load.access import Access
from twofour.bench.money.cost import Price, price_of
from twofour.bench.report.arms import arm_label
from twofour.bench.report.forms import Report
from twofour.bench.targets import servers
from twofour.bench.targets.servers import Options, Placement
from twofour.prune.errors import InputError
from twofour.prune.machine.processors import usable_cpus
from twofour.prune.progress import Progress, silent


def compare(
    dense: str,
    sparse: str,
    experiment: Experiment | None = None,
    *,
    quality: Quality | None = None,
    measure_quality: bool = True,
    text: Path | None = None,
    random_weights: str | None = None,
    price: Price | None = None,
    threads: int | None = None,
    rounding: Sequence[str] = (),
    api_key: str | None = None,
    logs: Path | None = None,
    command: Sequence[str] = (),
    also: Also = NOTHING_ELSE,
    progress: Progress = silent,
) -> Report:
    """Compare two models (folders or hub ids, served here) or two running servers (URLs).

    `quality` is one that was measured before; else it is measured, unless `measure_quality` is off or the weights
    are random: `random_weights` names their shape. `rounding`: flags for best dense and 2:4, which say what of them is
    rounded at load. `logs` is the folder for what our servers print. `also`: other loads, after that.
    """
    started, machine = datetime.now(UTC), hardware()
    experiment, ours = experiment or Experiment(), _are_models(dense, sparse)
    refuse_without_slo(experiment, also)
    if rounding and not ours:
        raise InputError(f"servers that run already cannot be given {' '.join(rounding)}; start them with that")
    placement = servers.place(usable_cpus(), threads) if ours else None
    wanted = measure_quality and quality is None and random_weights is None
    if wanted and ours:
        quality = qualities.of_models(dense, sparse, text, rounding)
    with _arms(dense, sparse, placement, rounding, api_key, logs, progress) as arms:
        if wanted and not ours:
            quality = qualities.of_servers(arms["dense"].endpoint, arms["sparse"].endpoint, text, experiment.seed)
        label = partial(arm_label, arms=arms)
        with servers.pinned(placement.client_cpus if placement else None):
            runs, cut_off = take_rounds(arms, experiment, progress, label)
            facts = {name: arm.facts(talk=not cut_off) for name, arm in arms.items()}
            in_order = {name: arms[name] for name in ("dense", "sparse", "torch_dense") if name in arms}
            seen, cut_off = ([], True) if cut_off else views(in_order, experiment, also, progress, label)
    priced = price or _price_of(machine, ours)
    return Report(
        document(
            Findings(
                experiment=experiment,
                started=started,
                command=command,
                hardware=machine,
                versions=versions(),
                placement=placement,
                arms=facts,
                runs=runs,
                quality=quality,
                random_weights=random_weights,
                question=QUESTION,
                price=priced if isinstance(priced, Price) else None,
                unpriced=priced if isinstance(priced, str) else None,
                cut_off=cut_off,
                views=seen,
            )
        )
    )


def _price_of(machine: Hardware, ours: bool) -> Price | str:
    """What the servers' machine costs, or why that is not known."""
    if not ours:
        return ELSEWHERE
    return price_of(machine, on_gpu=bool(machine.gpus))  # the server's own choice too


def _are_models(dense: str, sparse: str) -> bool:
    urls = ["://" in given for given in (dense, sparse)]
    if urls[0] != urls[1]:
        raise InputError("one URL and one model cannot be compared; give two models or two URLs")
    return not urls[0]


@contextmanager
def _arms(
    dense: str,
    sparse: str,
    placement: Placement | None,
    rounding: Sequence[str],
    api_key: str | None,
    logs: Path | None,
    progress: Progress,
) -> Iterator[Mapping[str, Arm]]:
    """All arms, ready; ours are frozen. Those that were started are stopped in the end, whatever happens."""
    if placement is None:
        yield {"dense": running_already(dense, Access(api_key)), "sparse": running_already(sparse, Access(api_key))}
        return
    with ExitStack() as stack:
        folder = logs or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="twofour-compare-")))
        threads, best = placement.threads, Options(placement.threads, "auto", rounding)
        wanted = {
            "torch_dense": (dense, Options(threads, "reference")),
            "dense": (dense, best),
            "sparse": (sparse, best),
        }
        yield start(stack, wanted, folder, placement, progress, partial(arm_label, arms=wanted))
