"""What a run will take, before it starts: its steps are timed on a little text, by the code that will run.

Time is linear in the text, except that of the solvers, which does not depend on it. Every block counts as the largest
one. Sampling is timed at its first tokens, when attention has little to look back at: an estimate from below. Reading
files and data sets is not counted. Memory and disk: see `footprint`.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twofour.prune.config import PruneConfig
from twofour.prune.format import folder
from twofour.prune.machine import heap
from twofour.prune.machine.precision import full_precision
from twofour.prune.model import batches
from twofour.prune.model.anatomy import Anatomy
from twofour.prune.model.attention import quick_attention
from twofour.prune.model.batches import Batch
from twofour.prune.policy.market import LADDER
from twofour.prune.policy.prices import Clock
from twofour.prune.recovery.blocks import BLOCK_RATE, block_loss
from twofour.prune.recovery.kept import KeptWeights
from twofour.prune.recovery.training import HELD_OUT, learn, step_tokens
from twofour.prune.run import calibrate, choose, footprint, solvers
from twofour.prune.run.footprint import numbers
from twofour.prune.run.prepare import prepare
from twofour.prune.run.shortage import shortage_named
from twofour.prune.solving.magnitude import magnitude
from twofour.prune.text import corpus, sources

TRIAL_TOKENS = 1024  # of text, for what is linear in it
DECODED = 5  # tokens of each text, the start token included


@dataclass(frozen=True)
class Paces:
    """Seconds that the steps of a run take here."""

    write: float = 0.0  # all text that the model writes
    collect: float = 0.0  # a token through one block, counted
    forward: float = 0.0  # a token through one block
    solve: float = 0.0  # one block
    train: float = 0.0  # a token through one block, forward, back, and its share of a step of the optimiser
    distil: float = 0.0  # the same through the model
    judge: float = 0.0  # a token through the model, and the divergence


@dataclass(frozen=True)
class Plan:
    """What a run will take."""

    sampling_s: float
    pruning_s: float
    recovery_s: float
    peak_memory_bytes: int
    disk_bytes: int
    fallbacks: list[str]  # what will be done otherwise than asked, and why
    choosing_s: float = 0.0  # which linears become 2:4

    def __str__(self) -> str:
        stages = {"sampling": self.sampling_s, "pruning": self.pruning_s}
        stages |= {"choosing": self.choosing_s} if self.choosing_s else {}
        stages["recovery"] = self.recovery_s
        each = ", ".join(f"{name} {seconds / 60:.1f}" for name, seconds in stages.items())
        lines = [
            f"about {sum(stages.values()) / 60:.1f} minutes ({each})",
            f"about {self.peak_memory_bytes / 2**30:.1f} GiB of memory, {self.disk_bytes / 1e9:.2f} GB on disk",
        ]
        return "\n".join(lines + self.fallbacks)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def plan(model: str | Path, config: PruneConfig | None = None, clock: Clock | None = None) -> Plan:
    """Time the steps of a run on a model, a folder or a hub id, and say what the whole would take. Writes nothing.

    clock: as for `prune`.
    """
    config = config or PruneConfig()
    source = folder.resolve(str(model), config.revision)
    with shortage_named():
        ready = prepare(source, config, clock=clock)
        choose.refuse_impossible(ready)
        with heap.reused(), quick_attention(ready.anatomy.model), full_precision():
            paces = measure(ready.anatomy, ready.source, ready.config, ready.decided.writer)
    sampling_s, pruning_s, recovery_s = estimate(paces, len(ready.anatomy.blocks), ready.config)
    choosing_s = choosing(paces, ready.config)
    recovery_s *= max(1, len(ready.config.frontier))
    disk_bytes = ready.disk_bytes + footprint.more_results_bytes(ready.anatomy, ready.config)
    return Plan(sampling_s, pruning_s, recovery_s, ready.memory_bytes, disk_bytes, ready.fallbacks, choosing_s)


def estimate(paces: Paces, blocks: int, config: PruneConfig) -> tuple[float, float, float]:
    """Add up the steps of a run: the seconds of sampling, pruning and recovery."""
    stages, tokens = config.stages, config.text_tokens
    forwards = (2 if stages.trains else 1) * paces.forward  # the pruned block, and the dense one on dense states
    block_s = paces.solve + (tokens * (paces.collect + forwards) if stages.needs_text else 0.0)
    passes_s = blocks * stages.block_passes * (paces.train * (1 - 1 / HELD_OUT) + paces.forward / HELD_OUT)
    return paces.write, blocks * block_s, tokens * (passes_s + stages.model_passes * paces.distil)


def choosing(paces: Paces, config: PruneConfig) -> float:
    """Add up the seconds of the choice: the losses of linears, some mixtures, and each that is written."""
    tokens, written = config.judged_samples * config.length, max(1, len(config.frontier))
    passes = 2 + len(LADDER) + written  # the dense model, and it in int8, beside the mixtures
    return tokens * (paces.distil + passes * paces.judge)


def measure(anatomy: Anatomy, source: Path, config: PruneConfig, writer: str = "cpu") -> Paces:
    """Time the steps that the config asks for, on the largest block of the model, which is pruned in place."""
    index, block = max(enumerate(anatomy.blocks), key=lambda each: numbers(each[1].linears.values()))
    to_stored = solvers.to_stored(config, anatomy.stored_dtype)
    if not config.stages.needs_text:
        only = replace(anatomy, blocks=[block])
        return Paces(solve=_seconds(lambda: list(calibrate.prune_without_text(only, magnitude, to_stored=to_stored))))
    ids = _trial_text(anatomy, config)
    tokens = ids.numel()
    write_s = _write_s(anatomy, source, config, writer)
    with torch.no_grad():
        some = batches.record(anatomy, ids, None, step_tokens(tokens))  # with the whole model in one place
        block.module.to(config.device)
        solve, new_statistic = solvers.solver(config)
        observer = calibrate.collect(block, index, some, new_statistic)  # warms up, too
        collect_s = _seconds(lambda: calibrate.collect(block, index, some, new_statistic))
        forward_s = _seconds(lambda: batches.follow_dense(block, index, some))
        solve_s = _seconds(lambda: calibrate.prune_block(block, observer, solve, to_stored))
        paces = Paces(write_s, collect_s / tokens, forward_s / tokens, solve_s)
        if not (config.stages.trains or config.chooses):
            return paces
        return replace(paces, **_training(anatomy, index, some, config, paces.forward))


def _training(
    anatomy: Anatomy, index: int, some: list[Batch], config: PruneConfig, forward_s: float
) -> dict[str, float]:
    block, tokens = anatomy.blocks[index], some[0].hidden[..., 0].numel()
    kept = KeptWeights(block.linears.values(), anatomy.stored_dtype, BLOCK_RATE, solvers.rounding(config))
    loss = block_loss(block, index, some)
    step = partial(learn, kept, loss, 0, 1.0)
    step()  # warms up: the optimiser makes its moments
    train_s = _seconds(step) / tokens
    head: nn.Module = anatomy.model.get_output_embeddings().to(config.device)  # type: ignore[operator]
    hidden = some[0].hidden.to(config.device)
    head_s = _seconds(lambda: head(hidden)) / tokens
    # the head forward for both models, back for one, and the divergence, which is of its size
    blocks = len(anatomy.blocks)
    return {"train": train_s, "distil": blocks * train_s + 4 * head_s, "judge": blocks * forward_s + 3 * head_s}


def _trial_text(anatomy: Anatomy, config: PruneConfig) -> Tensor:  # int64 [samples, length]
    """Some tokens, whatever they mean: two samples or more."""
    length = min(config.length, TRIAL_TOKENS // 2)
    vocabulary: int = anatomy.model.config.vocab_size  # type: ignore[union-attr, assignment]
    return (torch.arange(TRIAL_TOKENS // length * length) % vocabulary).view(-1, length)


def _write_s(anatomy: Anatomy, source: Path, config: PruneConfig, writer: str) -> float:
    """Time a few tokens of a whole batch of each source that the model writes."""
    written = sources.written(config.drawn)
    if not written:
        return 0.0
    tokenizer = corpus.load_tokenizer(source)
    model, write_s = anatomy.model.to(writer), 0.0
    for texts, tokens in written:
        size, few = corpus.batch_samples(model, tokens), min(tokens, DECODED)
        trial = partial(corpus.self_sampled, model, tokenizer, min(texts, size), few, config.seed)
        write_s += _seconds(trial) / (few - 1) * (tokens - 1) * -(-texts // size)
    model.cpu()
    return write_s


def _seconds(work: Callable[[], object]) -> float:
    _wait()
    started = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - started


def _wait() -> None:
    """Wait for what a GPU still has to do."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
