"""A dense model's folder, read as an ordinary causal language model has its config.json and its tensors.

For most folders these are what is in the files. Of a multimodal model they are those of its text tower (`tower`), of a
model in FP8 its weights in bfloat16 (`fp8`), made when they are read, one at a time. What is left out or otherwise than
in the files is in `notes`, for the label.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from twofour.prune.errors import CheckpointError
from twofour.prune.format import fp8, tower
from twofour.prune.format.folder import read_config
from twofour.prune.format.fp8 import Block
from twofour.prune.format.tower import Kind, Tower
from twofour.prune.format.weights import Weights


class Dense(Weights):
    """The tensors of a dense folder by the names that an ordinary causal language model has them under.

    config: what config.json of such a model says. tower: what was taken of a model that is more than its text tower.
    notes: what is otherwise than in the files. is_ordinary: nothing is. Raises ModelError for what cannot be read so.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        if self.form != "dense":
            raise CheckpointError(f"{folder} holds packed weights; give the dense model")
        stated = read_config(folder)
        kind, method = tower.kind_of(stated), fp8.method_of(stated)
        self.is_ordinary = kind is None and method is None
        self._stored_as, left = self._sorted_out(kind)
        self._scales = {} if method is None else self._scaled(stated, method)
        self.config = stated if self.is_ordinary else self._plain(stated, kind, method)
        self.tower = Tower.of(stated, self.config, left) if kind else None
        self.notes = [str(self.tower)] if self.tower else []
        if method:
            self.notes.append(fp8.note(method, [block for _, block in self._scales.values()], fp8.blocks_of(stated)))

    def _sorted_out(self, kind: Kind | None) -> tuple[dict[str, str], dict[str, int]]:
        """Return under what name each tensor is stored, and the bytes of the parts that are left behind."""
        if kind is None:
            return {name: name for name in super().__iter__()}, {}
        stored_as: dict[str, str] = {}
        left: Counter[str] = Counter()
        for stored in super().__iter__():
            name = kind.renamed(stored)
            if name is None:
                left[stored.removeprefix("model.").partition(".")[0]] += super().__getitem__(stored).nbytes
            elif name in stored_as:
                raise CheckpointError(f"{stored_as[name]} and {stored} are one tensor; take all files of one model")
            else:
                stored_as[name] = stored
        return stored_as, dict(left)

    def _scaled(self, config: Mapping[str, Any], method: str) -> dict[str, tuple[str, Block]]:
        """Take the scales away from the other tensors. Returns of each weight in FP8 its scales' tensor and block."""
        part, stored_as = fp8.SCALES[method], self._stored_as
        scales = {name: stored for name, stored in stored_as.items() if name.endswith(f".{part}")}
        kept = {
            name: stored
            for name, stored in stored_as.items()
            if name not in scales and name.rpartition(".")[2] not in fp8.ACTIVATIONS
        }
        fp8.require_pairs({name: super(Dense, self).dtype(stored) for name, stored in kept.items()}, scales, part)
        self._stored_as, known = kept, fp8.blocks_of(config)
        found: dict[str, tuple[str, Block]] = {}
        for scale, stored in scales.items():
            name = f"{scale.removesuffix(part)}weight"
            found[name] = stored, fp8.block_of(self.shape(name), super().shape(stored), known, name)
        return found

    def _plain(self, stated: Mapping[str, Any], kind: Kind | None, method: str | None) -> dict[str, Any]:
        config = stated if method is None else _dequantised(stated)
        if kind is None:
            return dict(config)
        return tower.text_config(config, kind, len(self), "lm_head.weight" in self)

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the tensor back
        return name in self._stored_as

    def __getitem__(self, name: str) -> Tensor:
        tensor = super().__getitem__(self._stored_as[name])
        if name not in self._scales:
            return tensor
        stored, block = self._scales[name]
        return fp8.dequantised(tensor, super().__getitem__(stored), block, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored_as)

    def __len__(self) -> int:
        return len(self._stored_as)

    def shape(self, name: str) -> tuple[int, ...]:
        return super().shape(self._stored_as[name])

    def dtype(self, name: str) -> str:
        return fp8.READ_AS if name in self._scales else super().dtype(self._stored_as[name])


def _dequantised(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same config, of a model that is not quantised; some have it in that of their text model."""
    rest = {key: value for key, value in config.items() if key not in ("quantization_config", "torch_dtype")}
    if isinstance(text := rest.get("text_config"), Mapping):
        rest["text_config"] = _dequantised(text)
    return rest | {"dtype": "bfloat16"}
