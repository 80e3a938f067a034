"""What a planner promises of itself, for a person: each promise by its value, beside what others say of theirs."""

from collections.abc import Iterator, Mapping
from typing import Any

from twofour.bench.proof.proof_table import VERDICTS, quantity

PARTS = ("P1", "P2", "P3", "P3v", "P4", "P4f", "P5", "P6")
# What others publish; nobody publishes the rest.
OTHERS = {
    "P1": "BLIS, unseen cases: TTFT 17.6 % mean, 21.3 % P90; ITL 7.1 %; E2E 6.7 % median",
    "P3": "LLM-Emu, on vLLM's own scheduler: TTFT 10.4 % at most; AIConfigurator's users: TTFT 30 to 45 %",
    "P5": "AIConfigurator: below 30 s",
}


def table(document: Mapping[str, Any]) -> str:
    lines = [*_machines(document), "", f"{'':5}{'':62}{'value':>10}{'target':>13}"]
    for name, part in document["parts"].items():
        lines += [line for row in part["rows"] for line in _row(row)]
        lines += [line for found in part["validations"] for run in found["runs"] for line in _points(run)]
        lines += [f"{'':5}  others: {OTHERS[name]}"] if name in OTHERS else []
    return "\n".join([*lines, "", _verdict(document)])


def _machines(document: Mapping[str, Any]) -> Iterator[str]:
    """What each part was measured on: mostly one machine. Of a part that does not say, that of the document."""
    said = {name: part.get("hardware", document["hardware"]["summary"]) for name, part in document["parts"].items()}
    for machine in dict.fromkeys(said.values()):
        yield f"on: {machine} ({', '.join(name for name, where in said.items() if where == machine)})"


def _verdict(document: Mapping[str, Any]) -> str:
    """What nobody measured is no promise that is kept."""
    missing = ", ".join(_missing(document["parts"]))
    verdict, but = ("PASSED", "but") if document["valid"] else ("FAILED", "and")
    return f"{verdict}, {but} not measured: {missing}" if missing else verdict


def _missing(parts: Mapping[str, Any]) -> Iterator[str]:
    for name in PARTS:
        rows = parts[name]["rows"] if name in parts else []
        lacking = sum(row["passed"] is None for row in rows)
        if lacking or not rows:
            yield f"{name} ({lacking} of {len(rows)} rows)" if rows else name


def _row(row: Mapping[str, Any]) -> Iterator[str]:
    limit = f"{'<=' if row['most'] else '>='} {quantity(row['limit'], row['unit'])}"
    value = quantity(row["value"], row["unit"])
    yield f"{row['id']:5}{row['what']:62}{value:>10}{limit:>13}  {VERDICTS[row['passed']]}".rstrip()
    if row["note"]:
        yield f"{'':5}  {row['note']}"


def _points(run: Mapping[str, Any]) -> Iterator[str]:
    """One load: what was measured, and what was said."""
    used = "" if run["utilisation"] is None else f", {run['utilisation']:.0%} of capacity"
    flags = ", outside of what was measured" if run["beyond"] else ""
    flags += "" if run["valid"] else ", a gate failed"
    yield f"{'':5}  {run['name']}{used}{flags}: {', '.join(_said(run))}"


def _said(run: Mapping[str, Any]) -> Iterator[str]:
    for figure in run["figures"]:
        if figure["name"] in ("ttft_p95", "itl_p95") and figure["measured"] is not None:
            error = figure["matched"]["error"]
            wrong = "" if error is None else f" ({error:+.1%})"
            yield f"{figure['name'].replace('_', ' ').upper()} {figure['measured'] * 1000:.1f} ms{wrong}"
