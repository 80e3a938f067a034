"""The story of a pruning run."""

import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
from twofour.prune.format.packed import pack
from twofour.prune.format.rounding import as_int8, to_int8
from twofour.prune.label import publish
from twofour.prune.label.card import trained
from twofour.prune.label.manifest import PrunedLinear, file_digests, manifest
from twofour.prune.machine import heap
from twofour.prune.model.anatomy import Anatomy
from twofour.prune.model.attention import quick_attention
from twofour.prune.model.batches import record
from twofour.prune.progress import Progress, silent
from twofour.prune.recovery.kept import Rounding
from twofour.prune.recovery.recover import Recovery, distil, recover_block, step_tokens
from twofour.prune.run import calibrate, footprint
from twofour.prune.run.calibrate import NewStatistic, PrunedBlock, Solve, Store
from twofour.prune.run.journal import Journal, OnDemand
from twofour.prune.run.prepare import Prepared, prepare
from twofour.prune.run.request import model_stamps, request, threads_note
from twofour.prune.solving.gptq import gptq
from twofour.prune.solving.magnitude import magnitude
from twofour.prune.solving.refine import refine
from twofour.prune.solving.sparsegpt import sparsegpt
from twofour.prune.solving.statistics import Hessian, Norms, Statistic
from twofour.prune.solving.wanda import wanda
from twofour.prune.text import corpus, sources, windows

FEW_TOKENS = 32  # that an expert saw


@dataclass(frozen=True)
class Pruned:
    """A model that was pruned: its new weights, and what the label says of it."""

    weights: OnDemand
    linears: dict[str, PrunedLinear]
    dense: dict[str, str]
    stored: torch.dtype
    forward: torch.dtype
    recovery: Recovery | None
    fallbacks: list[str]


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
            *([trained(recovery["model"])] if recovery and recovery["model"] else []),
            *self.manifest["fallbacks"],
            f"{self.manifest['minutes']:.1f} minutes, peak memory {self.manifest['peak_memory_bytes'] / 2**30:.2f} GiB",
            f"what it lost: twofour eval {shlex.quote(str(self.folder))} --baseline DENSE --label",
        ]
        return "\n".join(lines)


def prune(model: str | Path, out: str | Path, config: PruneConfig | None = None, progress: Progress = silent) -> Report:
    """Make a dense model, a folder or a hub id, strictly 2:4 and write it to the new folder `out`.

    A run that was cut off goes on where it was when it is asked for again: see `journal`.
    """
    journal, config = Journal(Path(out)), config or PruneConfig()
    folder.refuse_existing(Path(out))
    source = folder.resolve(str(model), config.revision)
    base, before = origin(str(model), source), model_stamps(source)
    with journal, footprint.shortage_named(), folder.new_folder(Path(out), inside=journal.folder) as part:
        ready = prepare(source, config, journal.begun)
        config, digests, bos = ready.config, file_digests(ready.config), window_bos(ready)
        journal.begin(request(config, ready.forward, before, ready.decided))
        folder.require_space(part, ready.disk_bytes - journal.size)
        pruned = pruned_model(ready, journal, progress)
        if model_stamps(source) != before:
            raise InputError(f"{source} changed while it was pruned; run again on a model that stays as it is")
        del ready  # where the model is not needed for the weights, writing has its memory
        checkpoint.write_model(part, source, pruned.weights, config.format)
        label = manifest(
            model=str(model),
            config=config,
            origin=base,
            linears=pruned.linears,
            dense=pruned.dense,
            stored_dtype=checkpoint.dtype_name(pruned.stored),
            forward_dtype=checkpoint.dtype_name(pruned.forward),
            threads=torch.get_num_threads(),
            seconds=journal.spent_s,
            recovery=None if pruned.recovery is None else pruned.recovery.as_dict(),
            fallbacks=pruned.fallbacks + threads_note(journal.threads),
            digests=digests,
            bos=bos,
        )
        publish.write(part, label, Path(out).name)
    return Report(Path(out), label)


def pruned_model(ready: Prepared, journal: Journal, progress: Progress) -> Pruned:
    """Prune a model that was prepared, in place."""
    parts, config, names = ready.parts, ready.config, ready.names
    with heap.reused(), quick_attention(parts.model), full_precision():
        blocks, recovery = pruned_blocks(ready, journal, progress)
    # the journal's are those before the whole model was trained
    weights = trained_weights(parts, store(parts, config)) if config.stages.model_passes else journal.weights()
    linears = {name: linear for block in blocks for name, linear in block.linears.items()}
    return Pruned(
        weights=OnDemand({names[name]: make for name, make in weights.items()}),
        linears={names[name]: linear for name, linear in linears.items()},
        dense={names[name]: why for name, why in parts.dense.items()},
        stored=parts.stored,
        forward=ready.forward,
        recovery=recovery,
        fallbacks=ready.fallbacks + seldom_seen(parts, linears),
    )


@contextmanager
def full_precision() -> Iterator[None]:
    """Multiply float32 as float32, whatever the caller allows: TF32 or bfloat16 would do for no Hessian."""
    products: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [product.fp32_precision for product in products]
    try:
        for product in products:
            product.fp32_precision = "ieee"
        yield
    finally:
        for product, precision in zip(products, before, strict=True):
            product.fp32_precision = precision


def seldom_seen(parts: Anatomy, linears: Mapping[str, PrunedLinear]) -> list[str]:
    """Say how many linears of experts saw so few tokens that they were pruned by what the whole layer saw."""
    experts = [name for block in parts.blocks for name in block.linears if block.expert_of(name)]
    tokens = [linears[name].tokens for name in experts if linears[name].tokens < FEW_TOKENS]
    if not tokens or not any(linear.tokens for linear in linears.values()):  # no text at all: magnitude
        return []
    return [
        f"{len(tokens)} linears of experts saw fewer than {FEW_TOKENS} tokens (the least {min(tokens)}), and what the "
        "whole layer saw had most say in their masks; calibrate on more text"
    ]


def trained_weights(parts: Anatomy, rounded: Store) -> dict[str, Callable[[], SparseWeight]]:
    """What makes each of the weights of the model in memory as it will be stored."""

    def weight(linear: nn.Linear) -> SparseWeight:
        return rounded(linear.weight.float()).cpu()

    return {name: partial(weight, linear) for name, linear in parts.linears.items()}


def pruned_blocks(ready: Prepared, journal: Journal, progress: Progress) -> tuple[list[PrunedBlock], Recovery | None]:
    """Prune the model in place, as the recipe says; the weights are in the journal then."""
    parts, config, stages = ready.parts, ready.config, ready.config.stages
    rounded = store(parts, config)
    if stages.solver == "magnitude":
        return list(calibrate.prune_without_text(parts, magnitude, progress, rounded, journal)), None
    ids = journal.tokens(lambda: calibration_tokens(ready, progress))
    states = journal.folder if ready.on_disk else None
    batches = record(parts, ids, batch_tokens=step_tokens(ids.numel()) if stages.trains else None, folder=states)
    seen = rounding(config)
    train = partial(recover_block, stored=parts.stored, passes=stages.block_passes, seed=config.seed, rounding=seen)
    recover = train if stages.trains else None
    blocks = list(calibrate.walk(parts, batches, *solver(config), progress, rounded, recover, journal, config.device))
    if not stages.trains:
        return blocks, None
    whole = None
    if stages.model_passes:
        parts.model.to(config.device)
        whole = distil(parts, ids, batches, stages.model_passes, config.seed, progress, journal, seen)
    return blocks, Recovery([pruned.recovered for pruned in blocks if pruned.recovered], whole)


def rounding(config: PruneConfig) -> Rounding | None:
    """Return what kept weights are trained through, besides the dtype of the model."""
    return as_int8 if config.values == "int8" else None


def store(parts: Anatomy, config: PruneConfig) -> Store:
    """Return what rounds a pruned weight as it will be stored."""
    if config.values == "int8":
        return lambda weight: to_int8(pack(weight))
    return calibrate.in_dtype(parts.stored)


def calibration_tokens(ready: Prepared, progress: Progress) -> Tensor:
    """Get the tokens to calibrate on, int64 [samples, length]."""
    tokenizer = corpus.load_tokenizer(ready.source)
    return sources.tokens(ready.parts.model, tokenizer, ready.config, progress, ready.decided.writer)


def window_bos(ready: Prepared) -> str | None:
    """Return the token that windows of files and data sets begin with, None where they begin with their text."""
    if ready.config.stages.solver == "magnitude":  # which needs no tokenizer
        return None
    tokenizer = corpus.load_tokenizer(ready.source)
    bos = windows.bos(tokenizer)
    return None if bos is None else str(tokenizer.convert_ids_to_tokens(bos))


def solver(config: PruneConfig) -> tuple[Solve, NewStatistic]:
    """Return the solver, and what it wants to know of the inputs."""
    solvers: dict[str, tuple[Solve, NewStatistic]] = {
        "wanda": (lambda weight, norms: wanda(weight, norms.squares), Norms),
        "sparsegpt": (partial(_sparsegpt, config), Hessian),
        "refine": (partial(_refine, config), Hessian),
    }
    return solvers[config.stages.solver]


def _sparsegpt(config: PruneConfig, weight: Tensor, hessian: Statistic) -> Tensor:
    assert isinstance(hessian, Hessian)
    pruned = sparsegpt(weight, hessian.matrix, config.damping, config.block_columns)
    return _rounded(config, pruned, hessian.matrix)


def _refine(config: PruneConfig, weight: Tensor, statistic: Statistic) -> Tensor:
    assert isinstance(statistic, Hessian)
    hessian = statistic.matrix
    start = sparsegpt(weight, hessian, config.damping, config.block_columns)
    refined = refine(weight, hessian, start, config.damping, block_columns=config.block_columns)
    return _rounded(config, refined, hessian)


def _rounded(config: PruneConfig, pruned: Tensor, hessian: Tensor) -> Tensor:
    """Round to int8 where that is asked for, while there is a Hessian to make up for it."""
    return gptq(pruned, hessian, config.damping, config.block_columns) if config.values == "int8" else pruned
