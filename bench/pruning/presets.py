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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twofour.bench import child
from twofour.bench.hardware import hardware, versions
from twofour.prune.errors import InputError, TextError
from twofour.prune.format.checkpoint import MANIFEST
from twofour.prune.format.folder import read_json, write_whole
from twofour.prune.label.quality import gaps_closed
from twofour.prune.out import require_folder
from twofour.prune.text.corpus import read_text

KIND = "twofour.bench.pruning"  # of the document
SCHEMA_VERSION = 1  # documents from before it was written down have the same
FIRST = "first"
MIX = "+"  # between the sources of a calibration
KEY = ("calibration", "samples", "seed", "preset", "values")


@dataclass(frozen=True)
class Trials:
    """What is compared with what. windows: at most so many of each half; None: all."""

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


def compare_presets(trials: Trials, folder: Path, out: Path) -> dict[str, Any]:
    """Run what is missing, and write the results after each run. `folder`: for the halves and the pruned models."""
    require_folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    halves = split(trials.text, folder)
    before: dict[str, Any] = read_json(out) if out.exists() else _empty(trials)
    results: dict[str, Any] = {"kind": KIND, "schema_version": SCHEMA_VERSION} | before
    if results.get("about") != _about(trials):
        raise InputError(f"{out} holds runs of {results.get('about')}, not of {_about(trials)}; give another --out")
    done = [{key: run[key] for key in KEY} for run in results["runs"]]
    for run in trials.runs():
        if run not in done:
            results["runs"].append(run | _measure(trials, run, folder, halves))
            write_whole(out, json.dumps(results, indent=2) + "\n")
    return with_gaps(results)


def split(text: Path, folder: Path) -> tuple[Path, Path]:
    """Write the two halves of a text as files, cut behind the line that its middle is in."""
    whole = read_text(text)
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


def calibration_name(run: dict[str, Any]) -> str:
    """A run's calibration without the folders of this machine."""
    return _names(run["calibration"].split(MIX))


def _names(sources: Sequence[str]) -> str:
    return MIX.join(Path(source).name for source in sources)


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
        *(calibration_name(run), str(run["samples"]), str(run["seed"]), preset),
        *(f"{run['minutes']:.1f}", f"{run['peak_memory_bytes'] / 2**30:.1f}"),
        *(f"{run['perplexity']:.2f} ({ratio:.2f}x)", *gc, f"{run['kl_nats']:.3f}", f"{run['agreement']:.1%}"),
        "-" if run["overfit_nats"] is None else f"{run['overfit_nats']:.3f}",
    ]
    return " | ".join(cells)


def _measure(trials: Trials, run: dict[str, Any], folder: Path, halves: tuple[Path, Path]) -> dict[str, Any]:
    first, second = halves
    sources = [str(first) if source == FIRST else source for source in run["calibration"].split(MIX)]
    # `first` by the name of its half: the half of another text is another calibration
    parts = [Path(trials.model).name, _names(sources), *(str(run[key]) for key in KEY[1:]), str(trials.length)]
    out = folder / "-".join(parts)
    if not out.exists():
        options = ["--samples", str(run["samples"]), "--length", str(trials.length), "--preset", run["preset"]]
        options += ["--seed", str(run["seed"]), "--values", run["values"]]
        options += [word for source in sources for word in ("--calibration", source)]
        child.twofour("prune", trials.model, "-o", str(out), *options)
    manifest = json.loads((out / MANIFEST).read_text())
    judged = _evaluated(trials, out, second)
    only = Path(sources[0]) if len(sources) == 1 else None
    known = _evaluated(trials, out, only) if only and only.is_file() else None
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


def _evaluated(trials: Trials, out: Path, text: Path) -> dict[str, Any]:
    limit = [] if trials.windows is None else ["--windows", str(trials.windows)]
    options = ["--baseline", trials.model, "--text", str(text), "--window", str(trials.window), *limit]
    return child.twofour("eval", str(out), *options)


def _empty(trials: Trials) -> dict[str, Any]:
    return {"about": _about(trials), "hardware": str(hardware()), "versions": versions(), "runs": []}


def _about(trials: Trials) -> dict[str, Any]:
    """What all runs of a document have in common."""
    sizes = {"length": trials.length, "window": trials.window, "windows": trials.windows}
    return {"model": Path(trials.model).name, "text": trials.text.name, **sizes}
