"""Presets compared: quality against minutes, on text that no calibration saw.

A text is cut in two at a line near its middle. `first` names its first half as calibration, `A+B` a mix of sources; the
second half judges all runs. The reference of a run is `fast` with the same calibration, samples and seed, and

    GC = (ppl_fast - ppl) / (ppl_fast - ppl_dense)

is the share of what 2:4 by SparseGPT costs that the run closed; nll GC is the same of log perplexities, which large
gaps do not flatter. `overfit` is how much more nll a run lost on the second half than on its calibration text.

Every prune and every eval is a process of its own, so minutes and peak memory are those of a user. Runs that are in the
results already are not repeated.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from markupsafe import Markup

from twofour.bench import child
from twofour.bench.hardware import hardware, versions
from twofour.bench.report.charts import Point, track
from twofour.prune.errors import InputError, TextError
from twofour.prune.format.checkpoint import MANIFEST
from twofour.prune.format.folder import read_json, write_whole
from twofour.prune.label.quality import gaps_closed
from twofour.prune.out import require_folder
from twofour.prune.text.corpus import whole as read_whole

KIND = "twofour.bench.pruning"  # of the document
SCHEMA_VERSION = 1  # documents from before it was written down have the same
FIRST = "first"
MIX = "+"  # between the sources of a calibration
KEY = ("calibration", "samples", "seed", "preset", "values")


@dataclass(frozen=True)
class Comparison:
    """What is compared with what. windows: of each half at most, None: all."""

    model: str
    text: Path
    presets: Sequence[str]
    calibrations: Sequence[str]  # FIRST, "self", a file, or several of them with + between
    seeds: Sequence[int]
    values: Sequence[str] = ("model",)
    samples: int = 64
    length: int = 512
    window: int = 1024
    windows: int | None = None

    def runs(self) -> Iterator[dict[str, Any]]:
        """What to run, the reference of a calibration and seed first."""
        for calibration in self.calibrations:
            for seed in self.seeds:
                for preset in sorted(self.presets, key=lambda preset: preset != "fast"):
                    for values in self.values:
                        yield dict(zip(KEY, (calibration, self.samples, seed, preset, values), strict=True))


def compare(asked: Comparison, folder: Path, out: Path) -> dict[str, Any]:
    """Run what is missing, and write the results after each run. `folder`: for the halves and the pruned models."""
    require_folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    halves = split(asked.text, folder)
    before: dict[str, Any] = read_json(out) if out.exists() else _empty(asked)
    results: dict[str, Any] = {"kind": KIND, "schema_version": SCHEMA_VERSION} | before
    if results.get("about") != _about(asked):
        raise InputError(f"{out} holds runs of {results.get('about')}, not of {_about(asked)}; give another --out")
    done = [{key: run[key] for key in KEY} for run in results["runs"]]
    for run in asked.runs():
        if run not in done:
            results["runs"].append(run | _measure(asked, run, folder, halves))
            write_whole(out, json.dumps(results, indent=2) + "\n")
    return with_gaps(results)


def split(text: Path, folder: Path) -> tuple[Path, Path]:
    """Write the two halves of a text as files, cut behind the line that its middle is in."""
    whole = read_whole(text)
    cut = whole.find("\n", len(whole) // 2) + 1
    if not 0 < cut < len(whole):
        raise TextError(f"{text} has no line end behind its middle; give a text of many lines")
    first, second = folder / f"{FIRST}-{text.name}", folder / f"second-{text.name}"
    write_whole(first, whole[:cut])
    write_whole(second, whole[cut:])
    return first, second


def with_gaps(results: dict[str, Any]) -> dict[str, Any]:
    """Add GC and nll GC to every run whose reference is there."""
    fast = {_reference(run): run for run in results["runs"] if (run["preset"], run["values"]) == ("fast", "model")}
    runs = [run | gaps(run, fast.get(_reference(run))) for run in results["runs"]]
    return results | {"runs": runs}


def _reference(run: dict[str, Any]) -> tuple[str, int, int]:
    return run["calibration"], run["samples"], run["seed"]


def gaps(run: dict[str, Any], fast: dict[str, Any] | None) -> dict[str, float | None]:
    """GC and nll GC of a run; None without a reference."""
    if fast is None:
        return {"gc": None, "nll_gc": None}
    gap, log_gap = gaps_closed(run["perplexity"], run["dense_perplexity"], fast["perplexity"])
    return {"gc": gap, "nll_gc": log_gap}


def chart(results: dict[str, Any]) -> Markup:
    """GC against minutes, a line for each calibration text through the means of its presets over seeds."""
    runs = [run for run in with_gaps(results)["runs"] if run["values"] == "model" and run["gc"] is not None]
    texts = dict.fromkeys(_text(run, results["about"]) for run in runs)
    same = {text: [run for run in runs if _text(run, results["about"]) == text] for text in texts}
    lines = {text: _means(each, "preset", lambda run: run["minutes"]) for text, each in same.items()}
    about = f"Mean over seeds, judged on a text that no calibration saw; {results['about']['model']}."
    return track("Share of the gap to dense that is closed, against minutes", about, lines, ("minutes", "gap closed"))


def tokens_chart(results: dict[str, Any]) -> Markup:
    """GC against the tokens of the text, a line for each source and preset with several amounts, means over seeds.

    Raises InputError where there is no such line.
    """
    runs = [run for run in with_gaps(results)["runs"] if run["values"] == "model" and run["gc"]]
    kinds = dict.fromkeys((_named(run), run["preset"]) for run in runs)
    same = {kind: [run for run in runs if (_named(run), run["preset"]) == kind] for kind in kinds}
    thousands = results["about"]["length"] / 1000
    lines = {kind: _means(each, "samples", lambda run: run["samples"] * thousands) for kind, each in same.items()}
    curves = {
        f"{preset}, {source}": [point._replace(name="") for point in line]
        for (source, preset), line in lines.items()
        if len(line) > 1
    }
    if not curves:
        raise InputError("no preset was run with several amounts of one text; give bench pruning other --samples, too")
    about = f"Against fast with as much of the same text; {results['about']['model']}."
    units = ("thousand tokens", "gap closed")
    return track("Share of the gap to dense that is closed, against tokens", about, curves, units)


def _text(run: dict[str, Any], about: dict[str, Any]) -> str:
    return f"{_named(run)}, {run['samples']} x {about['length']}"


def _named(run: dict[str, Any]) -> str:
    """The calibration without the folders of this machine."""
    return _names(run["calibration"].split(MIX))


def _names(sources: Sequence[str]) -> str:
    return MIX.join(Path(source).name for source in sources)


def _means(runs: list[dict[str, Any]], by: str, x: Callable[[dict[str, Any]], float]) -> list[Point]:
    """The mean GC of the runs that have the same `by`, in the order of x, which is a mean, too."""
    kinds = dict.fromkeys(run[by] for run in runs)
    same = {kind: [run for run in runs if run[by] == kind] for kind in kinds}
    return sorted(
        Point(fmean(map(x, each)), fmean(run["gc"] for run in each), str(kind)) for kind, each in same.items()
    )


def table(results: dict[str, Any]) -> str:
    """The runs as a Markdown table."""
    heads = ["calibration", "samples", "seed", "preset", "minutes", "GiB", "perplexity (ratio)"]
    heads += ["GC", "nll GC", "KL", "agreement", "overfit"]
    rows = [" | ".join(heads), "|".join("---" for _ in heads)]
    return "\n".join(f"| {row} |" for row in [*rows, *(_row(run) for run in with_gaps(results)["runs"])])


def _row(run: dict[str, Any]) -> str:
    preset = run["preset"] if run["values"] == "model" else f"{run['preset']}, {run['values']}"
    ratio = run["perplexity"] / run["dense_perplexity"]
    gc = ["-" if run[key] is None else f"{run[key]:.2f}" for key in ("gc", "nll_gc")]
    cells = [
        *(_named(run), str(run["samples"]), str(run["seed"]), preset),
        *(f"{run['minutes']:.1f}", f"{run['peak_memory_bytes'] / 2**30:.1f}"),
        *(f"{run['perplexity']:.2f} ({ratio:.2f}x)", *gc, f"{run['kl_nats']:.3f}", f"{run['agreement']:.1%}"),
        "-" if run["overfit_nats"] is None else f"{run['overfit_nats']:.3f}",
    ]
    return " | ".join(cells)


def _measure(asked: Comparison, run: dict[str, Any], folder: Path, halves: tuple[Path, Path]) -> dict[str, Any]:
    first, second = halves
    sources = [str(first) if source == FIRST else source for source in run["calibration"].split(MIX)]
    # first by the name of its half: another text's is another calibration
    parts = [Path(asked.model).name, _names(sources), *(str(run[key]) for key in KEY[1:]), str(asked.length)]
    out = folder / "-".join(parts)
    if not out.exists():
        options = ["--samples", str(run["samples"]), "--length", str(asked.length), "--preset", run["preset"]]
        options += ["--seed", str(run["seed"]), "--values", run["values"]]
        options += [word for source in sources for word in ("--calibration", source)]
        child.twofour("prune", asked.model, "-o", str(out), *options)
    manifest = json.loads((out / MANIFEST).read_text())
    judged = _evaluated(asked, out, second)
    only = Path(sources[0]) if len(sources) == 1 else None
    known = _evaluated(asked, out, only) if only and only.is_file() else None
    return {
        "minutes": manifest["minutes"],
        "peak_memory_bytes": manifest["peak_memory_bytes"],
        "perplexity": judged["perplexity"],
        "perplexity_error": judged["perplexity_error"],
        "dense_perplexity": judged["baseline_perplexity"],
        "kl_nats": judged["kl_nats"],
        "agreement": judged["agreement"],
        "overfit_nats": None if known is None else _lost(judged) - _lost(known),
    }


def _lost(figures: dict[str, Any]) -> float:
    return math.log(figures["perplexity"] / figures["baseline_perplexity"])


def _evaluated(asked: Comparison, out: Path, text: Path) -> dict[str, Any]:
    limit = [] if asked.windows is None else ["--windows", str(asked.windows)]
    options = ["--baseline", asked.model, "--text", str(text), "--window", str(asked.window), *limit]
    return child.twofour("eval", str(out), *options)


def _empty(asked: Comparison) -> dict[str, Any]:
    return {"about": _about(asked), "hardware": str(hardware()), "versions": versions(), "runs": []}


def _about(asked: Comparison) -> dict[str, Any]:
    """What all runs of a document have in common."""
    sizes = {"length": asked.length, "window": asked.window, "windows": asked.windows}
    return {"model": Path(asked.model).name, "text": asked.text.name, **sizes}
