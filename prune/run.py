"""The story of a pruning run."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twofour.prune import anatomy, calibrate, checkpoint, folder, footprint, heap, label, recipe, sources, text
from twofour.prune.anatomy import Anatomy
from twofour.prune.attention import quick_attention
from twofour.prune.batches import record
from twofour.prune.calibrate import NewStatistic, PrunedBlock, Solve, Store
from twofour.prune.checkpoint import SparseWeight
from twofour.prune.errors import InputError
from twofour.prune.journal import Journal, OnDemand, request
from twofour.prune.origin import origin
from twofour.prune.packed import pack
from twofour.prune.progress import Progress, silent
from twofour.prune.recipe import PruneConfig, PrunedLinear
from twofour.prune.recover import Recovery, distil, recover_block, step_tokens
from twofour.prune.rounding import to_int8
from twofour.prune.solvers.magnitude import magnitude
from twofour.prune.solvers.refine import refine
from twofour.prune.solvers.sparsegpt import sparsegpt
from twofour.prune.solvers.wanda import wanda
from twofour.prune.statistics import Hessian, Norms, Statistic


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
        return (
            f"{self.folder}: {len(linears)} linears are 2:4 ({how}), left dense: {kept}\n"
            f"relative loss: mean {sum(losses.values()) / len(losses):.4f}, "
            f"largest {losses[worst]:.4f} at {worst}\n"
            f"{self.manifest['minutes']:.1f} minutes, "
            f"peak memory {self.manifest['peak_memory_bytes'] / 2**30:.2f} GiB"
        )


def prune(model: str | Path, out: str | Path, config: PruneConfig | None = None, progress: Progress = silent) -> Report:
    """Make a dense model, a folder or a hub id, strictly 2:4 and write it to the new folder `out`.

    A run that was cut off goes on where it was when it is asked for again: see `journal`.
    """
    started = time.perf_counter()
    config = config or PruneConfig()
    folder.refuse_existing(Path(out))
    source = folder.resolve(str(model), config.revision)
    anatomy.refuse_config(folder.read_config(source))
    base, asked = origin(str(model), source), request(source, config)
    with Journal(Path(out), asked) as journal, folder.new_folder(Path(out), inside=journal.folder) as part:
        pruned = pruned_model(source, part, config, journal, progress)
        if request(source, config) != asked:
            raise InputError(f"{source} changed while it was pruned; run again on a model that stays as it is")
        checkpoint.write_model(part, source, pruned.weights, config.format)
        manifest = recipe.manifest(
            model=str(model),
            config=config,
            origin=base,
            linears=pruned.linears,
            dense=pruned.dense,
            stored_dtype=checkpoint.dtype_name(pruned.stored),
            forward_dtype=checkpoint.dtype_name(pruned.forward),
            threads=torch.get_num_threads(),
            seconds=journal.spent_s + time.perf_counter() - started,
            recovery=None if pruned.recovery is None else pruned.recovery.as_dict(),
            fallbacks=pruned.fallbacks,
        )
        label.write(part, manifest, Path(out).name)
    return Report(Path(out), manifest)


def pruned_model(source: Path, out: Path, config: PruneConfig, journal: Journal, progress: Progress) -> Pruned:
    """Load the model, prune it, and let go of it where it is not needed for the weights: writing has the memory."""
    parts = anatomy.dissect(anatomy.load(source))
    names = anatomy.stored_names(parts, source)
    forward = forward_dtype(parts, config)
    parts.model.to(forward)
    config, fallbacks = footprint.affordable(parts, config)
    folder.require_space(out, footprint.disk_bytes(parts, config))
    with heap.reused(), quick_attention(parts.model):
        blocks, recovery = pruned_blocks(parts, source, config, journal, progress)
    # the journal's are those before the whole model was trained
    weights = trained_weights(parts, store(parts, config)) if config.stages.model_passes else journal.weights()
    return Pruned(
        weights=OnDemand({names[name]: make for name, make in weights.items()}),
        linears={names[name]: linear for block in blocks for name, linear in block.linears.items()},
        dense={names[name]: why for name, why in parts.dense.items()},
        stored=parts.stored,
        forward=forward,
        recovery=recovery,
        fallbacks=fallbacks,
    )


def trained_weights(parts: Anatomy, rounded: Store) -> dict[str, Callable[[], SparseWeight]]:
    """What makes each of the weights of the model in memory as it will be stored."""

    def weight(linear: nn.Linear) -> SparseWeight:
        return rounded(linear.weight.float()).cpu()

    return {name: partial(weight, linear) for name, linear in parts.linears.items()}


def pruned_blocks(
    parts: Anatomy, source: Path, config: PruneConfig, journal: Journal, progress: Progress
) -> tuple[list[PrunedBlock], Recovery | None]:
    """Prune the model in place, as the recipe says; the weights are in the journal then."""
    rounded = store(parts, config)
    if config.stages.solver == "magnitude":
        return list(calibrate.prune_without_text(parts, magnitude, progress, rounded, journal)), None
    ids = journal.tokens(lambda: calibration_tokens(parts, source, config, progress))
    stages = config.stages
    states = journal.folder if footprint.states_on_disk(parts, config) else None
    batches = record(parts, ids, batch_tokens=step_tokens(ids.numel()) if stages.trains else None, folder=states)
    walk = partial(calibrate.walk, parts, batches, *solver(config), progress=progress, store=rounded)
    walk = partial(walk, keep=journal, device=config.device)
    if not stages.trains:
        return list(walk()), None
    recover = partial(recover_block, stored=parts.stored, passes=stages.block_passes, seed=config.seed)
    blocks, whole = list(walk(recover=recover)), None
    if stages.model_passes:
        parts.model.to(config.device)
        whole = distil(parts, ids, batches, stages.model_passes, config.seed, progress, journal)
    return blocks, Recovery([pruned.recovered for pruned in blocks if pruned.recovered], whole)


def store(parts: Anatomy, config: PruneConfig) -> Store:
    """Return what rounds a pruned weight as it will be stored."""
    if config.values == "int8":
        return lambda weight: to_int8(pack(weight))
    return calibrate.in_dtype(parts.stored)


def calibration_tokens(parts: Anatomy, source: Path, config: PruneConfig, progress: Progress) -> Tensor:
    """Get the tokens to calibrate on, int64 [samples, length]."""
    from transformers import AutoTokenizer

    text.refuse_length(parts.model, config.length)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    return sources.tokens(parts.model, tokenizer, config, progress)


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
    return sparsegpt(weight, hessian.matrix, config.damping, config.block_columns)


def _refine(config: PruneConfig, weight: Tensor, statistic: Statistic) -> Tensor:
    assert isinstance(statistic, Hessian)
    hessian = statistic.matrix
    start = sparsegpt(weight, hessian, config.damping, config.block_columns)
    return refine(weight, hessian, start, config.damping, block_columns=config.block_columns)


def forward_dtype(parts: Anatomy, config: PruneConfig) -> torch.dtype:
    """Return what forwards run in: as asked, or the model's dtype, or float32 where that is slow on a CPU."""
    if config.dtype != "auto":
        dtype: torch.dtype = getattr(torch, config.dtype)
        return dtype
    quick = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    slow = config.device == "cpu" and parts.stored in quick and not quick[parts.stored]()
    return torch.float32 if slow else parts.stored
