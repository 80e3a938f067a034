"""What a gate found, for a person."""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from twofour.bench.gate.judge import Allowed, Finding, Judgement

_REMEDY = {
    "pass": "",
    "regression": ": worse by more than is allowed, beyond chance",
    "inconclusive": ": the interval reaches over what is allowed; measure more rounds, or longer ones",
    "invalid": ": nothing can be said",
}


def table(found: Judgement) -> str:
    lines = [f"base: {found.base}", f"new:  {found.new}"]
    if found.findings:
        lines.append(f"{'':44}{'base':>12}{'new':>12}{'new / base':>12}{'interval':>18}{'allowed':>12}")
    lines += [*map(_row, found.findings), *(f"  {why}" for why in found.invalid)]
    return "\n".join([*lines, f"{found.verdict.upper()}{_REMEDY[found.verdict]}"])


def of_document(document: Mapping[str, Any]) -> str:
    """The table of a gate that was kept."""
    return table(TypeAdapter(Judgement).validate_python(document))


def _row(finding: Finding) -> str:
    name = f"{finding.place}: {finding.allowed.name}" if finding.place else finding.allowed.name
    figures = "".join(f"{_figure(finding.allowed, value):>12}" for value in (finding.base, finding.new))
    word = "" if finding.verdict == "pass" else f"  {finding.verdict.upper()}{_why(finding)}"
    return f"{name:44}{figures}{_ratio(finding):>30}{_limit(finding.allowed):>12}{word}"


def _figure(allowed: Allowed, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1000:.2f} ms" if allowed.statistic else f"{value:.2f}"


def _ratio(finding: Finding) -> str:
    ratio = finding.ratio
    if ratio is None:
        return "-"
    interval = "" if ratio.low is None else f"[{ratio.low:.3f}, {ratio.high:.3f}]"
    return f"{ratio.point:.3f}x{interval:>18}"


def _limit(allowed: Allowed) -> str:
    return f"<= {allowed.most:.3f}" if allowed.most is not None else f">= {allowed.least:.3f}"


def _why(finding: Finding) -> str:
    if finding.ratio is None:
        return ", as a run does not have it"
    return ", as one run has no interval" if finding.ratio.low is None else ""
