"""The story of a pruning run."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twofour.prune import anatomy, checkpoint, recipe
from twofour.prune.progress import Progress, silent
from twofour.prune.recipe import PruneConfig


@dataclass(frozen=True)
class Report:
    """Where the pruned model is, and its manifest."""

    folder: Path
    manifest: dict[str, Any]

    def __str__(self) -> str:
        linears = self.manifest["linears"]
        losses = [linear["loss"] for linear in linears.values()]
        worst = max(linears, key=lambda name: float(linears[name]["loss"]))
        return (
            f"{self.folder}: {len(linears)} linears are 2:4 ({self.manifest['method']}), "
            f"{len(self.manifest['dense'])} left dense\n"
            f"relative loss: mean {sum(losses) / len(losses):.4f}, largest {max(losses):.4f} ({worst})\n"
            f"{self.manifest['minutes']:.1f} minutes, peak memory {self.manifest['peak_memory_bytes'] / 2**30:.2f} GiB"
        )


def prune(
    model: str | Path, out: str | Path, config: PruneConfig | None = None, progress: Progress = silent
) -> Report:
    """Prune a dense model, a folder or a hub id, to 2:4 and write it to the new folder `out`."""
    started = time.perf_counter()
    config = config or PruneConfig()
    with checkpoint.new_folder(Path(out)) as folder:
        source = checkpoint.resolve(str(model), config.revision)
        anatomy.refuse_config(checkpoint.read_config(source))
        parts = anatomy.dissect(anatomy.load(source, config.device))
        require_space(folder, parts, config)
        blocks = pruned_blocks(parts, source, config, progress)
        weights = {name: weight.cpu() for block in blocks for name, weight in block.weights.items()}
        checkpoint.write_model(folder, source, weights, config.format)
        manifest = recipe.manifest(...)
        checkpoint.write_manifest(folder, manifest)
    return Report(Path(out), manifest)
