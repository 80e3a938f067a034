"""Data sets of the hub, `hub:OWNER/NAME[@REVISION][/CONFIG][:SPLIT[:COLUMN]]`, or local folders of data files.

A column holds texts, or conversations (`messages`). The rows are shuffled by the seed and no more are read than needed.
The label gets the commit of the data set on the hub, and the SHA-256 of what was read.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from twofour.prune.config import HUB
from twofour.prune.errors import InputError, TextError
from twofour.prune.text import chat, corpus, windows

SHUFFLE_ROWS = 1000  # of a data set are in memory, to be drawn from
FORM = f"{HUB}OWNER/NAME[@REVISION][/CONFIG][:SPLIT[:COLUMN]]"


class DataSet(NamedTuple):
    """A data set, as `hub:...` names it. folder: it is a local one."""

    name: str
    config: str | None
    split: str
    column: str
    revision: str | None = None
    is_folder: bool = False


def parse(source: str) -> DataSet:
    """Parse the name of a source; a local folder may stand for OWNER/NAME."""
    name, *rest = source.removeprefix(HUB).split(":")
    split, column, *more = [*rest, "", ""]
    names, is_folder = name.split("/"), Path(name).is_dir()
    if any(more) or not name or not (is_folder or len(names) in (2, 3)):
        raise InputError(f"{source} does not name a data set; give {FORM}")
    if is_folder:
        return DataSet(name, None, split or "train", column or "text", is_folder=True)
    own, at, revision = names[1].partition("@")
    if not own or (at and not revision):
        raise InputError(f"{source} does not name a data set; give {FORM}")
    config = names[2] if len(names) == 3 else None
    return DataSet(f"{names[0]}/{own}", config, split or "train", column or "text", revision or None)


def drawn(tokenizer: Any, source: str, samples: int, length: int, seed: int) -> tuple[Tensor, dict[str, str]]:
    """Draw windows from a shuffled data set, int64 [samples, length], and say what they are of."""
    data = parse(source)
    about = _commit(data, source)
    digest, ids, packing = hashlib.sha256(), list[int](), chat.Packing(samples, length)
    for number, value in enumerate(_values(data, source, seed, about.get("commit"))):
        digest.update(json.dumps(value).encode())
        if isinstance(value, str):
            ids += tokenizer(value + corpus.BETWEEN_DOCUMENTS, add_special_tokens=False, verbose=False)["input_ids"]
        else:
            packing.add(chat.rendered(tokenizer, value, f"row {number} of {source}"))
        if len(ids) >= (samples + 1) * length or not packing.missing:  # room for a random offset
            break
    about["sha256"] = digest.hexdigest()
    if ids:
        text = torch.tensor(ids, dtype=torch.int64)
        return corpus.drawn(text, samples, length, seed, source, windows.bos(tokenizer)), about
    return packing.filled(source), about


def _commit(data: DataSet, source: str) -> dict[str, str]:
    """The commit that a data set of the hub has now: what is read is of that one."""
    if data.is_folder:
        return {}
    from huggingface_hub import dataset_info

    try:
        return {"commit": str(dataset_info(data.name, revision=data.revision).sha)}
    except Exception as error:  # a dozen kinds, of several packages
        raise _unloadable(source, error) from error


def _values(data: DataSet, source: str, seed: int, commit: str | None) -> Iterator[Any]:
    """What the rows hold in the column, text or a conversation, all of one kind."""
    kinds = set[type]()
    for row in _rows(data, source, seed, commit):
        value = row.get(data.column)
        if not isinstance(value, str | list):
            raise TextError(
                f"{source} has no text and no conversation in the column {data.column!r} of {', '.join(row)}; "
                f"name another: {HUB}{data.name}:{data.split}:COLUMN"
            )
        kinds.add(type(value))
        if len(kinds) > 1:
            raise TextError(f"{source} has both text and conversations in the column {data.column!r}; name another")
        yield value


def _rows(data: DataSet, source: str, seed: int, commit: str | None) -> Iterator[dict[str, Any]]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise InputError(f'{source} needs the package datasets; pip install "twofour[hub]"') from error
    try:
        rows = load_dataset(data.name, data.config, split=data.split, streaming=True, revision=commit)
        yield from rows.shuffle(seed=seed, buffer_size=SHUFFLE_ROWS)
    except Exception as error:  # a dozen kinds, of several packages
        raise _unloadable(source, error) from error


def _unloadable(source: str, error: Exception) -> TextError:
    reason = str(error).partition("\n")[0]
    return TextError(f"{source} cannot be loaded ({reason}); check its name, revision, config and split")
