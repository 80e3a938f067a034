"""What an unfinished run has done so far, on disk beside its output: the same command, given again, goes on from there.

The folder `.OUT.unfinished` holds the request, the tokens of the calibration text, every pruned block as it will be
stored, the hidden states behind the last one, and where the training of the whole model is. Every file appears whole or
not at all, the states before their block, so a process may be killed at any moment. What follows is computed from the
same bits as in a run that was never interrupted, on the same number of threads, so the result is the same to the bit.
The folder goes when the run is finished, or fails in a way that another attempt would not change.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from twofour.prune.batches import Batch
from twofour.prune.calibrate import PrunedBlock
from twofour.prune.checkpoint import SparseWeight
from twofour.prune.errors import CheckpointError, InputError, OutputError, TwofourError
from twofour.prune.folder import read_json, write_whole
from twofour.prune.kept import Outcome, Training
from twofour.prune.packed import Packed
from twofour.prune.recipe import PruneConfig, PrunedLinear, versions

REQUEST = "request.json"
TOKENS = "tokens.safetensors"
TRAINING = "training.safetensors"


def request(source: Path, config: PruneConfig) -> dict[str, Any]:
    """Return all that the bits of a result depend on; a file of the model counts by its size and time."""
    files = sorted(path for path in source.iterdir() if path.suffix == ".safetensors" or path.name == "config.json")
    stamps = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
    return {
        "model": stamps,
        "config": asdict(config),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


class Journal:
    """The unfinished run that will become `out`. Nothing is written before there is something to keep.

    Raises InputError where an unfinished run was asked for something else.
    """

    def __init__(self, out: Path, request: Mapping[str, Any]) -> None:
        self._folder = out.parent / f".{out.name}.unfinished"
        self._request = dict(request)
        self.spent_s = 0.0  # by the processes before this one
        if (self._folder / REQUEST).exists():
            self._require_same(read_json(self._folder / REQUEST))

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Forget the run where it is finished or would fail again in the same way; a full disk can be helped."""
        hopeless = isinstance(error, TwofourError) and not isinstance(error, OutputError)
        if error is None or hopeless:
            shutil.rmtree(self._folder, ignore_errors=True)

    def tokens(self, make: Callable[[], Tensor]) -> Tensor:  # int64 [samples, length]
        """Return the tokens of the run, made now if there are none."""
        if not (self._folder / TOKENS).exists():
            self._write(TOKENS, {"tokens": make()}, {})
        return _read(self._folder / TOKENS)[0]["tokens"]

    def save(self, index: int, pruned: PrunedBlock, batches: list[Batch], seconds: float) -> None:
        """Keep a pruned block and the states behind it. `seconds`: what this process has taken so far."""
        self._write(_states(index), _states_of(batches), {})
        self._write(_block(index), _tensors(pruned), {"about": json.dumps(_about(pruned, self.spent_s + seconds))})
        (self._folder / _states(index - 1)).unlink(missing_ok=True)

    def restore(self, batches: list[Batch]) -> list[PrunedBlock]:
        """Return the blocks that are done, and set the states of the batches to those behind the last one."""
        done: list[PrunedBlock] = []
        while (path := self._folder / _block(len(done))).exists():
            tensors, metadata = _read(path)
            about = json.loads(metadata["about"])
            self.spent_s = about["spent_s"]
            done.append(_pruned(tensors, about))
        if done:
            states, _ = _read(self._folder / _states(len(done) - 1))
            for number, batch in enumerate(batches):
                batch.hidden = states[f"hidden.{number}"].to(batch.hidden.device)
                dense = states.get(f"dense.{number}")
                batch.dense = None if dense is None else dense.to(batch.hidden.device)
        return done

    def save_training(self, training: Training, seconds: float) -> None:
        """Keep where the training of the whole model is. `seconds`: what this process has trained so far."""
        state = training.state or {}
        tensors = state | {f"best.{n}": values for n, values in enumerate(training.values)}
        about = {"done": training.done, "before": training.before, "best": training.best, "stale": training.stale}
        self._write(TRAINING, tensors, {"about": json.dumps(about | {"spent_s": self.spent_s + seconds})})

    def restore_training(self) -> Training | None:
        """Return where the training of the whole model was."""
        if not (self._folder / TRAINING).exists():
            return None
        tensors, metadata = _read(self._folder / TRAINING)
        about = json.loads(metadata["about"])
        self.spent_s = about.pop("spent_s")
        values = [tensors.pop(f"best.{n}") for n in range(sum(name.startswith("best.") for name in tensors))]
        return Training(values=values, state=tensors, **about)

    def _require_same(self, kept: Mapping[str, Any]) -> None:
        asked = json.loads(json.dumps(self._request))
        if other := [key for key in asked if kept.get(key) != asked[key]]:
            raise InputError(
                f"{self._folder} holds an unfinished run with another {other[0]}; "
                "give its command again to go on, or remove that folder to start anew"
            )

    def _write(self, name: str, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
        try:
            self._folder.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self._folder} cannot be made ({error.strerror}); choose another place") from error
        if not (self._folder / REQUEST).exists():
            write_whole(self._folder / REQUEST, json.dumps(self._request, indent=2) + "\n")
        temporary = self._folder / f"{name}.part"
        save_file({key: tensor.cpu().contiguous() for key, tensor in tensors.items()}, temporary, metadata)
        temporary.replace(self._folder / name)


def _block(index: int) -> str:
    return f"block-{index}.safetensors"


def _states(index: int) -> str:
    return f"states-{index}.safetensors"


def _states_of(batches: list[Batch]) -> dict[str, Tensor]:
    hidden = {f"hidden.{number}": batch.hidden for number, batch in enumerate(batches)}
    return hidden | {f"dense.{number}": b.dense for number, b in enumerate(batches) if b.dense is not None}


def _tensors(pruned: PrunedBlock) -> dict[str, Tensor]:
    parts = {name: w.tensors() if isinstance(w, Packed) else {"weight": w} for name, w in pruned.weights.items()}
    return {f"{name}.{part}": tensor for name, each in parts.items() for part, tensor in each.items()}


def _about(pruned: PrunedBlock, spent_s: float) -> dict[str, Any]:
    columns = {name: w.scale_columns if isinstance(w, Packed) else None for name, w in pruned.weights.items()}
    return {
        "spent_s": spent_s,
        "linears": {name: asdict(linear) for name, linear in pruned.linears.items()},
        "recovered": None if pruned.recovered is None else asdict(pruned.recovered),
        "scale_columns": columns,  # None: not packed
    }


def _pruned(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> PrunedBlock:
    weights = {name: _weight(tensors, name, columns) for name, columns in about["scale_columns"].items()}
    linears = {
        name: PrunedLinear(tuple(linear["shape"]), linear["loss"], linear["tokens"])
        for name, linear in about["linears"].items()
    }
    return PrunedBlock(weights, linears, Outcome(**about["recovered"]) if about["recovered"] else None)


def _weight(tensors: Mapping[str, Tensor], name: str, scale_columns: int | None) -> SparseWeight:
    if scale_columns is None:
        return tensors[f"{name}.weight"]
    values, positions = tensors[f"{name}.values"], tensors[f"{name}.positions"]
    return Packed(values, positions, tensors.get(f"{name}.scales"), scale_columns)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not intact ({error}); remove its folder to start anew") from error
