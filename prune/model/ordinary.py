"""A dense folder that is not an ordinary one, multimodal or in FP8, written as one that is.

It is what a pruned model is compared with, for tools that take only ordinary folders.
"""

from pathlib import Path

import torch

from twofour.prune.errors import ModelError
from twofour.prune.format import checkpoint, fp8, tower
from twofour.prune.format.checkpoint import MANIFEST
from twofour.prune.format.dense import Dense
from twofour.prune.format.folder import new_folder, read_config, write_json
from twofour.prune.model.loading import from_tensors


def is_out_of_the_ordinary(folder: Path) -> bool:
    """Whether a dense folder, which nobody has pruned, has a text tower to be taken, or weights to be read back."""
    config = read_config(folder)
    try:
        method = fp8.method_of(config)
    except ModelError:  # quantised in another way, perhaps 2:4
        return False
    return not (folder / MANIFEST).exists() and (method is not None or tower.kind_of(config) is not None)


def write(folder: Path, out: Path) -> list[str]:
    """Write the new folder `out`, tensor by tensor. Returns what is otherwise in it than in the given one."""
    with new_folder(out) as part, Dense(folder) as tensors:
        _require_whole(tensors, folder)
        checkpoint.write_weights(part, tensors.items(), "dense")
        write_json(part / "config.json", tensors.config)
        checkpoint.copy_rest(folder, part, is_tower=tensors.tower is not None)
    return tensors.notes


def _require_whole(tensors: Dense, folder: Path) -> None:
    """Raise CheckpointError where a tensor is missing, misshapen or unknown. Stand-ins are loaded, of no size."""
    stand_ins = {name: torch.zeros(()).expand(tensors.shape(name)) for name in tensors}
    _, report = from_tensors(tensors.config, stand_ins, dtype=torch.float32, ignore_mismatched_sizes=True)
    checkpoint.require_loaded(report, folder)
