"""Where the calibration text comes from: one source, or several, in turns.

A source is `self` or `chat` (text, or conversations, that the dense model writes), a file, `self:FILE` (text that the
model writes, each going on from a piece of the file), or `hub:OWNER/NAME[@REVISION][/CONFIG][:SPLIT[:COLUMN]]`, a data
set of the hub or a local folder of data files. Unless sources are asked for, it is `self`, and beside it `chat` where
the model is one for conversations. Samples of several sources take turns, so that the end of the text, on which
training is validated, has some of each.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from twofour.prune.config import BEGUN, CHAT, HUB, SELF, PruneConfig, file_of, writes
from twofour.prune.errors import TextError
from twofour.prune.progress import Progress, silent
from twofour.prune.text import chat, conversations, corpus, hub
from twofour.prune.text.writer import Writer, seed_of

CHAT_LENGTH = 128  # of windows that can hold a conversation: the template alone takes some thirty tokens


@dataclass(frozen=True)
class Calibration:
    """The tokens to calibrate on, int64 [samples, length], and what the label says of them.

    about: by source. notes: what was done otherwise than asked, and why.
    """

    ids: Tensor
    about: Mapping[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Part(NamedTuple):
    """The tokens of one source, what the label says of it, and what was done otherwise than asked."""

    ids: Tensor
    about: Mapping[str, Any]
    notes: Sequence[str] = ()


def settled(config: PruneConfig, folder: Path) -> PruneConfig:
    """Return the config with its sources named: those of a model in this folder, unless some were asked for."""
    if config.calibration is not None or not config.stages.needs_text:
        return config
    can_chat = config.text_samples >= 2 and config.length >= CHAT_LENGTH
    is_chat = can_chat and chat.is_chat(corpus.load_tokenizer(folder))
    return replace(config, calibration=(SELF, CHAT) if is_chat else (SELF,))


def tokens(
    new_writer: Callable[[], Writer], tokenizer: Any, config: PruneConfig, progress: Progress = silent
) -> Calibration:
    """Get the tokens to calibrate on; what the model writes comes last, and only for that there is a writer.

    Raises TextError or InputError, naming the source.
    """
    shares = config.shares
    parts: dict[str, Part] = {}
    for source in sorted(shares, key=writes):
        wanted = (shares[source], config.length, config.seed)
        if writes(source):
            parts[source] = _written(source, new_writer(), tokenizer, *wanted, len(shares) == 1, progress)
        elif source.startswith(HUB):
            parts[source] = Part(*hub.drawn(tokenizer, source, *wanted))
        else:
            parts[source] = Part(corpus.from_file(tokenizer, _file(source), *wanted), {})
    return Calibration(
        in_turns([parts[source].ids for source in shares]),
        {source: part.about for source, part in parts.items()},
        [note for part in parts.values() for note in part.notes],
    )


def stream(
    new_writer: Callable[[], Writer],
    tokenizer: Any,
    config: PruneConfig,
    windows: int,
    first: int = 0,
    progress: Progress = silent,
) -> Iterator[Calibration]:
    """Give fresh text without end, so many windows at a time, of the sources and in the shares of the config.

    A chunk depends on its number alone, so a run that goes on begins with the `first` that it lacks. No chunk repeats
    the text of a run's `tokens`; of a file, windows come again once all are used.
    """
    for number in itertools.count(first):
        chunk = replace(config, samples=windows, seed=seed_of(config.seed, "chunk", number))
        yield tokens(new_writer, tokenizer, chunk, progress)


def _written(
    source: str, writer: Writer, tokenizer: Any, samples: int, length: int, seed: int, alone: bool, progress: Progress
) -> Part:
    """Let the model write. Where its conversations are too few, text of the kind of `self` fills their place.

    Raises TextError where a source that is alone would have none at all.
    """
    about: dict[str, Any] = {"written_by": writer.name}
    if source != CHAT:
        file = None if source == SELF else _file(source)
        return Part(corpus.documents_sampled(writer, tokenizer, samples, length, seed, progress, file), about)
    found = conversations.written(writer, tokenizer, samples, length, seed, progress)
    about["conversations"] = found.counts.as_dict()
    lacking = samples - len(found.windows)
    if not lacking:
        return Part(found.windows, about)
    if alone and lacking == samples:
        raise TextError(
            f"the model writes no conversations that are fit to calibrate on ({found.counts}); calibrate on {SELF}, "
            "or on a file of conversations"
        )
    rest = corpus.documents_sampled(writer, tokenizer, lacking, length, seed_of(seed, "rest"), progress)
    note = f"{lacking} of {samples} samples of conversations are text as of {SELF}: too few were fit ({found.counts})"
    return Part(torch.cat([found.windows, rest]), about, [note])


def require(config: PruneConfig) -> None:
    """Raise TextError or InputError for a source that cannot be read, before the model is loaded."""
    for source in config.sources:
        if source.startswith(HUB):
            hub.parse(source)
        elif file_of(source) is not None:
            _file(source)


def written(config: PruneConfig) -> list[tuple[int, int]]:
    """Return how many texts of how many tokens the model writes, about, for each source of its own."""
    return [
        conversations.expected(samples, config.length) if source == CHAT else corpus.documents(samples, config.length)
        for source, samples in config.shares.items()
        if writes(source)
    ]


def in_turns(parts: list[Tensor]) -> Tensor:  # int64 [samples, length], several times
    """Take one sample of each part after the other; what a part has more than the others comes first."""
    turns = torch.cat([torch.arange(-len(part), 0) for part in parts])
    return torch.cat(parts)[turns.argsort(stable=True)]


def _file(source: str) -> Path:
    file = Path(source.removeprefix(BEGUN))
    if not file.is_file():
        raise TextError(f"{file} is no file, nor {SELF}, {CHAT}, {BEGUN}FILE or {HUB}OWNER/NAME; check its name")
    return file
