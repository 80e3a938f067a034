"""A pruned model written as a folder with its label, and the report of that."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from twofour.prune.config import PruneConfig
from twofour.prune.format import checkpoint
from twofour.prune.format.head import Head
from twofour.prune.label import publish
from twofour.prune.label.card import head_kind, trained
from twofour.prune.label.manifest import Result, Text, manifest
from twofour.prune.label.mixture import is_mixed, left_dense, met, mixed_shares
from twofour.prune.run.journal import OnDemand


@dataclass(frozen=True)
class Pruned:
    """A model that was pruned: its new weights, by the names they are stored under, and what the label says of it."""

    weights: OnDemand
    result: Result


@dataclass(frozen=True)
class About:
    """What was pruned, for the label. model: as it was given; origin: where its folder `source` comes from."""

    model: str
    source: Path
    origin: Mapping[str, Any]
    config: PruneConfig
    text: Text
    head: Head | None


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
        kept = left_dense(self.manifest) or "none"
        recovery = self.manifest["recovery"]
        when = " before kept weights were trained" if recovery else ""
        lines = [
            f"{self.folder}: {len(linears)} linears are 2:4 ({how}), left dense: {kept}",
            f"relative loss{when}: mean {sum(losses.values()) / len(losses):.4f}, "
            f"largest {losses[worst]:.4f} at {worst}",
            *([f"decoder blocks: {mixed_shares(self.manifest)}"] if is_mixed(self.manifest) else []),
            *([met(self.manifest["policy"])] if self.manifest.get("policy") else []),
            *([trained(self.manifest)] if recovery and recovery["model"] else []),
            *([f"lm_head: {head_kind(self.manifest['lm_head'])}"] if self.manifest["lm_head"] else []),
            *self.manifest["fallbacks"],
            f"{self.manifest['minutes']:.1f} minutes, peak memory {self.manifest['peak_memory_bytes'] / 2**30:.2f} GiB",
            f"what it lost: twofour eval {shlex.quote(str(self.folder))} --baseline DENSE --label",
        ]
        return "\n".join(lines)


def write(part: Path, out: Path, about: About, pruned: Pruned, seconds: float) -> Report:
    """Write a model and its label into the folder `part`, which will be `out`."""
    config = about.config
    checkpoint.write_model(part, about.source, pruned.weights, config.format, about.head)
    threads = torch.get_num_threads()
    label = manifest(about.model, about.origin, config, about.text, pruned.result, threads, seconds)
    publish.write(part, label, out.name)
    return Report(out, label)
