"""`make plan-proof`: what the planner promises of itself, by its value, misses included. Let nothing else run.

`--only P1,P3` measures these parts; the rows of all others are kept as the file has them. The part P1 also says how far
its forecasts are off the same runs, in real time; P2 asks that of runs so long that luck matters little, without time.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from twofour.bench import interrupt
from twofour.bench.hardware import circumstances
from twofour.bench.proof import plan_measured, plan_simulated, plan_timed
from twofour.bench.proof.plan_measured import Length, Served
from twofour.bench.proof.plan_proof_table import table
from twofour.bench.proof.proof import Row
from twofour.bench.proof.truth import apart
from twofour.prune.errors import InputError, ServerError
from twofour.prune.format.folder import write_whole
from twofour.prune.progress import Progress, to_stderr

KIND = "twofour.bench.plan_proof"
SCHEMA_VERSION = 1
NOT_KEPT = 3  # the exit status
P95 = ("ttft_p95", "itl_p95", "e2e_p95")
ENGINES = {"twofour": "embedded", "vLLM": "vllm"}


@dataclass(frozen=True)
class Size:
    length: Length = field(default_factory=Length)
    knee: int = 600  # requests of each visit
    fleets: int = 100
    profiles: int = 10
    runs: int = 12
    long: int = 20_000  # requests of a run in which luck matters little


SMALL = Size(Length(0.2, 6.0, 0.3, 6.0), 80, 4, 1, 3, 400)
Validation = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """rows, and the runs behind them."""

    rows: list[Row]
    validations: list[Validation]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m twofour.bench.proof.plan_proof", description=__doc__)
    parser.add_argument("--only", default=",".join(PARTS), metavar="P1,P3", help="what is measured now (default: all)")
    parser.add_argument("--dense", type=Path, metavar="DIR", help="for P3: a model folder, and the same in 2:4")
    parser.add_argument("--sparse", type=Path, metavar="DIR")
    parser.add_argument("--small", action="store_true", help="little of everything: does it work at all?")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the document; others' parts are kept")
    args = parser.parse_args()
    chosen, size = _chosen(args.only), SMALL if args.small else Size()
    with interrupt.in_order():
        for name in chosen:
            part = PARTS[name](size, args, to_stderr())
            kept = _with(_before(args.out), name, part, circumstances())
            write_whole(args.out, json.dumps(kept, allow_nan=False, indent=1) + "\n")
    found = _before(args.out)
    print(table(found))
    return 0 if found["valid"] else NOT_KEPT


def _chosen(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - PARTS.keys():
        raise InputError(f"{min(unknown)} is no part; choose from {', '.join(PARTS)}")
    return names


def _before(file: Path) -> dict[str, Any]:
    """What the file has; an empty document where there is none."""
    if file.exists():
        known: dict[str, Any] = json.loads(file.read_text())
        return known
    return {"kind": KIND, "schema_version": SCHEMA_VERSION, "parts": {}}


def _with(before: Mapping[str, Any], name: str, part: Part, about: Mapping[str, Any]) -> dict[str, Any]:
    rows = [asdict(row) | {"passed": row.passed} for row in part.rows]
    machine = about["hardware"]["summary"]
    one = {"started": about["started"], "hardware": machine, "rows": rows, "validations": part.validations}
    parts = dict(sorted({**before["parts"], name: one}.items()))
    kept = all(row["passed"] is not False for each in parts.values() for row in each["rows"])
    return {**before, **about, "command": _command(), "parts": parts, "valid": kept}


def _command() -> list[str]:
    return ["python", "-m", "twofour.bench.proof.plan_proof", *sys.argv[1:]]


def _matched(size: Size, args: argparse.Namespace, progress: Progress) -> Part:
    with apart() as cpu:
        found = plan_measured.on_mock(size.length, cpu, progress)
    rows = [*_errors("P1", "mock", found, "matched", P95, 0.05, 0.10)]
    rows += _errors("P1", "mock", found, "matched", ("output_tokens_per_s",), None, 0.02)
    return Part([*rows, *_errors("P2", "mock", found, "forecast", P95, 0.08, None)], [found])


def _forecast(size: Size, args: argparse.Namespace, progress: Progress) -> Part:
    off = plan_simulated.forecasts(max(1, size.profiles // 3), size.long, progress)
    label, note = "others like them, mean", f"runs of {size.long:,} requests"
    means = ((name, sum(errors) / len(errors) if errors else None) for name, errors in off.items())
    rows = [Row("P2", f"no time: {n.replace('_', ' ')}, {label}", mean, 0.08, "share", note=note) for n, mean in means]
    return Part(rows, [])


def _served(size: Size, args: argparse.Namespace, progress: Progress, engine: str) -> Part:
    """The dense model and its 2:4 form."""
    rows, validations = list[Row](), list[Validation]()
    for flag, name, model in (("--dense", "dense", args.dense), ("--sparse", "2:4", args.sparse)):
        if model is None:
            raise InputError(f"P3 needs two models; give {flag} DIR")
        where = f"{engine}, {name}"
        try:
            found = plan_measured.on_server(model.absolute(), name, ENGINES[engine], size.length, progress)
        except ServerError as reason:
            rows.append(Row("P3", f"{where}: p95 TTFT and ITL", None, 0.1, "share", note=str(reason)[:200]))
            continue
        rows += _errors("P3", where, found.validation, "matched", P95[:2], 0.10, 0.20)
        rows += _at_pace(where, found)
        validations.append(found.validation)
    return Part(rows, validations)


def _at_pace(where: str, found: Served) -> Iterator[Row]:
    """What is left where the machine is as fast as in each run: the simulator's own error."""
    if found.paces:
        first, *others = _errors("P3", f"{where}, at their pace", found.at_pace, "matched", P95[:2], 0.10, None)
        paces = ", ".join(f"{pace:.2f}" for pace in found.paces)
        yield from (replace(first, note=f"steps of the runs took {paces} of what the profile says of them"), *others)


def _errors(
    id_: str, where: str, found: Validation, how: str, names: tuple[str, ...], mean: float | None, most: float | None
) -> Iterator[Row]:
    """Of the figures over all runs of one validation, whatever their gates said."""
    for name in names:
        every = [figure for run in found["runs"] for figure in run["figures"] if figure["name"] == name]
        told = [figure[how] and figure[how]["error"] for figure in every]
        errors = [abs(error) for error in told if error is not None]
        label = f"{where}: {name.replace('_', ' ')}, {'same requests' if how == 'matched' else 'others like them'}"
        note = "" if len(errors) == len(every) else f"{len(every) - len(errors)} of {len(every)} runs told nothing"
        if mean is not None:
            value = sum(errors) / len(errors) if errors else None
            yield Row(id_, f"{label}, mean", value, mean, "share", note=note)
        if most is not None:
            yield Row(id_, f"{label}, most", max(errors, default=None), most, "share")


def _limits(size: Size, args: argparse.Namespace, progress: Progress) -> Part:
    """The knee in real time."""
    with apart() as cpu:
        planned, measured = plan_measured.knees(size.length, size.knee, cpu)
    off = abs(planned / measured - 1) if planned and measured else None
    note = f"planned {planned:.2f}, measured {measured:.2f} requests/s" if planned and measured else ""
    return Part([Row("P4", "mock: planned max rate off the measured one", off, 0.05, "share", note=note)], [])


def _fleets(size: Size, args: argparse.Namespace, progress: Progress) -> Part:
    """By brute force: of promises as people make them, and of such as one run has just kept."""
    said, edge = zip(*plan_simulated.fleets(size.fleets, progress), strict=True)
    return Part([_exact("a promise in round numbers", said), _exact("one that is just kept", edge)], [])


def _exact(kind: str, found: Sequence[plan_simulated.Fleet]) -> Row:
    """Of fleets as planned, as needed, and as needed with other luck. Where a number is not known, nothing is exact."""
    wrong = [f"{a} for {b}" for a, b, _ in found if a is None or a != b]
    again = sum(a is not None and a == b for _, a, b in found)
    said = f"; planned for needed: {', '.join(wrong)}" if wrong else ""
    what, note = (
        f"{kind}: fleets that are exact, of {len(found)}",
        f"with other luck in its steps the engine: {again}",
    )
    return Row("P4", what, 1 - len(wrong) / len(found), 0.95, "share", False, note=note + said)


def _speed(size: Size, args: argparse.Namespace, progress: Progress) -> Part:
    one, fifty = plan_timed.plan_s(1), plan_timed.plan_s(50 if size.fleets > 10 else 2)
    return Part(
        [Row("P5", "one option, CPU time", one, 3, "s"), Row("P5", "fifty options, CPU time", fifty, 120, "s")], []
    )


def _intervals(size: Size, args: argparse.Namespace, progress: Progress) -> Part:
    held = plan_simulated.coverage(size.profiles, size.runs, progress)
    what, note = "90 % interval holds the p95 of a run", f"{len(held)} figures of runs that no profile had seen"
    return Part([Row("P6", what, sum(held) / len(held), 0.85, "share", False, note=note, below=0.95)], [])


PARTS: Mapping[str, Callable[[Size, argparse.Namespace, Progress], Part]] = {
    "P1": _matched,
    "P2": _forecast,
    "P3": partial(_served, engine="twofour"),
    "P3v": partial(_served, engine="vLLM"),
    "P4": _limits,
    "P4f": _fleets,
    "P5": _speed,
    "P6": _intervals,
}

if __name__ == "__main__":
    raise SystemExit(main())
