"""lm_head in int8, as a packed folder holds it: `lm_head.int8_values` and `lm_head.int8_scales`, its bias as ever.

The names are its own, and such a folder has a format version of its own, so that a reader who does not know it refuses
the folder, or at least finds no weight: `values` and `scales` are those of 2:4 weights, and a `weight` would be cast.
Where lm_head is tied to the embeddings, these stay, config.json says that they are tied as before, and lm_head is
stored beside them.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from torch import Tensor

from twofour.prune.errors import CheckpointError
from twofour.prune.format import dense_int8
from twofour.prune.format.dense_int8 import PARTS, SCALES, VALUES, DenseInt8, to_dense_int8
from twofour.prune.format.weights import Weights

NAMES = ("lm_head", "embed_out")  # in transformers, and as GPT-NeoX stores it


@dataclass(frozen=True)
class Head:
    """lm_head of a dense folder.

    name: that it is stored under, or would be. source: the tensor that holds its weight; of the embeddings, if tied.
    """

    name: str
    source: str
    shape: tuple[int, int]

    @property
    def tied(self) -> bool:
        return self.source != f"{self.name}.weight"

    def rounded(self, weights: Weights) -> Iterator[tuple[str, Tensor]]:
        """The tensors of this head in int8, made of those of the dense folder."""
        packed = to_dense_int8(weights[self.source], self.source)
        yield f"{self.name}.{VALUES}", packed.values
        yield f"{self.name}.{SCALES}", packed.scales


def stored_name(weights: Collection[str]) -> str | None:
    """The name under which a folder holds lm_head in int8; None if it holds no part of one."""
    return next((name for name in NAMES if any(f"{name}.{part}" in weights for part in PARTS)), None)


def read(weights: Weights) -> tuple[str, DenseInt8]:
    """Return lm_head in int8 and the name it has. Raises CheckpointError where it is not whole, or not alone."""
    name = stored_name(weights) or NAMES[0]
    if other := [f"{each}.weight" for each in NAMES if f"{each}.weight" in weights]:
        raise CheckpointError(f"{name} is stored twice, in int8 and as {other[0]}; take an intact copy of the model")
    return name, dense_int8.read(weights, name)
