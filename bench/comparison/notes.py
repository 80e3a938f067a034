"""What a reader must know beside the numbers."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from twofour.bench.comparison import costs
from twofour.bench.comparison.experiment import ArmFacts, Findings
from twofour.serve.commands.rounding import DENSE_VALUES, LM_HEAD

FORCED = (
    "Answers are forced to their planned length, so all arms do the same work; how long each would answer by itself, "
    "and so its cost per answer, is not measured here."
)


def notes(
    found: Findings, baselines: Mapping[str, Any], decided: str | None, paid_back: Mapping[str, Any] | None
) -> list[str]:
    """decided: the verdict of what decides, 2:4 against dense."""
    said = [
        *_cut_off_notes(found),
        *_advice(found, decided),
        FORCED,
        *_baseline_notes(baselines),
        *_fallback_notes(found),
        *_rounding_notes(found),
    ]
    if found.random_weights:
        said.append(
            f"The weights are random, in the shape of {found.random_weights}: speed and memory are those of the "
            "shape; there is no quality to measure."
        )
    said += _step_notes(found, {"dense": "dense", "sparse": "2:4"})
    said += _payback_notes(paid_back, "2:4")
    return [*said, *_placement_notes(found), *_price_notes(found)]


def several_notes(found: Findings, paid_back: Mapping[str, Mapping[str, Any] | None]) -> list[str]:
    """Of arms that have names of their own."""
    costs = [*_step_notes(found, {name: name for name in found.arms})]
    costs += [note for name, each in paid_back.items() for note in _payback_notes(each, name)]
    expanded = [note for name, arm in found.arms.items() for note in _expanded(arm, name)]
    return [*_cut_off_notes(found), FORCED, *expanded, *costs, *_placement_notes(found), *_price_notes(found)]


def _advice(found: Findings, decided: str | None) -> Iterator[str]:
    """Whether 2:4 pays at all, and who else should be asked."""
    if decided in ("worse", "unclear", "same"):
        buys = "does not pay" if decided == "worse" else "buys nothing clear"
        yield f"Attention: 2:4 {buys} at this load, and dense loses nothing: take dense."
    ours = found.arms["dense"].command
    if ours and DENSE_VALUES not in ours:
        yield f"Dense in int8 ({DENSE_VALUES} int8) was no arm here; where it is fast it may beat 2:4: measure it, too."


def _placement_notes(found: Findings) -> Iterator[str]:
    if found.placement is None:
        yield "The servers were running already; the machine named here is that of the client."
    elif found.placement.server_cpus is None:
        yield "Too few CPUs to pin server and client apart: they share them."


def _price_notes(found: Findings) -> Iterator[str]:
    if found.experiment.rate:
        yield "An open loop offers all the same rate; cost needs a closed loop (--concurrency)."
    elif found.price is None:
        why = found.unpriced or "none is known for this machine"
        yield f"No price: {why}; give --price-per-hour. The cost ratio needs none."
    if warning := found.price.warning(found.started.date()) if found.price else None:
        yield f"Attention: {warning}."


def _step_notes(found: Findings, names: Mapping[str, str]) -> Iterator[str]:
    """Input and output tokens apart, by the time that each takes of the server's steps."""
    split = {label: costs.by_steps(found, arm) for arm, label in names.items()}
    said = [
        f"{label} ${each['input']:.4f} and ${each['output']:.4f}"
        for label, each in split.items()
        if each and each["input"]
    ]
    if said and not found.experiment.rate:
        yield (
            f"By time in the server's steps, a million input and a million output tokens cost {', '.join(said)}. "
            "Weights that a step reads are shared by its tokens."
        )


def _payback_notes(paid_back: Mapping[str, Any] | None, name: str) -> Iterator[str]:
    if paid_back is None or paid_back["tokens"] is None:
        return
    least, most = (_millions(end) if end else "never" for end in (paid_back["low"], paid_back["high"]))
    yield (
        f"The pruning of {name} took {paid_back['minutes']:.1f} minutes. On a machine of this price it is paid back "
        f"after {_millions(paid_back['tokens'])} million tokens at this load [{least}, {most}], without its evaluation."
    )


def _millions(tokens: float) -> str:
    """In two digits, or whole."""
    return f"{tokens / 1e6:,.2g}" if tokens < 1e7 else f"{tokens / 1e6:,.0f}"


def _cut_off_notes(found: Findings) -> Iterator[str]:
    rounds = len(found.runs) // len(found.arms)
    if found.cut_off and rounds < found.experiment.rounds:
        yield (
            f"Attention: interrupted after {rounds} of {found.experiment.rounds} rounds, which is all that is shown: "
            "run it again."
        )
    elif found.cut_off:
        yield "Attention: interrupted under other loads: what is shown of them is not whole; run it again."


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
    yield from _expanded(found.arms["sparse"], "the 2:4 model")
    if faster := kernels.get("dense"):
        yield f"{faster} linears of the 2:4 model were kept dense, which was faster on that machine."


def _expanded(arm: ArmFacts, name: str) -> Iterator[str]:
    if expanded := arm.after.kernels.get("reference") if arm.after else None:
        yield (
            f"Attention: {expanded} linears of {name} were expanded to dense, as there was no 2:4 kernel for them on "
            "that machine; its log says why."
        )


def _rounding_notes(found: Findings) -> Iterator[str]:
    words = found.arms["sparse"].command or ()
    if flags := [f"{flag} {value}" for flag, value in pairwise(words) if flag in (LM_HEAD, DENSE_VALUES)]:
        yield f"Best dense and 2:4 were served with {' '.join(flags)}: what is dense in them was rounded at load."
