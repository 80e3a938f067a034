"""How wrong predictions were, for a person: a block for each run, then each figure over all of them."""

from collections.abc import Iterator, Mapping
from typing import Any

Document = Mapping[str, Any]
_SHOWN = ("ttft", "itl", "tpot", "e2e")


def table(document: Document) -> str:
    profile = document["profile"]
    lines = [
        f"{profile['name']} ({profile['model']}), by its {profile['source']}: what it said of loads it had not seen"
    ]
    for run in document["runs"]:
        lines += ["", *_run(run)]
    lines += ["", *_errors(document)]
    return "\n".join([*lines, "VALID" if document["valid"] else "INVALID: do not quote these numbers"])


def _run(run: Document) -> Iterator[str]:
    pace = f"{run['rate']:g} requests/s" if run["concurrency"] is None else f"{run['concurrency']} at a time"
    used = "" if run["utilisation"] is None else f", {run['utilisation']:.0%} of capacity"
    invalid = "" if run["valid"] else ", INVALID"
    yield f"{run['name']}: {run['requests']} requests, {pace}{used}{invalid}"
    for each in run["beyond"]:
        yield f"  EXTRAPOLATED: {each}"
    if run["preemptions"]:
        yield f"  {run['preemptions']} preemptions in the simulation"
    yield f"  {'':12}{'measured':>10}{'same requests':>22}{'requests like them':>24}{'90 % between':>20}"
    for figure in run["figures"]:
        yield _figure(figure)


def _figure(figure: Document) -> str:
    quantity, percent = figure["name"].split("_")[0], figure["name"]
    times = 1000 if quantity in _SHOWN else 1
    name = f"{quantity.upper()} {percent.split('_')[1]} ms" if quantity in _SHOWN else "tokens/s"
    forecast = figure["forecast"] or {"value": None, "error": None, "low": None, "high": None, "holds": None}
    between = f"{_number(forecast['low'], times)} - {_number(forecast['high'], times)}"
    outside = " missed" if forecast["holds"] is False else ""
    return (
        f"  {name:12}{_number(figure['measured'], times):>10}{_told(figure['matched'], times):>22}"
        f"{_told(forecast, times):>24}{between:>20}{outside}"
    )


def _errors(document: Document) -> Iterator[str]:
    yield f"error over {document['counted']} runs that are valid and within what was measured: mean, most"
    yield f"  {'':16}{'same requests':>18}{'requests like them':>22}{'within 90 %':>14}"
    forecast = document["errors"]["forecast"]
    for name, matched in document["errors"]["matched"].items():
        of = forecast[name]
        within = f"{of['held']} of {of['runs']}" if of["runs"] else "-"
        label = name.replace("output_tokens_per_s", "tokens/s").replace("_", " ").replace("ttft", "TTFT")
        label = label.replace("itl", "ITL").replace("tpot", "TPOT").replace("e2e", "E2E")
        yield f"  {label:16}{_both(matched):>18}{_both(of):>22}{within:>14}"


def _both(error: Document) -> str:
    return "-" if error["mean"] is None else f"{error['mean']:.1%}, {error['max']:.1%}"


def _told(found: Document, times: int) -> str:
    error = "" if found["error"] is None else f" ({found['error']:+.1%})"
    return f"{_number(found['value'], times)}{error}"


def _number(value: float | None, times: int) -> str:
    return "-" if value is None else f"{value * times:.1f}"
