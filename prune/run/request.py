"""What an unfinished run was asked for, and what may be otherwise when it goes on.

No result is a mix of two configurations. What is done depends on the model, the text, the packages and the config, so
these must be the same. It does not depend on the format of the result or the memory limit, so these may change. Another
number of threads changes last bits only, which the label says.

How kept weights are trained is decided once, by the memory that is free then. Another way may be asked for until the
first block is done. After that one change is left, for a run that was to train the whole model and cannot: it may end
with its blocks, for they are trained before the whole.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from twofour.prune.config import PruneConfig, Train
from twofour.prune.errors import InputError
from twofour.prune.machine.provenance import versions

MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
FREE = ("memory_limit_bytes", "format", "train", "blocks_as_begun")  # of the config: these may change
DECIDED, THREADS = "decided", "threads"
GO_ON = (
    "what is done is kept in {folder}: give the command again to go on (memory limit, format and threads may be "
    'others, and "--train blocks" does without training the whole model), or remove that folder to start anew'
)

Stamps = dict[str, list[int]]  # the size and the time of each file, by which a change is noticed


def _stamps(files: Mapping[str, Path]) -> Stamps:
    """Return the stamps of those files that exist."""
    found = {name: path.stat() for name, path in files.items() if path.is_file()}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in found.items()}


def model_stamps(source: Path) -> Stamps:
    """Return the stamps of the files that a model is read from; other files of its folder may change."""
    return _stamps({path.name: path for pattern in MODEL_FILES for path in source.glob(pattern)})


@dataclass(frozen=True)
class Decided:
    """What was decided about a run when it began.

    train, blocks_as_begun: as in `PruneConfig`. fallbacks: what is done otherwise than asked, and why.
    writer: the device that the model writes text on.
    """

    train: Train
    writer: str
    fallbacks: list[str] = field(default_factory=list)
    blocks_as_begun: bool = False

    def config(self, asked: PruneConfig) -> PruneConfig:
        """Return what is carried out."""
        return replace(asked, train=self.train, blocks_as_begun=self.blocks_as_begun)


class Begun(NamedTuple):
    """A run that has its text, or a block. blocks: how many are done."""

    decided: Decided
    blocks: int


def request(config: PruneConfig, forward: torch.dtype, model: Stamps, decided: Decided) -> dict[str, Any]:
    """Return all that a result depends on. config: as it is carried out."""
    return {
        "model": model,
        "text": _stamps({source: Path(source) for source in config.sources}),
        "config": {name: value for name, value in asdict(config).items() if name not in FREE},
        "forward dtype": str(forward),
        "format": config.format if config.chooses else None,  # which allows the schemes that are chosen from
        "versions": versions(),
        DECIDED: asdict(decided),
        THREADS: [torch.get_num_threads()],
    }


def merged(asked: Mapping[str, Any], begun: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return what a run that goes on is asked for. Raises InputError where its results would not go together."""
    now = json.loads(json.dumps(asked))
    fixed = [key for key in now if key not in (DECIDED, THREADS)]
    if other := [key for key in fixed if begun.get(key) != now[key]]:
        what = _names(now[other[0]], begun.get(other[0])) if other[0] == "config" else other[0]
        raise InputError(
            f"{folder} holds an unfinished run with another {what}; "
            "give its command again to go on, or remove that folder to start anew"
        )
    threads: list[int] = begun.get(THREADS, [])
    return {**now, THREADS: threads + [number for number in now.get(THREADS, []) if threads[-1:] != [number]]}


def _names(asked: Mapping[str, Any], begun: Any) -> str:
    """Say which values of a config have changed."""
    known = begun if isinstance(begun, dict) else {}
    return "config (" + ", ".join(name for name in asked if known.get(name) != asked[name]) + ")"


def go_on(asked: PruneConfig, decided: Decided, begun: Begun | None) -> Decided:
    """Return what holds for a run: where it goes on, what was decided when it began. decided: what would be today.

    Raises InputError where the blocks that are done do not fit what is asked for.
    """
    if begun is None:
        return decided
    before = begun.decided
    if not begun.blocks:
        return replace(decided, writer=before.writer)
    by_itself = before.train == "blocks" and not before.blocks_as_begun
    if asked.train == "model" and by_itself:
        raise InputError(
            "the blocks that are done were trained to be all that is trained; leave out --train model to go on, or "
            "choose another name"
        )
    if asked.train == "blocks" and not by_itself:
        return replace(before, train="blocks", blocks_as_begun=True, fallbacks=_without_whole(asked))
    if asked.train == "model" and before.blocks_as_begun:
        return replace(before, train="model", blocks_as_begun=False, fallbacks=[])
    return before


def _without_whole(asked: PruneConfig) -> list[str]:
    """Say that the blocks are trained less than if nothing had been planned to follow them."""
    stages = replace(asked, train="model").stages
    if not stages.model_passes:
        return []
    return [
        f"kept weights trained block by block, {stages.block_passes} times through the text: the run was begun to "
        "train the whole model after them, which was left out when it went on"
    ]


def threads_note(threads: Sequence[int]) -> list[str]:
    """Say that the number of threads changed during a run."""
    if len(threads) < 2:
        return []
    return [f"computed on {', then '.join(map(str, threads))} threads: the last bits are those of no run in one go"]
