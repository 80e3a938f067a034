"""Is a model folder what was written, and are its weights finite? Asked before anything is served."""

from pathlib import Path

from twofour.prune.errors import CheckpointError, NonFiniteError
from twofour.prune.format import checkpoint
from twofour.prune.format.checkpoint import MANIFEST, Weights
from twofour.prune.format.folder import read_json
from twofour.prune.format.weights import is_finite


def require_intact(folder: Path) -> None:
    """Raise, naming the file or the tensor, unless all weights have their digests and are finite.

    CheckpointError: a file is missing, cannot be read, or is another one. A folder without a manifest has no digests.
    NonFiniteError: a tensor holds NaN or infinity.
    """
    with Weights(folder) as weights:
        _require_digests(folder, [path.name for path in weights.files])
        for name, tensor in weights.items():
            if not is_finite(tensor):
                raise NonFiniteError(f"{name} holds NaN or infinity; take an intact copy of the model")


def _require_digests(folder: Path, files: list[str]) -> None:
    if not (folder / MANIFEST).exists():
        return
    recorded, found = read_json(folder / MANIFEST).get("sha256") or {}, checkpoint.digests(folder)
    for name in files:
        if recorded.get(name) != found[name]:
            raise CheckpointError(f"{name} differs from its digest in {MANIFEST}; take an intact copy")
