"""Whether a model folder is what was written, and its weights are numbers: asked before anything is served."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from twofour.prune import checkpoint
from twofour.prune.checkpoint import MANIFEST, Weights
from twofour.prune.errors import CheckpointError, NonFiniteError
from twofour.prune.folder import read_json
from twofour.serve.quantizer import sparse_linears


def require_intact(folder: Path) -> None:
    """Raise CheckpointError, naming the file, unless all weight files can be opened and have their digests.

    A dense folder from elsewhere has no manifest, and so no digests.
    """
    with Weights(folder) as weights:
        files = [path.name for path in weights.files]
    if not (folder / MANIFEST).exists():
        return
    recorded, found = read_json(folder / MANIFEST).get("sha256") or {}, checkpoint.digests(folder)
    for name in files:
        if recorded.get(name) != found[name]:
            raise CheckpointError(f"{name} differs from its digest in {MANIFEST}; take an intact copy")


def require_finite(model: nn.Module) -> None:
    """Raise NonFiniteError, naming the tensor, if a weight is NaN or infinite."""
    for name, tensor in _weights(model):
        # One such number makes the sum one, and a sum takes no memory; finite weights are far from overflowing it.
        if not torch.isfinite(tensor.sum(dtype=torch.float32)):
            raise NonFiniteError(f"{name} holds NaN or infinity; take an intact copy of the model")


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    for name, linear in sparse_linears(model):
        try:
            yield f"{name}.values", linear.packed().values
        except NonFiniteError as error:  # a kernel packs again what it keeps dense, and knows no name
            raise NonFiniteError(f"{name}.values: {error}") from error
