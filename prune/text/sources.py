"""Where the calibration text comes from: one source, or several, in turns.

A source is `self` or `chat` (text, or conversations, that the dense model writes), a file, or
`hub:OWNER/NAME[/CONFIG][:SPLIT[:COLUMN]]`, a data set of the hub or a local folder of data files. Samples of several
sources take turns, so that the end of the text, on which training is validated, has some of each.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from twofour.prune.config import CHAT, HUB, SELF, PruneConfig
from twofour.prune.errors import InputError, TextError
from twofour.prune.progress import Progress, silent
from twofour.prune.text import corpus, windows

SHUFFLE_ROWS = 1000  # of a data set are in memory, to be drawn from


class DataSet(NamedTuple):
    """A data set of texts, as `hub:...` names it."""

    name: str
    config: str | None
    split: str
    column: str


def tokens(
    model: nn.Module, tokenizer: Any, config: PruneConfig, progress: Progress = silent, writer: str = "cpu"
) -> Tensor:  # int64 [samples, length]
    """Get the tokens to calibrate on; what the model writes comes last. writer: the device for that.

    Raises TextError or InputError, naming the source.
    """
    shares = config.shares
    drawn: dict[str, Tensor] = {}
    for source in sorted(shares, key=lambda source: source in (SELF, CHAT)):
        wanted = (shares[source], config.length, config.seed)
        if source in (SELF, CHAT):
            write = corpus.documents_sampled if source == SELF else corpus.chat_sampled
            drawn[source] = write(model.to(writer), tokenizer, *wanted, progress)
            model.cpu()
        elif source.startswith(HUB):
            drawn[source] = from_hub(tokenizer, source, *wanted)
        else:
            drawn[source] = corpus.from_file(tokenizer, _file(source), *wanted)
    return in_turns([drawn[source] for source in shares])


def require(config: PruneConfig) -> None:
    """Raise TextError or InputError for a source that cannot be read, before the model is loaded."""
    for source in config.sources:
        if source.startswith(HUB):
            parse(source)
        elif source not in (SELF, CHAT):
            _file(source)


def written(config: PruneConfig) -> list[tuple[int, int]]:
    """Return how many texts of how many tokens the model writes, for each source of its own."""
    shares = {source: samples for source, samples in config.shares.items() if source in (SELF, CHAT)}
    return [
        corpus.documents(samples, config.length) if source == SELF else (samples, config.length)
        for source, samples in shares.items()
    ]


def in_turns(parts: list[Tensor]) -> Tensor:  # int64 [samples, length], several times
    """Take one sample of each part after the other; what a part has more than the others comes first."""
    turns = torch.cat([torch.arange(-len(part), 0) for part in parts])
    return torch.cat(parts)[turns.argsort(stable=True)]


def from_hub(tokenizer: Any, source: str, samples: int, length: int, seed: int) -> Tensor:
    """Draw windows from the first rows of a shuffled data set, int64 [samples, length]; no more is read than needed."""
    data = parse(source)
    ids: list[int] = []
    for row in _rows(data, source, seed):
        document = _document(row, data, source) + corpus.BETWEEN_DOCUMENTS
        ids += tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]
        if len(ids) >= (samples + 1) * length:  # room for a random offset
            break
    return corpus.drawn(torch.tensor(ids, dtype=torch.int64), samples, length, seed, source, windows.bos(tokenizer))


def parse(source: str) -> DataSet:
    """Parse `hub:OWNER/NAME[/CONFIG][:SPLIT[:COLUMN]]`; a local folder may stand for OWNER/NAME."""
    name, *rest = source.removeprefix(HUB).split(":")
    split, column, *more = [*rest, "", ""]
    names, is_folder = name.split("/"), Path(name).is_dir()
    if any(more) or not name or not (is_folder or len(names) in (2, 3)):
        raise InputError(f"{source} does not name a data set; give {HUB}OWNER/NAME[/CONFIG][:SPLIT[:COLUMN]]")
    config = names[2] if len(names) == 3 and not is_folder else None
    return DataSet(name if is_folder else "/".join(names[:2]), config, split or "train", column or "text")


def _rows(data: DataSet, source: str, seed: int) -> Iterator[dict[str, Any]]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise InputError(f'{source} needs the package datasets; pip install "twofour[hub]"') from error
    try:
        rows = load_dataset(data.name, data.config, split=data.split, streaming=True)
        yield from rows.shuffle(seed=seed, buffer_size=SHUFFLE_ROWS)
    except Exception as error:  # a dozen kinds, of several packages
        reason = str(error).partition("\n")[0]
        raise TextError(f"{source} cannot be loaded ({reason}); check its name, config and split") from error


def _document(row: dict[str, Any], data: DataSet, source: str) -> str:
    document = row.get(data.column)
    if not isinstance(document, str):
        raise TextError(
            f"{source} has no text in the column {data.column!r} of {', '.join(row)}; "
            f"name another: {HUB}{data.name}:{data.split}:COLUMN"
        )
    return document


def _file(source: str) -> Path:
    if not Path(source).is_file():
        raise TextError(f"{source} is no file, nor {SELF}, {CHAT} or {HUB}OWNER/NAME; check its name")
    return Path(source)
