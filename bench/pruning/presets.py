"""Presets compared: quality against minutes, on text that no calibration saw.

A text is cut in two at a line near its middle. `first` names its first half as calibration, `self:first` what the model
writes from pieces of it on, `A+B` a mix of sources; the second half judges all runs. The reference of a run is `fast`
with the same calibration, samples and seed, and

    GC = (ppl_fast - ppl) / (ppl_fast - ppl_dense)

is the share of what 2:4 by SparseGPT costs that the run closed; nll GC is the same of log perplexities, which large
gaps do not flatter. `overfit` is how much more nll a run lost on the second half than on its calibration text.

Runs may have budgets: `prune --budget` then chooses how each linear is stored. Beside them stand `arms`: folders as
they are, and what dense would be in fewer bits (`judged`). Of all of them the bytes of the linears are known.

Every prune and every eval is a process of its own, so minutes and peak memory are those of a user. Runs that are in the
results already are not repeated.
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twofour.bench import child
from twofour.bench.comparison.named import NamedArm
from twofour.bench.hardware import hardware, versions
from twofour.bench.pruning.judged import SIMULATED, Dense, of_arm, rivals
from twofour.prune.config import BEGUN, without_folders
from twofour.prune.errors import InputError, TextError
from twofour.prune.format.checkpoint import MANIFEST
from twofour.prune.format.folder import read_json, resolve, write_whole
from twofour.prune.label.quality import gaps_closed
from twofour.prune.out import require_folder
from twofour.prune.text.corpus import read_text

KIND = "twofour.bench.pruning"  # of the document
SCHEMA_VERSION = 1  # documents from before it was written down have the same
FIRST = "first"
MIX = "+"  # between the sources of a calibration
KEY = ("calibration", "samples", "seed", "preset", "values", "budget")


@dataclass(frozen=True)
class Trials:
    """What is compared with what. windows: at most so many of each half; None: all."""

    model: str
    text: Path
    presets: Sequence[str]
    calibrations: Sequence[str]  # FIRST, "self", a file, "self:" and one of these, or several of them with + between
    seeds: Sequence[int]
    values: Sequence[str] = ("model",)
    samples: int = 64
    length: int = 512
    window: int = 1024
    windows: int | None = None
    budgets: Sequence[float] = ()
    rivals: bool = False  # dense as it is, in int8, and in 4 bits, simulated
    arms: Sequence[NamedArm] = ()  # folders that are judged as they are

    def runs(self) -> Iterator[dict[str, Any]]:
        """What to run, the reference of a calibration and seed first."""
        for calibration in self.calibrations:
            for seed in self.seeds:
                for preset in sorted(self.presets, key=lambda preset: preset != "fast"):
                    for values, budget in [*((v, None) for v in self.values), *(("model", b) for b in self.budgets)]:
                        found = (calibration, self.samples, seed, preset, values, budget)
                        yield dict(zip(KEY, found, strict=True))


def compare_presets(trials: Trials, folder: Path, out: Path) -> dict[str, Any]:
    """Run what is missing, and write the results after each run. `folder`: for the halves and the pruned models."""
    require_folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    halves = split(trials.text, folder)
    before: dict[str, Any] = read_json(out) if out.exists() else _empty(trials)
    results: dict[str, Any] = {"kind": KIND, "schema_version": SCHEMA_VERSION} | before
    if results.get("about") != _about(trials):
        raise InputError(f"{out} holds runs of {results.get('about')}, not of {_about(trials)}; give another --out")
    model = Dense(resolve(trials.model))
    done = [{key: run.get(key) for key in KEY} for run in results["runs"]]
    for run in trials.runs():
        if run not in done:
            results["runs"].append(run | _measure(trials, run, folder, halves, model))
            write_whole(out, json.dumps(results, indent=2) + "\n")
    _judge(trials, results, folder, halves[1], model, out)
    return with_gaps(results)


def _judge(trials: Trials, results: dict[str, Any], folder: Path, text: Path, model: Dense, out: Path) -> None:
    """Add what is judged as it is, unless it is there already."""
    judged = [*(rivals(model, folder) if trials.rivals else ()), *map(of_arm, trials.arms)]
    known = results.setdefault("arms", [])
    for arm in judged:
        if arm.name not in [other["name"] for other in known]:
            found = _evaluated(trials, arm.folder(), text, arm.rounding)
            known.append(arm.about() | arm.bytes_in(model) | _quality(found))
            write_whole(out, json.dumps(results, indent=2) + "\n")


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
    fast = {_reference(run): run for run in results["runs"] if run["preset"] == "fast" and is_plain(run)}
    runs = [run | gaps(run, fast.get(_reference(run))) for run in results["runs"]]
    return results | {"runs": runs}


def is_plain(run: dict[str, Any]) -> bool:
    """All 2:4, in the model's own dtype."""
    return run["values"] == "model" and run.get("budget") is None


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
    return MIX.join(map(without_folders, sources))


def table(results: dict[str, Any]) -> str:
    """The runs as a Markdown table, and what was judged beside them as another."""
    heads = ["calibration", "samples", "seed", "preset", "minutes", "GiB", "perplexity (ratio)"]
    heads += ["GC", "nll GC", "KL", "agreement", "overfit"]
    runs, arms = with_gaps(results)["runs"], results.get("arms", [])
    sized = any(_share(run) for run in runs)
    tables = [_markdown([*heads, *(["bytes"] if sized else [])], [_row(run, sized) for run in runs])] if runs else []
    if arms:
        tables.append(_markdown(["beside them", "bytes", "perplexity (ratio)", "KL", "agreement"], map(_arm_row, arms)))
    return "\n\n".join(tables)


def _markdown(heads: Sequence[str], rows: Iterable[str]) -> str:
    return "\n".join(f"| {row} |" for row in (" | ".join(heads), "|".join("---" for _ in heads), *rows))


def _row(run: dict[str, Any], sized: bool) -> str:
    gc = ["-" if run[key] is None else f"{run[key]:.2f}" for key in ("gc", "nll_gc")]
    cells = [
        *(calibration_name(run), str(run["samples"]), str(run["seed"]), run_name(run)),
        *(f"{run['minutes']:.1f}", f"{run['peak_memory_bytes'] / 2**30:.1f}"),
        *(_perplexity(run), *gc, f"{run['kl_nats']:.3f}", f"{run['agreement']:.1%}"),
        "-" if run["overfit_nats"] is None else f"{run['overfit_nats']:.3f}",
        *([_share(run)] if sized else []),
    ]
    return " | ".join(cells)


def _arm_row(arm: dict[str, Any]) -> str:
    name = f"{arm['name']} (simulated, no kernel)" if arm["kind"] == SIMULATED else arm["name"]
    return " | ".join([name, _share(arm), _perplexity(arm), f"{arm['kl_nats']:.3f}", f"{arm['agreement']:.1%}"])


def run_name(run: dict[str, Any]) -> str:
    """The preset, and how linears are stored where that is not 2:4 in the model's own dtype."""
    values, budget = run["values"], run.get("budget")
    return run["preset"] + (f", {values}" if values != "model" else "") + (f", budget {budget:g}" if budget else "")


def _perplexity(judged: dict[str, Any]) -> str:
    return f"{judged['perplexity']:.2f} ({judged['perplexity'] / judged['dense_perplexity']:.2f}x)"


def _share(judged: dict[str, Any]) -> str:
    return f"{judged['linear_bytes'] / judged['dense_linear_bytes']:.3f}" if judged.get("linear_bytes") else ""


def _measure(
    trials: Trials, run: dict[str, Any], folder: Path, halves: tuple[Path, Path], model: Dense
) -> dict[str, Any]:
    first, second = halves
    named = {FIRST: str(first), BEGUN + FIRST: f"{BEGUN}{first}"}
    sources = [named.get(source, source) for source in run["calibration"].split(MIX)]
    out = folder / _folder_name(trials, run, sources)
    if not out.exists():
        child.twofour("prune", trials.model, "-o", str(out), *_options(trials, run, sources))
    manifest = json.loads((out / MANIFEST).read_text())
    judged = _evaluated(trials, out, second)
    only = Path(sources[0]) if len(sources) == 1 else None
    known = _evaluated(trials, out, only) if only and only.is_file() else None
    return {
        "minutes": manifest["minutes"],
        "peak_memory_bytes": manifest["peak_memory_bytes"],
        **_quality(judged),
        "overfit_nats": None if known is None else _lost(judged) - _lost(known),
        "linear_bytes": model.bytes_of(out),
        "dense_linear_bytes": model.linear_bytes,
    }


def _folder_name(trials: Trials, run: dict[str, Any], sources: Sequence[str]) -> str:
    # `first` by the name of its half: the half of another text is another calibration
    named = [str(run[key]) for key in KEY[1:] if run[key] is not None]
    return "-".join([Path(trials.model).name, _names(sources), *named, str(trials.length)])


def _options(trials: Trials, run: dict[str, Any], sources: Sequence[str]) -> list[str]:
    stored = ["--values", run["values"]] if run["budget"] is None else ["--budget", f"{run['budget']:g}"]
    options = ["--samples", str(run["samples"]), "--length", str(trials.length), "--preset", run["preset"]]
    options += ["--seed", str(run["seed"]), *stored]
    return options + [word for source in sources for word in ("--calibration", source)]


def _quality(judged: dict[str, Any]) -> dict[str, Any]:
    named = {"dense_perplexity": "baseline_perplexity"}
    figures = ("perplexity", "perplexity_error", "dense_perplexity", "kl_nats", "agreement")
    return {name: judged[named.get(name, name)] for name in figures}


def _lost(figures: dict[str, Any]) -> float:
    return math.log(figures["perplexity"] / figures["baseline_perplexity"])


def _evaluated(trials: Trials, out: Path, text: Path, rounding: Sequence[str] = ()) -> dict[str, Any]:
    limit = [] if trials.windows is None else ["--windows", str(trials.windows)]
    options = ["--baseline", trials.model, "--text", str(text), "--window", str(trials.window), *limit, *rounding]
    return child.twofour("eval", str(out), *options)


def _empty(trials: Trials) -> dict[str, Any]:
    return {"about": _about(trials), "hardware": str(hardware()), "versions": versions(), "runs": []}


def _about(trials: Trials) -> dict[str, Any]:
    """What all runs of a document have in common."""
    sizes = {"length": trials.length, "window": trials.window, "windows": trials.windows}
    return {"model": Path(trials.model).name, "text": trials.text.name, **sizes}
