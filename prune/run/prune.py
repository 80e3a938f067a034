"""The story of a pruning run: `prune`, and below it each of its steps."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twofour.prune.config import PruneConfig
from twofour.prune.errors import InputError
from twofour.prune.format import checkpoint, folder
from twofour.prune.format.origin import origin
from twofour.prune.format.schemes import TWO_OF_FOUR, Scheme, StoredWeight
from twofour.prune.format.schemes import stored as stored_as
from twofour.prune.label.manifest import PrunedLinear, Result, Text, file_digests
from twofour.prune.machine import heap
from twofour.prune.machine.precision import full_precision
from twofour.prune.model.anatomy import Anatomy
from twofour.prune.model.attention import quick_attention
from twofour.prune.model.batches import Batch, record
from twofour.prune.policy.prices import Clock
from twofour.prune.progress import Progress, silent
from twofour.prune.recovery.blocks import recover_block
from twofour.prune.recovery.distil import distil
from twofour.prune.recovery.training import Outcome, Recovery, step_tokens
from twofour.prune.run import calibrate, choose, mixture, solvers
from twofour.prune.run.calibrate import PrunedBlock
from twofour.prune.run.choose import Judge
from twofour.prune.run.journal import Journal, OnDemand
from twofour.prune.run.mixture import Make
from twofour.prune.run.prepare import Prepared, prepare
from twofour.prune.run.report import About, Pruned, Report, write
from twofour.prune.run.request import Stamps, model_stamps, request, threads_note
from twofour.prune.run.shortage import shortage_named
from twofour.prune.solving.magnitude import magnitude
from twofour.prune.text import corpus, sources, windows

FEW_TOKENS = 32  # that an expert saw


@dataclass(frozen=True)
class Mixture:
    """The scheme of each linear of the decoder blocks, and what makes its weight before the whole model is trained.

    policy: why it is this one, for the label, where it was chosen.
    """

    schemes: Mapping[str, Scheme]
    makers: Mapping[str, Make]
    policy: Mapping[str, Any] | None = None


def prune(
    model: str | Path,
    out: str | Path,
    config: PruneConfig | None = None,
    progress: Progress = silent,
    clock: Clock | None = None,
) -> Report:
    """Make a dense model, a folder or a hub id, strictly 2:4 and write it to the new folder `out`.

    With a budget, only the linears that lose least for it. clock: what times products, for a budget of seconds.
    A run that was cut off goes on where it was when it is asked for again: see `journal`.
    """
    journal, config = Journal(Path(out)), config or PruneConfig()
    folder.refuse_existing(Path(out))
    source = folder.resolve(str(model), config.revision)
    base, before = origin(str(model), source), model_stamps(source)
    with journal, shortage_named(), folder.new_folder(Path(out), inside=journal.folder) as part:
        ready = prepare(source, config, journal.begun, clock)
        choose.refuse_impossible(ready)
        about = About(str(model), source, base, ready.config, described_text(ready), ready.head)
        journal.begin(request(ready.config, ready.forward_dtype, before, ready.decided))
        folder.require_space(part, ready.disk_bytes - journal.size)
        pruned = pruned_model(ready, journal, progress)
        require_unchanged(source, before)
        del ready  # where the model is not needed for the weights, writing has its memory
        return write(part, Path(out), about, pruned, journal.spent_s)


def described_text(ready: Prepared) -> Text:
    """Return what the label says of the calibration text; its files are read here, before hours of work."""
    return Text(file_digests(ready.config), window_bos(ready))


def window_bos(ready: Prepared) -> str | None:
    """Return the token that windows of files and data sets begin with, None where they begin with their text."""
    if not ready.config.stages.needs_text:  # nor a tokenizer
        return None
    tokenizer = corpus.load_tokenizer(ready.source)
    bos = windows.bos(tokenizer)
    return None if bos is None else str(tokenizer.convert_ids_to_tokens(bos))


def require_unchanged(source: Path, before: Stamps) -> None:
    """Raise InputError where a file of the model is another than before the run."""
    if model_stamps(source) != before:
        raise InputError(f"{source} changed while it was pruned; run again on a model that stays as it is")


def pruned_model(ready: Prepared, journal: Journal, progress: Progress) -> Pruned:
    """Prune the prepared model in place, and train what was kept."""
    with heap.reused(), quick_attention(ready.anatomy.model), full_precision():
        prune_all = pruned_on_text if ready.config.stages.needs_text else pruned_by_weights
        return pruned_as(ready, *prune_all(ready, journal, progress), journal)


def pruned_as(
    ready: Prepared, blocks: list[PrunedBlock], mixed: Mixture, whole: Outcome | None, journal: Journal
) -> Pruned:
    """Gather a mixture for writing. whole: what training the whole model won back; the model in memory is it then."""
    weights = {**mixed.makers, **(trained_weights(ready, mixed) if whole else {})}
    named = {ready.names[name]: make for name, make in weights.items()}
    return Pruned(OnDemand(named), result(ready, blocks, mixed, whole, journal.threads))


def pruned_by_weights(
    ready: Prepared, journal: Journal, progress: Progress
) -> tuple[list[PrunedBlock], Mixture, Outcome | None]:
    """Prune every block by its weights alone."""
    to_stored = solvers.to_stored(ready.config, ready.anatomy.stored_dtype)
    blocks = list(calibrate.prune_without_text(ready.anatomy, magnitude, progress, to_stored, journal))
    return blocks, mixed(ready, journal), None


def pruned_on_text(
    ready: Prepared, journal: Journal, progress: Progress
) -> tuple[list[PrunedBlock], Mixture, Outcome | None]:
    """Prune block by block on the calibration text, give each linear its scheme, then train the whole where asked."""
    ids, judged = both_texts(ready, journal, progress)
    batches = recorded(ready, ids, journal)
    blocks = walked(ready, batches, journal, progress)
    judge = choose.Judge(ready, judged, journal.weights()) if ready.config.chooses else None
    return blocks, *as_mixture(ready, ids, batches, judge, ready.config.budget, journal, progress)


def both_texts(ready: Prepared, journal: Journal, progress: Progress) -> tuple[Tensor, Tensor]:
    """Get the tokens to calibrate on, and those to judge mixtures on, int64 [samples, length] each."""
    ids = journal.tokens(lambda: calibration_tokens(ready, progress))
    return ids[: ready.config.text_samples], ids[ready.config.text_samples :]


def as_mixture(
    ready: Prepared,
    ids: Tensor,
    batches: list[Batch],
    judge: Judge | None,
    budget: float | None,
    journal: Journal,
    progress: Progress,
) -> tuple[Mixture, Outcome | None]:
    """Give each linear of the walked model its scheme, chosen for a budget where there is a judge; then train all."""
    if judge is None:
        plain = mixed(ready, journal)
        return plain, distilled(ready, ids, batches, plain, journal, progress)
    found = journal.measured(lambda: choose.measured(ready, judge, progress))
    choice = choose.choice(ready, found, budget)
    chosen = mixed(ready, journal, choice.mixture.schemes)
    whole = distilled(ready, ids, batches, chosen, journal, progress)
    policy = choose.described(ready, found, choice, budget, judge.divergence())
    return replace(chosen, policy=policy), whole


def calibration_tokens(ready: Prepared, progress: Progress) -> Tensor:
    """Get the tokens to calibrate on, int64 [samples, length]."""
    tokenizer = corpus.load_tokenizer(ready.source)
    return sources.tokens(ready.anatomy.model, tokenizer, ready.config.drawn, progress, ready.decided.writer)


def recorded(ready: Prepared, ids: Tensor, journal: Journal) -> list[Batch]:
    """Cut the text into batches, each of one training step if there are any, ready for the first block."""
    tokens = step_tokens(ids.numel()) if ready.config.stages.trains else None
    return record(ready.anatomy, ids, batch_tokens=tokens, folder=journal.folder if ready.on_disk else None)


def walked(ready: Prepared, batches: list[Batch], journal: Journal, progress: Progress) -> list[PrunedBlock]:
    """Prune one block after the other, and train each where that is asked for; the journal keeps their weights."""
    config, stored_dtype = ready.config, ready.anatomy.stored_dtype
    train = partial(
        recover_block,
        stored_dtype=stored_dtype,
        passes=config.stages.block_passes,
        seed=config.seed,
        rounding=solvers.rounding(config),
    )
    solve, new_statistic = solvers.solver(config)
    blocks = calibrate.walk(
        ready.anatomy,
        batches,
        solve,
        new_statistic,
        progress,
        to_stored=solvers.to_stored(config, stored_dtype),
        recover=train if config.stages.trains else None,
        journal=journal,
        device=config.device,
    )
    return list(blocks)


def mixed(ready: Prepared, journal: Journal, chosen: Mapping[str, Scheme] | None = None) -> Mixture:
    """Give each linear of the walked model its scheme, in place. chosen: None where the user chooses."""
    walked, anatomy = solvers.walked_scheme(ready.config), ready.anatomy
    schemes = journal.schemes(lambda: chosen or mixture.mixture(anatomy.linears, walked, ready.kept))
    makers = mixture.makers(schemes, journal.weights(), ready.source, ready.names, anatomy.stored_dtype)
    # What keeps the scheme of the walk is in place, unless mixtures were tried.
    changed = {name: make for name, make in makers.items() if chosen or schemes[name] != walked}
    mixture.put_in_place(anatomy, changed)
    return Mixture(schemes, makers)


def distilled(
    ready: Prepared, ids: Tensor, batches: list[Batch], mixed: Mixture, journal: Journal, progress: Progress
) -> Outcome | None:
    """Train all kept weights of the model together; None where that is not asked for."""
    config, anatomy = ready.config, ready.anatomy
    if not config.stages.model_passes:
        return None
    anatomy.model.to(config.device)
    passes = config.stages.model_passes
    return distil(anatomy, ids, batches, passes, config.seed, progress, journal, mixed.schemes)


def trained_weights(ready: Prepared, mixed: Mixture) -> dict[str, Make]:
    """Return what makes each 2:4 weight of the model in memory as it will be stored."""
    schemes = {name: scheme for name, scheme in mixed.schemes.items() if scheme in TWO_OF_FOUR}
    linears, dtype = ready.anatomy.linears, ready.anatomy.stored_dtype
    return {name: partial(trained_weight, linears[name], scheme, dtype) for name, scheme in schemes.items()}


def trained_weight(linear: nn.Linear, scheme: Scheme, dtype: torch.dtype) -> StoredWeight:
    """Return a weight of the model in memory as it will be stored."""
    return stored_as(linear.weight.float(), scheme, dtype).cpu()


def result(
    ready: Prepared, blocks: list[PrunedBlock], mixed: Mixture, whole: Outcome | None, threads: list[int]
) -> Result:
    """Gather what was done, for the label. whole: what training the whole model won back."""
    anatomy, names = ready.anatomy, ready.names
    walked = {name: linear for block in blocks for name, linear in block.linears.items()}
    linears = {name: linear for name, linear in walked.items() if mixed.schemes[name] in TWO_OF_FOUR}
    recovered = [block.recovered for block in blocks if block.recovered]
    return Result(
        linears={names[name]: linear for name, linear in linears.items()},
        dense={names[name]: why for name, why in {**anatomy.dense, **why_dense(ready, mixed)}.items()},
        policy=mixed.policy,
        schemes={names[name]: scheme for name, scheme in mixed.schemes.items()},
        shapes={names[name]: linear.shape for name, linear in walked.items()},
        head=ready.head,
        stored_dtype=checkpoint.dtype_name(anatomy.stored_dtype),
        forward_dtype=checkpoint.dtype_name(ready.forward_dtype),
        recovery=Recovery(recovered, whole) if ready.config.stages.trains else None,
        fallbacks=ready.fallbacks + seldom_seen(anatomy, walked) + threads_note(threads),
    )


def why_dense(ready: Prepared, mixed: Mixture) -> Mapping[str, str]:
    """Say why linears of the decoder blocks are dense."""
    if mixed.policy is None:
        return ready.kept.why
    asked = ", ".join(f"{key} {value:g}" for key, value in mixed.policy["asked"].items())
    return {name: f"dense by {asked}" for name, scheme in mixed.schemes.items() if scheme not in TWO_OF_FOUR}


def seldom_seen(anatomy: Anatomy, linears: Mapping[str, PrunedLinear]) -> list[str]:
    """Say how many linears of experts saw so few tokens that they were pruned by what the whole layer saw."""
    experts = [name for block in anatomy.blocks for name in block.linears if block.expert_of(name)]
    tokens = [linears[name].tokens for name in experts if linears[name].tokens < FEW_TOKENS]
    if not tokens or not any(linear.tokens for linear in linears.values()):  # no text at all: magnitude
        return []
    return [
        f"{len(tokens)} linears of experts saw fewer than {FEW_TOKENS} tokens (the least {min(tokens)}), and what the "
        "whole layer saw had most say in their masks; calibrate on more text"
    ]
