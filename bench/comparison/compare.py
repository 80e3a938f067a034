"""Dense against 2:4: the same seeded load on all arms, interleaved, with ratios that carry an interval.

Where the servers are ours, dense is served twice: as torch multiplies (torch dense, what users run today) and by
the fastest kernels there are (best dense); whoever is not being measured is frozen. Each round runs one schedule on
every arm in turn (see `turns`). Rounds differ in their seeds, so the ratios of the rounds are independent replicates.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from twofour.bench.comparison import quality as qualities
from twofour.bench.comparison.document import document
from twofour.bench.comparison.experiment import ArmFacts, ArmRun, Experiment, Findings
from twofour.bench.comparison.quality import Quality
from twofour.bench.hardware import Hardware, hardware, versions
from twofour.bench.load.endpoint import Endpoint, State, served_model
from twofour.bench.load.run import measure
from twofour.bench.load.wire import shown
from twofour.bench.money.cost import Price, price_of
from twofour.bench.report.arms import arm_label
from twofour.bench.report.forms import Report
from twofour.bench.targets import servers
from twofour.bench.targets.servers import Options, Placement, Server
from twofour.bench.turns import order
from twofour.prune.errors import InputError, ServerError
from twofour.prune.machine.processors import usable_cpus
from twofour.prune.progress import Progress, counter, silent

QUESTION = "What is the capital of France, and what is it famous for?"
ANSWER_TOKENS = 64


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
    progress: Progress = silent,
) -> Report:
    """Compare two models (folders or hub ids, served here) or two running servers (URLs).

    `quality` is one that was measured before; else it is measured, unless `measure_quality` is off or the weights
    are random: `random_weights` names their shape. `rounding`: flags for best dense and 2:4, which say what of them is
    rounded at load. `logs` is the folder for what our servers print.
    """
    started, machine = datetime.now(UTC), hardware()
    experiment, ours = experiment or Experiment(), _are_models(dense, sparse)
    if rounding and not ours:
        raise InputError(f"servers that run already cannot be given {' '.join(rounding)}; start them with that")
    placement = servers.place(usable_cpus(), threads) if ours else None
    wanted = measure_quality and quality is None and random_weights is None
    if wanted and ours:
        quality = qualities.of_models(dense, sparse, text, rounding)
    with _arms(dense, sparse, placement, rounding, api_key, logs, progress) as arms:
        if wanted and not ours:
            quality = qualities.of_servers(arms["dense"].endpoint, arms["sparse"].endpoint, text, experiment.seed)
        with servers.pinned(placement.client_cpus if placement else None):
            runs, cut_off = _rounds(arms, experiment, api_key, progress)
        facts = {name: arm.facts(talk=not cut_off) for name, arm in arms.items()}
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
            )
        )
    )


def _price_of(machine: Hardware, ours: bool) -> Price | str:
    """What the servers' machine costs, or why that is not known."""
    if not ours:
        return "the servers were running already, and their machine is not known"
    return price_of(machine, on_gpu=bool(machine.gpus))  # the server's own choice too


@dataclass(frozen=True)
class Arm:
    given: str
    endpoint: Endpoint
    server: Server | None  # None: not ours
    command: Sequence[str] | None
    before: State | None

    def awake(self) -> AbstractContextManager[None]:
        """Not frozen for the length of a `with` block; a server that is not ours never is."""
        return self.server.awake(self.endpoint.url) if self.server else nullcontext()

    def facts(self, talk: bool) -> ArmFacts:
        """talk: ask it for an answer, too, which may take its time."""
        with self.awake():
            return ArmFacts(
                given=self.given,
                model=self.endpoint.model,
                command=self.command,
                before=self.before,
                after=self.endpoint.scrape(),
                answer=answer(self.endpoint) if talk else None,
            )


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
        yield {"dense": _running_already(dense, api_key), "sparse": _running_already(sparse, api_key)}
        return
    with ExitStack() as stack:
        folder = logs or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="twofour-compare-")))
        threads, best = placement.threads, Options(placement.threads, "auto", rounding)
        wanted = {
            "torch_dense": (dense, Options(threads, "reference")),
            "dense": (dense, best),
            "sparse": (sparse, best),
        }
        arms, step = dict[str, Arm](), counter("starting servers", len(wanted), progress)
        for name, (model, options) in wanted.items():
            log = folder / f"server-{name}.log"
            arms[name] = _start(stack, model, log, placement, options)
            step(arm_label(name, wanted))
        yield arms


def _running_already(url: str, api_key: str | None) -> Arm:
    endpoint = Endpoint(url, served_model(url, api_key), api_key)
    return Arm(shown(url), endpoint, None, None, endpoint.scrape())


def _start(stack: ExitStack, model: str, log: Path, placement: Placement, options: Options) -> Arm:
    command = servers.serve_command(model, options)
    server = stack.enter_context(servers.started(command, log, placement.server_cpus))
    url = server.url()
    endpoint = Endpoint(url, served_model(url))
    before = endpoint.scrape()
    server.freeze()
    return Arm(model, endpoint, server, ["python", *command[1:]], before)  # as anyone can run it


def _rounds(
    arms: Mapping[str, Arm], experiment: Experiment, api_key: str | None, progress: Progress
) -> tuple[list[ArmRun], bool]:
    """The runs, and whether an interrupt ended them: then they are those of whole rounds, which pair up.

    Where there is no whole round, the interrupt comes out of here.
    """
    runs, step = list[ArmRun](), counter("measuring", experiment.rounds * len(arms), progress)
    try:
        for round_ in range(experiment.rounds):
            for name in order(list(arms), round_):
                arm = arms[name]
                load = experiment.load(arm.endpoint.url, arm.endpoint.model, round_, _nonce(arm, round_))
                with arm.awake():
                    run = measure(load, api_key)
                runs.append(ArmRun(name, round_, run))
                step(f"round {round_ + 1} of {experiment.rounds}, {arm_label(name, arms)}")
    except KeyboardInterrupt:
        whole = runs[: len(runs) // len(arms) * len(arms)]
        if not whole:
            raise
        return whole, True
    return runs, False


def _nonce(arm: Arm, round_: int) -> str | None:
    """The same texts for all arms where each has a server of its own that has seen nothing before.

    What runs already may be one server under two addresses, or know the texts from a run before: its texts are its own.
    """
    return f"round {round_}" if arm.server else None


def answer(endpoint: Endpoint) -> str | None:
    """What it says, greedily; None where it cannot chat."""
    messages = [{"role": "user", "content": QUESTION}]
    question = {"messages": messages, "max_tokens": ANSWER_TOKENS, "temperature": 0.0}
    try:
        content = endpoint.ask("/v1/chat/completions", question)["choices"][0]["message"]["content"]
    except (ServerError, KeyError, IndexError, TypeError):
        return None
    return str(content).strip()
