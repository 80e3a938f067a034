"""Findings of a comparison as they would be measured, with known times."""

from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

from twofour.bench.comparison.experiment import ArmFacts, ArmRun, Experiment, Findings
from twofour.bench.comparison.quality import Quality
from twofour.bench.hardware import Hardware
from twofour.bench.load import gates, metrics
from twofour.bench.load.endpoint import Memory, State
from twofour.bench.load.gates import Gate
from twofour.bench.load.records import Chunk, Chunks, Record
from twofour.bench.load.run import Run
from twofour.bench.load.service import Service
from twofour.bench.load.slo import attain
from twofour.bench.load.workload import Lengths
from twofour.bench.money.cost import Price
from twofour.bench.targets.servers import Placement
from twofour.bench.turns import order

PRICE = Price(0.36, "small box", "a list", "list", date(2026, 9, 16))
CLOSED = Experiment(requests=12, rounds=4, prompt_tokens=Lengths(20), output_tokens=Lengths(10))


def run(experiment: Experiment, round_: int, token_s: float, failed: Gate | None = None) -> Run:
    """One request after another, each with a first token after 2 token_s and then one every token_s."""
    service, schedule = Service("http://127.0.0.1:1", "m"), experiment.schedule(round_)
    records, now = [], 100.0
    for request in schedule.requests:
        chunks = [Chunk(now + (2 + token) * token_s, 1) for token in range(request.output_tokens)]
        record = Record(request.index, now, now, now, Chunks.of(chunks), chunks[-1].at)
        record.prompt_tokens, record.output_tokens = request.prompt_tokens, request.output_tokens
        records.append(record)
        now = chunks[-1].at
    checked = gates.check(schedule, records, lags=[0.001], pressure=0.01)
    checked = [failed if failed and gate.name == failed.name else gate for gate in checked]
    summary = metrics.summarise(records, 100.0)
    done = Run(service, schedule, "nonce", datetime(2026, 9, 1, tzinfo=UTC), 100.0, records, summary, checked)
    return replace(done, slo=attain(experiment.slo, records)) if experiment.slo else done


def arm(name: str, linears: int) -> ArmFacts:
    state = State(Memory(linears + 400, linears, 4096, 0), {name: 210}, 0, 0)
    before, after = replace(state, prefix_queried_tokens=1000), replace(state, prefix_queried_tokens=3000)
    return ArmFacts(f"models/{name}", name, None, before, replace(after, prefix_hit_tokens=100), f"Paris, {name}.")


def findings(token_s: dict[str, list[float]], experiment: Experiment = CLOSED, **changed: Any) -> Findings:
    runs = [
        ArmRun(name, round_, run(experiment, round_, token_s[name][round_]))
        for round_ in range(experiment.rounds)
        for name in order(list(token_s), round_)
    ]
    found = Findings(
        experiment=experiment,
        started=datetime(2026, 9, 20, tzinfo=UTC),
        command=["twofour", "bench", "compare"],
        hardware=Hardware("Linux", "a CPU", 2, ("avx2",), 2**34, ()),
        versions={"python": "3.11", "torch": None},
        placement=Placement(1),
        arms={name: arm(name, 500 if name == "sparse" else 1000) for name in token_s},
        runs=runs,
        quality=Quality(17.2, 24.9, 0.41, 0.712, 8176, "wiki.txt", "twofour eval"),
        random_weights=None,
        question="What is the capital of France?",
        price=PRICE,
    )
    return replace(found, **changed)


OF_URLS = {"dense": [0.010, 0.020, 0.012, 0.011], "sparse": [0.0051, 0.0101, 0.0059, 0.0056]}
SPEEDS = {"torch_dense": [0.015, 0.029, 0.018, 0.016], **OF_URLS}
