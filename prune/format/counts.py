"""How many blocks and experts a config.json may ask for: no more than there are tensors, for each is made."""

from collections.abc import Mapping
from typing import Any

from twofour.prune.errors import CheckpointError

COUNTS = ("num_hidden_layers", "num_local_experts", "num_experts")  # of what is made one by one
FEW = 1024  # so many may be made, whatever the files hold


def require_bounded(config: Mapping[str, Any], renamed: Mapping[str, str], tensors: int) -> None:
    """Raise CheckpointError for more of them than tensors (or than FEW). renamed: keys as a config class has them."""
    for key in {*COUNTS, *(renamed.get(count, count) for count in COUNTS)}:
        count = config.get(key)
        if isinstance(count, int) and count > max(tensors, FEW):
            raise CheckpointError(
                f"config.json says {key} {count}, the files hold {tensors} tensors; take an intact copy"
            )
