"""What is decided before a run begins: the model is loaded, and what cannot be done with it here is refused."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from twofour.prune.config import PruneConfig
from twofour.prune.errors import InputError
from twofour.prune.format import checkpoint, folder
from twofour.prune.format.head import Head
from twofour.prune.model import head as heads
from twofour.prune.model.anatomy import Anatomy, dissect, load, refuse_config, stored_names
from twofour.prune.policy.market import merged
from twofour.prune.policy.prices import Clock, Prices, price, priced
from twofour.prune.run import footprint, mixture
from twofour.prune.run.mixture import Kept
from twofour.prune.run.request import Begun, Decided, go_on
from twofour.prune.text import corpus, sources


@dataclass(frozen=True)
class Prepared:
    """A dense model in memory, and what will be done with it on this machine."""

    source: Path
    anatomy: Anatomy
    names: dict[str, str]  # of a linear in the model -> in its folder
    config: PruneConfig
    decided: Decided
    on_disk: bool  # hidden states are
    forward_dtype: torch.dtype
    head: Head | None = None  # lm_head, to be stored in int8
    kept: Kept = field(default_factory=Kept)
    groups: list[list[str]] = field(default_factory=list)  # linears that are decided together, where it is chosen
    prices: Prices = field(default_factory=dict)  # of the linears, likewise

    @property
    def fallbacks(self) -> list[str]:
        """What is done otherwise than was asked, or than the model says, and why."""
        notes = dtype_notes(folder.read_config(self.source), self.anatomy.stored_dtype)
        return [*notes, *writer_notes(self.config, self.decided.writer), *self.decided.fallbacks, *self.kept.notes]

    @property
    def disk_bytes(self) -> int:
        """Estimate the disk that the run needs."""
        return footprint.disk_bytes(self.anatomy, self.config, self.on_disk)

    @property
    def memory_bytes(self) -> int:
        """Estimate the most memory that the run needs."""
        return footprint.memory_bytes(self.anatomy, self.config, self.on_disk)


def prepare(source: Path, config: PruneConfig, begun: Begun | None = None, clock: Clock | None = None) -> Prepared:
    """Load the model of a folder and decide what can be done with it here. begun: the run that goes on.

    clock: what times products, for a budget of seconds.

    Raises ModelError or InputError for what a run could not do, before it starts; `prune --plan` does the same.
    """
    require_device(config.device)
    refuse_config(folder.read_config(source))
    if config.stages.needs_text:
        sources.require(config)
    anatomy = dissect(load(source))
    names = stored_names(anatomy, source)
    head = heads.find(anatomy.model, source) if config.lm_head == "int8" else None
    if config.stages.needs_text:
        corpus.refuse_length(anatomy.model, config.length)
    forward = forward_dtype(anatomy, config)
    anatomy.model.to(forward)
    kept = mixture.kept(config, anatomy, names)
    decided = go_on(config, decide(anatomy, config), begun)
    config = decided.config(config)
    on_disk = footprint.states_on_disk(anatomy, config)
    ready = Prepared(source, anatomy, names, config, decided, on_disk, forward, head, kept)
    if not config.chooses:
        return ready
    groups = merged(mixture.shared_inputs(anatomy))
    return replace(ready, groups=groups, prices=linear_prices(anatomy, config, clock))


def linear_prices(anatomy: Anatomy, config: PruneConfig, clock: Clock | None) -> Prices:
    """Return what the linears cost in each scheme, by what is asked for."""
    shapes = {(linear.out_features, linear.in_features) for linear in anatomy.linears.values()}
    return priced(shapes, price(config.budget_for, anatomy.stored_dtype, config.card, clock))


def decide(anatomy: Anatomy, config: PruneConfig) -> Decided:
    """Decide what the memory that is free now allows."""
    affordable, fallbacks = footprint.affordable(anatomy, config)
    return Decided(affordable.train, footprint.writer(anatomy, config), fallbacks)


def writer_notes(config: PruneConfig, writer: str) -> list[str]:
    """Say so where the text is not written on the device that was asked for."""
    if writer == config.device or not sources.written(config):
        return []
    return [f"text sampled on the {writer.upper()}: the whole model, which writes it, had no room on {config.device}"]


def dtype_notes(config: Mapping[str, Any], stored: torch.dtype) -> list[str]:
    """Say so where config.json names another dtype than that of the stored linears, which counts."""
    named = checkpoint.named_dtype(config)
    if named in (None, stored):
        return []
    says, holds = checkpoint.dtype_name(named), checkpoint.dtype_name(stored)
    return [f"config.json of the base model says {says}, its linears are stored as {holds}: they stay what they are"]


def require_device(device: str) -> None:
    """Raise InputError unless torch has this device and twofour can work on it."""
    if device == "cpu":
        return
    found = re.fullmatch(r"cuda(:\d+)?", device)
    if not found:
        raise InputError(f"device is {device!r}; give cpu, cuda or cuda:N")
    if int((found[1] or ":0")[1:]) >= torch.cuda.device_count():
        raise InputError(f"device is {device!r}, and this torch sees no such GPU; give cpu, or install torch for CUDA")


def forward_dtype(anatomy: Anatomy, config: PruneConfig) -> torch.dtype:
    """Return the dtype of forwards: as asked, else that of the model, or float32 where a CPU is slow in that."""
    if config.dtype != "auto":
        dtype: torch.dtype = getattr(torch, config.dtype)
        return dtype
    quick = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    slow = config.device == "cpu" and anatomy.stored_dtype in quick and not quick[anatomy.stored_dtype]()
    return torch.float32 if slow else anatomy.stored_dtype
