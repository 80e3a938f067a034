"""What a reader must know beside the numbers."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from twofour.bench.comparison.experiment import Findings
from twofour.serve.commands.rounding import DENSE_VALUES, LM_HEAD


def notes(found: Findings, baselines: Mapping[str, Any]) -> list[str]:
    said = [
        *_cut_off_notes(found),
        "Answers are forced to their planned length, so all arms do the same work; how long each would answer by "
        "itself, and so its cost per answer, is not measured here.",
        *_baseline_notes(baselines),
        *_fallback_notes(found),
        *_rounding_notes(found),
    ]
    if found.random_weights:
        said.append(
            f"The weights are random, in the shape of {found.random_weights}: speed and memory are those of the "
            "shape; there is no quality to measure."
        )
    if found.placement is None:
        said.append("The servers were running already; the machine named here is that of the client.")
    elif found.placement.server_cpus is None:
        said.append("Too few CPUs to pin server and client apart: they share them.")
    if found.experiment.rate:
        said.append("An open loop offers all the same rate; cost needs a closed loop (--concurrency).")
    elif found.price is None:
        why = found.unpriced or "none is known for this machine"
        said.append(f"No price: {why}; give --price-per-hour. The cost ratio needs none.")
    warning = found.price.warning(found.started.date()) if found.price else None
    return [*said, f"Attention: {warning}."] if warning else said


def _cut_off_notes(found: Findings) -> Iterator[str]:
    if found.cut_off:
        rounds = len(found.runs) // len(found.arms)
        yield (
            f"Attention: interrupted after {rounds} of {found.experiment.rounds} rounds, which is all that is shown: "
            "run it again."
        )


def _baseline_notes(baselines: Mapping[str, Any]) -> Iterator[str]:
    torch_dense, best_dense = baselines["torch_dense"], baselines["best_dense"]
    if best_dense is None:
        yield "Dense is whatever its server runs; how fast the best dense would be is not known."
        return
    yield (
        "Torch dense is the dense model as torch multiplies it, what users run today; best dense is the same model on "
        "the fastest dense kernels of this server."
    )
    if best_dense["kernels"] and best_dense["kernels"] == torch_dense["kernels"]:
        yield "Both ran the same kernels here: this server knows none for dense that beats torch's."
    if best_dense["tpot_to_torch_dense"]["verdict"] == "worse":
        slower = best_dense["tpot_to_torch_dense"]["ratio"]["point"]
        yield f"Attention: best dense took {slower:.3f}x as long per token as torch dense: judge by the latter."


def _fallback_notes(found: Findings) -> Iterator[str]:
    """A 2:4 model that was not multiplied as one: its memory and speed are then those of dense."""
    after = found.arms["sparse"].after
    kernels = after.kernels if after else {}
    if expanded := kernels.get("reference"):
        yield (
            f"Attention: {expanded} linears of the 2:4 model were expanded to dense, as there was no 2:4 kernel for "
            "them on that machine; its log says why."
        )
    if faster := kernels.get("dense"):
        yield f"{faster} linears of the 2:4 model were kept dense, which was faster on that machine."


def _rounding_notes(found: Findings) -> Iterator[str]:
    words = found.arms["sparse"].command or ()
    if flags := [f"{flag} {value}" for flag, value in pairwise(words) if flag in (LM_HEAD, DENSE_VALUES)]:
        yield f"Best dense and 2:4 were served with {' '.join(flags)}: what is dense in them was rounded at load."
