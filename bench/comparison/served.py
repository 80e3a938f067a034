"""Arms as they are served: started and frozen, asked in turns, and asked what they are.

Whoever is not being measured is frozen. Each round runs one schedule on every arm in turn (see `turns`). Rounds differ
in their seeds, so the ratios of the rounds are independent replicates.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from twofour.bench.comparison.experiment import ArmFacts, ArmRun, Experiment
from twofour.bench.load import step_log
from twofour.bench.load.access import OPEN, Access
from twofour.bench.load.endpoint import Endpoint, State, served_model
from twofour.bench.load.run import measure
from twofour.bench.load.service import Service
from twofour.bench.load.slo import attain
from twofour.bench.load.step_log import Glance, Step
from twofour.bench.load.wire import shown
from twofour.bench.targets import servers
from twofour.bench.targets.servers import Options, Placement, Server
from twofour.bench.turns import order
from twofour.prune.errors import ServerError, TwofourError
from twofour.prune.format.folder import read_json
from twofour.prune.progress import Progress, counter

QUESTION = "What is the capital of France, and what is it famous for?"
ANSWER_TOKENS = 64
MANIFEST = "twofour.json"  # of a pruned folder
ELSEWHERE = "the servers were running already, and their machine is not known"  # why there is no price


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

    def service(self, experiment: Experiment) -> Service:
        at = self.endpoint
        return Service(at.url, at.model, at.access, timeout_s=experiment.timeout_s)

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
                pruning_minutes=pruning_minutes(self.given) if self.server else None,
            )


def running_already(url: str, access: Access = OPEN) -> Arm:
    endpoint = Endpoint(url, served_model(url, access), access)
    return Arm(shown(url), endpoint, None, None, endpoint.scrape())


def start(
    stack: ExitStack,
    wanted: Mapping[str, tuple[str, Options]],
    logs: Path,
    placement: Placement,
    progress: Progress,
    label: Callable[[str], str] = str,
) -> dict[str, Arm]:
    """Servers of models, ready and frozen, until the stack is left."""
    arms, step = dict[str, Arm](), counter("starting servers", len(wanted), progress)
    for name, (model, options) in wanted.items():
        arms[name] = _start(stack, model, logs / f"server-{name}.log", placement, options)
        step(label(name))
    return arms


def _start(stack: ExitStack, model: str, log: Path, placement: Placement, options: Options) -> Arm:
    command = servers.serve_command(model, options)
    server = stack.enter_context(servers.started(command, log, placement.server_cpus))
    url = server.url()
    endpoint = Endpoint(url, served_model(url))
    before = endpoint.scrape()
    server.freeze()
    return Arm(model, endpoint, server, ["python", *command[1:]], before)  # as anyone can run it


def take_rounds(
    arms: Mapping[str, Arm],
    experiment: Experiment,
    progress: Progress,
    label: Callable[[str], str] = str,
) -> tuple[list[ArmRun], bool]:
    """The runs, and whether an interrupt ended them: then they are those of whole rounds, which pair up.

    Where there is no whole round, the interrupt comes out of here.
    """
    runs, step = list[ArmRun](), counter("measuring", experiment.rounds * len(arms), progress)
    try:
        for round_ in range(experiment.rounds):
            for name in order(list(arms), round_):
                arm = arms[name]
                with arm.awake():
                    before = step_log.read(arm.endpoint.step_log())
                    run = measure(arm.service(experiment), experiment.schedule(round_), _nonce(arm, round_))
                    steps = steps_since(arm.endpoint, before)
                promised = attain(experiment.slo, run.records) if experiment.slo else None
                runs.append(ArmRun(name, round_, replace(run, slo=promised), steps))
                step(f"round {round_ + 1} of {experiment.rounds}, {label(name)}")
    except KeyboardInterrupt:
        whole = runs[: len(runs) // len(arms) * len(arms)]
        if not whole:
            raise
        return whole, True
    return runs, False


def steps_since(endpoint: Endpoint, before: Glance | None) -> Sequence[Step]:
    """What the engine has done since, as far as its log reaches back."""
    log = step_log.read(endpoint.step_log())
    return log.since(before) if log and before else []


def _nonce(arm: Arm, round_: int) -> str | None:
    """The same texts for all arms where each has a server of its own that has seen nothing before.

    What runs already may be one server under two addresses, or know the texts from a run before: its texts are its own.
    """
    return f"round {round_}" if arm.server else None


def pruning_minutes(model: str) -> float | None:
    """What the pruning of a folder took, as its manifest says."""
    try:
        return float(read_json(Path(model) / MANIFEST)["minutes"])
    except (TwofourError, OSError, KeyError, TypeError, ValueError):
        return None


def answer(endpoint: Endpoint) -> str | None:
    """What it says, greedily; None where it cannot chat."""
    messages = [{"role": "user", "content": QUESTION}]
    question = {"messages": messages, "max_tokens": ANSWER_TOKENS, "temperature": 0.0}
    try:
        content = endpoint.ask("/v1/chat/completions", question)["choices"][0]["message"]["content"]
    except (ServerError, KeyError, IndexError, TypeError):
        return None
    return str(content).strip()
