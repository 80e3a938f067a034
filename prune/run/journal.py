"""What an unfinished run has done so far, on disk beside its output: the same command, given again, goes on from there.

The folder `.OUT.unfinished` holds the request, the tokens of the calibration text, every pruned block as it will be
solved, the hidden states behind the last one, what the choice of schemes was measured by, which linear gets which, and
how far the training of the whole model is. Pruned weights are nowhere else: the result is written from them, unless
the whole model was trained.

A process may be killed at any moment, and the machine may stop. So every file appears whole or not at all, the states
before their block, and is on the disk before the file that it replaces is removed. A run that goes on computes from the
same bits as one that was never interrupted, so on the same number of threads the result is the same to the bit;
`request` says what may change. The folder is removed when the run is finished, or ends before anything was done; else
the user decides what to do with hours of work. Only one process at a time may use it.
"""

import fcntl
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save, save_file
from torch import Tensor

from twofour.prune.errors import CheckpointError, InputError
from twofour.prune.format.folder import making, put, read_json, sync, write_whole
from twofour.prune.format.schemes import Scheme, StoredWeight
from twofour.prune.model.batches import STATES, Batch
from twofour.prune.recovery.training import Training
from twofour.prune.run import block_files
from twofour.prune.run.calibrate import PrunedBlock
from twofour.prune.run.request import DECIDED, GO_ON, THREADS, Begun, Decided, merged
from twofour.prune.text.sources import Calibration

REQUEST, LOCK = "request.json", "lock"
TOKENS = "tokens.safetensors"
SCHEMES = "schemes.json"
MEASURED = "measured.json"
TRAINING = "training.safetensors"
BEST = "best"  # for each linear 8 bytes, little-endian: the length of the safetensors file that follows


class Journal:
    """The unfinished run that will become `out`, to be entered before anything is done, and then begun.

    Entering raises OutputError where its folder cannot be made, and InputError where another process is in it.
    """

    def __init__(self, out: Path, clock: Callable[[], float] = time.perf_counter) -> None:
        self.folder = out.parent / f".{out.name}.unfinished"
        self.threads: list[int] = []  # how many the run has had, in turn
        self._going = False
        self.point = ""  # of several results of one run, the one in work: its schemes and training are its own
        self._clock, self._began_s = clock, clock()
        self._before_s = 0.0  # of the processes before this one

    @property
    def spent_s(self) -> float:
        """The seconds of the run so far; of earlier processes, up to the last file that they wrote."""
        return self._before_s + self._clock() - self._began_s

    @property
    def size(self) -> int:
        """The bytes that its folder takes on the disk."""
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def __enter__(self) -> "Journal":
        self._lock = _locked(self.folder)
        for left in [*self.folder.glob("*.part"), *self.folder.glob(STATES)]:  # by a process that was killed
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        return self

    @property
    def begun(self) -> Begun | None:
        """What was decided about the run when it began; None where there is none to go on with."""
        if not self._begun():
            return None
        decided = read_json(self.folder / REQUEST).get(DECIDED)
        return None if decided is None else Begun(Decided(**decided), len(self._done()))

    def begin(self, request: Mapping[str, Any]) -> None:
        """Begin the run that is asked for, or go on with it. Raises InputError where the one begun here is another."""
        if self._begun():
            request = merged(request, read_json(self.folder / REQUEST), self.folder)
            self._before_s = self._kept_s()
        write_whole(self.folder / REQUEST, json.dumps(request, indent=2) + "\n")
        self.threads = request.get(THREADS, [])
        self._going = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Forget a run that is finished or has done nothing yet; else the error says how to go on."""
        if error is None or not self._begun():
            shutil.rmtree(self.folder, ignore_errors=True)
        elif self._going:
            error.add_note(GO_ON.format(folder=self.folder))
        os.close(self._lock)

    def _begun(self) -> bool:
        return (self.folder / TOKENS).exists() or (self.folder / _block(0)).exists()

    def text(self, make: Callable[[], Calibration]) -> Calibration:
        """Return the text of the run, made now if there is none."""
        if not (self.folder / TOKENS).exists():
            made = make()
            self._write(TOKENS, {"tokens": made.ids}, {"about": made.about, "notes": made.notes})
            sync(self.folder)
        with block_files.opened(self.folder / TOKENS) as file:
            return Calibration(file.get_tensor("tokens"), **block_files.about_of(file))

    def save(self, index: int, pruned: PrunedBlock, batches: list[Batch]) -> None:
        """Keep a pruned block and the states behind it."""
        for number, batch in enumerate(batches):
            dense = batch.dense
            states = {"hidden": batch.hidden} | ({} if dense is None else {"dense": dense})
            self._write(_states(index, number), states, {})
        sync(self.folder)
        self._write(_block(index), block_files.tensors(pruned), block_files.about(pruned))
        sync(self.folder)
        for number in range(len(batches)):
            (self.folder / _states(index - 1, number)).unlink(missing_ok=True)

    def restore(self, batches: list[Batch]) -> Iterator[PrunedBlock]:
        """Give the blocks that are done, and set the states of the batches to those behind the last one."""
        done = self._done()
        for path in done:
            with block_files.opened(path) as file:
                yield block_files.pruned(file, block_files.about_of(file))
        if done:
            self._restore_states(len(done) - 1, batches)

    def weights(self) -> dict[str, Callable[[], StoredWeight]]:
        """Return what reads each of the pruned weights that are kept here, by name."""
        makers: dict[str, Callable[[], StoredWeight]] = {}
        for path in self._done():
            with block_files.opened(path) as file:
                makers |= {
                    name: partial(block_files.read_weight, path, name)
                    for name in block_files.about_of(file)["scale_columns"]
                }
        return makers

    def schemes(self, choose: Callable[[], Mapping[str, Scheme]]) -> dict[str, Scheme]:
        """Return how each linear will be stored, chosen now if it was not yet: what is trained depends on it."""
        return self._plain(self.point + SCHEMES, lambda: dict(choose()))

    def measured(self, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what the choice goes by, measured now if it was not yet."""
        return self._plain(MEASURED, measure)

    def _plain(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return plain data that is kept, made now if it is not there."""
        if not (self.folder / name).exists():
            write_whole(self.folder / name, json.dumps(make()))
        return read_json(self.folder / name)

    def _done(self) -> list[Path]:
        """The files of the blocks, in order; they are written in order."""
        paths = (self.folder / _block(index) for index in itertools.count())
        return list(itertools.takewhile(Path.exists, paths))

    def _restore_states(self, index: int, batches: list[Batch]) -> None:
        for number, batch in enumerate(batches):
            with block_files.opened(self.folder / _states(index, number)) as file:
                batch.hidden = file.get_tensor("hidden")
                batch.dense = file.get_tensor("dense") if "dense" in file.keys() else None  # noqa: SIM118

    def save_training(self, training: Training) -> None:
        """Keep how far the training of the whole model is."""
        self._write(self.point + TRAINING, training.state or {}, training.about())
        sync(self.folder)

    def restore_training(self) -> Training | None:
        """Return how far the training of the whole model was."""
        if not (self.folder / (self.point + TRAINING)).exists():
            return None
        with block_files.opened(self.folder / (self.point + TRAINING)) as file:
            about = block_files.about_of(file)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return Training(state=tensors, **about)

    def keep_best(self, values: Iterable[Tensor]) -> None:
        """Keep the best weights of the training so far. One after the other: all of them need not be in memory."""
        temporary = self.folder / f"{self.point}{BEST}.part"
        with temporary.open("wb") as file:
            for each in values:
                tensors = save({"values": each.cpu().contiguous()})
                file.write(len(tensors).to_bytes(8, "little") + tensors)
        put(temporary, self.folder / (self.point + BEST))
        sync(self.folder)

    def best(self) -> Iterator[Tensor]:
        """Give back the best weights, one after the other."""
        path = self.folder / (self.point + BEST)
        try:
            with path.open("rb") as file:
                while size := file.read(8):
                    yield load(file.read(int.from_bytes(size, "little")))["values"]
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is not intact ({error}); remove its folder to start anew") from error

    def _kept_s(self) -> float:
        """The seconds at which the last file was written."""
        spent_s = [0.0]
        for path in [self.folder / TOKENS, *self._done(), *self.folder.glob(f"*{TRAINING}")]:
            if path.exists():
                with block_files.opened(path) as file:
                    spent_s.append(float(file.metadata()["spent_s"]))
        return max(spent_s)

    def _write(self, name: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        temporary = self.folder / f"{name}.part"
        metadata = {"about": json.dumps(about), "spent_s": str(self.spent_s)}
        save_file({key: tensor.cpu().contiguous() for key, tensor in tensors.items()}, temporary, metadata)
        put(temporary, self.folder / name)


class OnDemand(Mapping[str, StoredWeight]):
    """Weights that are made each time they are asked for, so that only one need be in memory."""

    def __init__(self, makers: Mapping[str, Callable[[], StoredWeight]]) -> None:
        self._makers = makers

    def __getitem__(self, name: str) -> StoredWeight:
        return self._makers[name]()

    def __contains__(self, name: object) -> bool:  # that of Mapping would make the weight
        return name in self._makers

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def _locked(folder: Path) -> int:
    """Make a folder and lock it for this process, by a file descriptor: the lock ends when the process does."""
    with making(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR, 0o644)
        sync(folder.parent)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise InputError(f"{folder} is in use by another run; wait for its end, or choose another name") from None
    return lock


def _block(index: int) -> str:
    return f"block-{index}.safetensors"


def _states(index: int, number: int) -> str:
    return f"states-{index}.{number}.safetensors"
