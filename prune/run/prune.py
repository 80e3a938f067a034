"""The story of a pruning run: `prune`, and below it each of its steps."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twofour.prune.config import PruneConfig
from twofour.prune.errors import InputError
from twofour.prune.format import checkpoint, folder
from twofour.prune.format.checkpoint import SparseWeight
from twofour.prune.format.origin import origin
from twofour.prune.label import publish
from twofour.prune.label.card import head_kind, trained
from twofour.prune.label.manifest import PrunedLinear, Result, Text, file_digests, manifest
from twofour.prune.machine import heap
from twofour.prune.machine.precision import full_precision
from twofour.prune.model.anatomy import Anatomy, dissect, load
from twofour.prune.model.attention import quick_attention
from twofour.prune.model.batches import Batch, record
from twofour.prune.progress import Progress, silent
from twofour.prune.recovery.blocks import recover_block
from twofour.prune.recovery.dense import DenseWeights
from twofour.prune.recovery.distil import distil
from twofour.prune.recovery.stream import Length, distil_stream
from twofour.prune.recovery.training import Outcome, Recovery, step_tokens
from twofour.prune.run import calibrate, footprint, solvers
from twofour.prune.run.calibrate import PrunedBlock, ToStored
from twofour.prune.run.journal import Journal, OnDemand
from twofour.prune.run.prepare import Prepared, prepare
from twofour.prune.run.request import Stamps, model_stamps, request, threads_note
from twofour.prune.solving.magnitude import magnitude
from twofour.prune.text import corpus, sources, windows
from twofour.prune.text.plain import PlainWriter
from twofour.prune.text.sources import Calibration
from twofour.prune.text.writer import NewWriter

FEW_TOKENS = 32  # that an expert saw


@dataclass(frozen=True)
class Pruned:
    """A model that was pruned: its new weights, by the names they are stored under, and what the label says of it."""

    weights: OnDemand
    result: Result


@dataclass(frozen=True)
class Report:
    """Where the pruned model is, and its manifest. Printed, it is the summary of the run."""

    folder: Path
    manifest: dict[str, Any]

    def __str__(self) -> str:
        linears = self.manifest["linears"]
        losses = {name: linear["loss"] for name, linear in linears.items()}
        worst = max(losses, key=lambda name: losses[name])
        how = f"{self.manifest['method']}, {self.manifest['values']['dtype']} values"
        kept = ", ".join(self.manifest["dense"]) or "none"
        recovery = self.manifest["recovery"]
        when = " before kept weights were trained" if recovery else ""
        lines = [
            f"{self.folder}: {len(linears)} linears are 2:4 ({how}), left dense: {kept}",
            f"relative loss{when}: mean {sum(losses.values()) / len(losses):.4f}, "
            f"largest {losses[worst]:.4f} at {worst}",
            *([trained(self.manifest)] if recovery and recovery["model"] else []),
            *([f"lm_head: {head_kind(self.manifest['lm_head'])}"] if self.manifest["lm_head"] else []),
            *self.manifest["fallbacks"],
            f"{self.manifest['minutes']:.1f} minutes, peak memory {self.manifest['peak_memory_bytes'] / 2**30:.2f} GiB",
            f"what it lost: twofour eval {shlex.quote(str(self.folder))} --baseline DENSE --label",
        ]
        return "\n".join(lines)


def prune(
    model: str | Path,
    out: str | Path,
    config: PruneConfig | None = None,
    progress: Progress = silent,
    new_writer: NewWriter = PlainWriter,
) -> Report:
    """Make a dense model, a folder or a hub id, strictly 2:4 and write it to the new folder `out`.

    new_writer: makes what writes the text; that of `twofour prune` is the engine's, several times as quick on a CPU.
    A run that was cut off goes on where it was when it is asked for again: see `journal`.
    """
    journal, config = Journal(Path(out)), config or PruneConfig()
    folder.refuse_existing(Path(out))
    source = folder.resolve(str(model), config.revision)
    base, before = origin(str(model), source), model_stamps(source)
    with journal, footprint.shortage_named(), folder.new_folder(Path(out), inside=journal.folder) as part:
        ready = prepare(source, config, journal.begun)
        config, text = ready.config, described_text(ready)
        journal.begin(request(config, ready.forward_dtype, before, ready.decided))
        folder.require_space(part, ready.disk_bytes - journal.size)
        pruned = pruned_model(ready, journal, progress, new_writer)
        require_unchanged(source, before)
        head = ready.head
        del ready  # where the model is not needed for the weights, writing has its memory
        checkpoint.write_model(part, source, pruned.weights, config.format, head)
        threads, seconds = torch.get_num_threads(), journal.spent_s
        label = manifest(str(model), base, config, text, pruned.result, threads, seconds)
        publish.write(part, label, Path(out).name)
    return Report(Path(out), label)


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


def pruned_model(ready: Prepared, journal: Journal, progress: Progress, new_writer: NewWriter = PlainWriter) -> Pruned:
    """Prune the prepared model in place, and train what was kept."""
    text = Calibration(torch.empty(0))
    with heap.reused(), quick_attention(ready.anatomy.model), full_precision():
        if ready.config.stages.needs_text:
            text = journal.text(lambda: calibration(ready, new_writer, progress))
            blocks, whole = pruned_on_text(ready, text.ids, journal, progress, new_writer)
        else:
            blocks, whole = pruned_by_weights(ready, journal, progress), None
    weights = trained_weights(ready) if whole else journal.weights()  # the journal has those before that training
    named = {ready.names[name]: make for name, make in weights.items()}
    return Pruned(OnDemand(named), result(ready, blocks, whole, text, journal.threads))


def pruned_by_weights(ready: Prepared, journal: Journal, progress: Progress) -> list[PrunedBlock]:
    """Prune every block by its weights alone."""
    to_stored = solvers.to_stored(ready.config, ready.anatomy.stored_dtype)
    return list(calibrate.prune_without_text(ready.anatomy, magnitude, progress, to_stored, journal))


def pruned_on_text(
    ready: Prepared, ids: Tensor, journal: Journal, progress: Progress, new_writer: NewWriter
) -> tuple[list[PrunedBlock], Outcome | None]:
    """Prune block by block on the calibration text, then train the whole model where that is asked for."""
    batches = recorded(ready, ids, journal)
    blocks = walked(ready, batches, journal, progress)
    if ready.config.stages.streams:
        del batches  # their states are not needed any more
        return blocks, streamed(ready, journal, progress, new_writer)
    return blocks, distilled(ready, ids, batches, journal, progress)


def calibration(ready: Prepared, new_writer: NewWriter, progress: Progress) -> Calibration:
    """Get the text to calibrate on. What the model writes of it is written where there is room for the whole model."""
    model, tokenizer = ready.anatomy.model, corpus.load_tokenizer(ready.source)
    try:
        return sources.tokens(lambda: new_writer(model.to(ready.decided.writer)), tokenizer, ready.config, progress)
    finally:
        model.cpu()


def recorded(ready: Prepared, ids: Tensor, journal: Journal) -> list[Batch]:
    """Cut the text into batches, each of one training step if there are any, ready for the first block."""
    tokens = step_tokens(ids.numel()) if ready.config.stages.follows_dense else None
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
        recover=train if config.stages.follows_dense else None,
        journal=journal,
        device=config.device,
    )
    return list(blocks)


def distilled(
    ready: Prepared, ids: Tensor, batches: list[Batch], journal: Journal, progress: Progress
) -> Outcome | None:
    """Train all kept weights of the model together; None where that is not asked for."""
    config, anatomy = ready.config, ready.anatomy
    if not config.stages.model_passes:
        return None
    anatomy.model.to(config.device)
    passes, rounding = config.stages.model_passes, solvers.rounding(config)
    return distil(
        anatomy, ids, batches, passes, config.seed, progress, journal, rounding, config.lean, config.recompute
    )


def streamed(ready: Prepared, journal: Journal, progress: Progress, new_writer: NewWriter) -> Outcome:
    """Train all kept weights of the model together on fresh text of the sources."""
    config, anatomy = ready.config, ready.anatomy
    tokenizer = corpus.load_tokenizer(ready.source)

    def new_chunk(number: int, windows: int) -> Tensor:
        some = max(windows, len(config.sources), 2)  # of each source at least one, and as many as any config has
        return next(sources.stream(lambda: new_writer(anatomy.model), tokenizer, config, some, number)).ids

    dense = dense_weights(ready)
    anatomy.model.to(config.device)
    length = Length(config.length, config.stages.tokens, 60 * config.stages.minutes)
    rounding = solvers.rounding(config)
    return distil_stream(anatomy, dense, new_chunk, length, progress, journal, rounding, config.lean, config.recompute)


def dense_weights(ready: Prepared) -> DenseWeights:
    """Load the dense weights once more, to stand beside the pruned ones."""
    place = footprint.teacher(ready.anatomy, ready.config)
    dense = dissect(load(ready.source)).linears
    weights = {name: linear.weight.data.to(place, ready.forward_dtype) for name, linear in dense.items()}
    return DenseWeights(ready.anatomy, weights)


def trained_weights(ready: Prepared) -> dict[str, Callable[[], SparseWeight]]:
    """Return what makes each weight of the model in memory as it will be stored."""
    to_stored = solvers.to_stored(ready.config, ready.anatomy.stored_dtype)
    return {name: partial(trained_weight, linear, to_stored) for name, linear in ready.anatomy.linears.items()}


def trained_weight(linear: nn.Linear, to_stored: ToStored) -> SparseWeight:
    """Return a weight of the model in memory as it will be stored."""
    return to_stored(linear.weight.float()).cpu()


def result(
    ready: Prepared, blocks: list[PrunedBlock], whole: Outcome | None, text: Calibration, threads: list[int]
) -> Result:
    """Gather what was done, for the label. whole: what training the whole model won back."""
    anatomy, names = ready.anatomy, ready.names
    linears = {name: linear for block in blocks for name, linear in block.linears.items()}
    recovered = [block.recovered for block in blocks if block.recovered]
    return Result(
        linears={names[name]: linear for name, linear in linears.items()},
        dense={names[name]: why for name, why in anatomy.dense.items()},
        head=ready.head,
        stored_dtype=checkpoint.dtype_name(anatomy.stored_dtype),
        forward_dtype=checkpoint.dtype_name(ready.forward_dtype),
        recovery=Recovery(recovered, whole) if ready.config.stages.trains else None,
        fallbacks=ready.fallbacks + text.notes + seldom_seen(anatomy, linears) + threads_note(threads),
        sources=text.about,
    )


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
