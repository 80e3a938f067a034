"""Tokens to calibrate on: windows of a text, or text that the dense model writes itself.

Self-sampled text needs no data set: at temperature 1.0 without truncation it is a sample of what the model believes
language to be (text at lower temperatures gave far worse results). A calibration sample is several short documents: one
long text would be about fewer things, and drift. Each starts from the token that stood before
documents in pretraining: BOS where the tokenizer adds it to a text, else `<|endoftext|>` where the vocabulary has it,
else BOS, else EOS. End tokens do not stop a document; the model goes on with another, as it did in pretraining. Every
document holds its start token. Given a text, a piece of it stands behind the start token of each, and the model goes on
from there: so a short text is the beginning of many more of its kind.

A text is cut into windows that do not overlap, from a random offset on, and a random choice of them is taken; each
begins with BOS where the model is used to it (`windows`). Documents of a JSONL file are set apart by an empty line.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twofour.prune.config import SELF
from twofour.prune.errors import ModelError, TextError, in_a_line
from twofour.prune.format import tower
from twofour.prune.progress import Progress, silent
from twofour.prune.text import chat, windows
from twofour.prune.text.writer import Passage, Writer, seed_of

SEPARATOR = "<|endoftext|>"
BETWEEN_DOCUMENTS = "\n\n"
DOCUMENT_TOKENS = 128  # that the model writes from one start, at most
PIECE_TOKENS = 24  # of a text that it goes on from, at most: no run that a stream holds out is so short
PIECE = 4  # of the tokens of a document, one in so many at most


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a folder; no code of the folder runs. Raises ModelError where none can be loaded."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        tokenizer("x")
        tokenizer.chat_template = tokenizer.chat_template or tower.template(folder)
    except Exception as error:  # its files can hold anything
        raise ModelError(
            f"the tokenizer of {folder} cannot be loaded ({in_a_line(error)}); take an intact copy"
        ) from error
    return tokenizer


def from_file(tokenizer: Any, path: Path, samples: int, length: int, seed: int) -> Tensor:
    """Draw windows of a UTF-8 text file, int64 [samples, length]; a .jsonl file may hold conversations.

    Raises TextError if it is too short.
    """
    if not (talks := _conversations(tokenizer, path)):
        return drawn(tokens(tokenizer, path), samples, length, seed, str(path), windows.bos(tokenizer))
    packing = chat.Packing(samples, length)
    for number in torch.randperm(len(talks), generator=torch.Generator().manual_seed(seed)).tolist():
        packing.add(talks[number])
    return packing.filled(str(path))


def drawn(
    ids: Tensor,  # int64 [tokens]
    samples: int,
    length: int,
    seed: int,
    name: str,
    bos: int | None,
) -> Tensor:
    """Draw windows of a text that is called `name`, int64 [samples, length]. Raises TextError if it is too short."""
    return windows.begun(_pieces(ids, samples, windows.text_tokens(length, bos), seed, name), bos)


def _pieces(ids: Tensor, samples: int, length: int, seed: int, name: str) -> Tensor:  # int64 [samples, length]
    if len(ids) < samples * length:
        raise TextError(
            f"{name} holds {len(ids)} tokens, {samples} samples of {length} need {samples * length}; "
            "give more text or fewer samples"
        )
    generator = torch.Generator().manual_seed(seed)
    spare = len(ids) - samples * length
    offset = int(torch.randint(min(spare, length - 1) + 1, (), generator=generator))
    pieces = ids[offset : offset + (len(ids) - offset) // length * length].view(-1, length)
    return pieces[torch.randperm(len(pieces), generator=generator)[:samples]]


def tokens(tokenizer: Any, path: Path) -> Tensor:  # int64 [tokens]
    """Tokenise a whole UTF-8 file, of a .jsonl file the "text" or the "messages" of every line.

    Text has no special tokens, a conversation has those of the chat template.
    """
    if talks := _conversations(tokenizer, path):
        ids = [token for talk in talks for token in talk]
    else:
        lines = _lines(path)
        text = read_text(path) if lines is None else BETWEEN_DOCUMENTS.join(_document(*line) for line in lines)
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.int64)


def _conversations(tokenizer: Any, path: Path) -> list[list[int]]:
    """The conversations of a .jsonl file as token ids; none where it holds text."""
    lines = _lines(path) or []
    if not any(isinstance(value, dict) and "messages" in value for value, _ in lines[:1]):
        return []
    return [
        chat.rendered(tokenizer, value.get("messages") if isinstance(value, dict) else None, place)
        for value, place in lines
    ]


def read_text(path: Path) -> str:
    """Read a UTF-8 file. Raises TextError where it is not one."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TextError(f"{path} cannot be read as UTF-8 text ({error}); give a text file") from error


def _lines(path: Path) -> list[tuple[Any, str]] | None:
    """What the lines of a .jsonl file hold, each with its place; None for another file."""
    if path.suffix != ".jsonl":
        return None
    numbered = enumerate(read_text(path).split("\n"), start=1)  # splitlines() would also split inside of strings
    return [(_json(line), f"{path} line {number}") for number, line in numbered if line.strip()]


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _document(value: Any, place: str) -> str:
    document = value.get("text") if isinstance(value, dict) else None
    if not isinstance(document, str):
        raise TextError(
            f'{place} is no JSON object with a string "text"; give one a line, all with "messages", or a .txt file'
        )
    return document


def start_token(tokenizer: Any) -> int:
    """Return the token that text from no prompt starts with."""
    vocabulary = tokenizer.get_vocab()
    for candidate in (
        windows.bos(tokenizer),
        vocabulary.get(SEPARATOR),
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
    ):
        if candidate is not None:
            return int(candidate)
    raise TextError(f"the tokenizer has neither {SEPARATOR} nor BOS nor EOS to start from; calibrate on a file")


def self_sampled(
    writer: Writer, tokenizer: Any, samples: int, length: int, seed: int, progress: Progress = silent
) -> Tensor:
    """Let the model write, int64 [samples, length]; same seed, same writer, same kind of machine: same text."""
    return _gone_on(writer, [(start_token(tokenizer),)] * samples, length, seed, progress)


def documents_sampled(
    writer: Writer,
    tokenizer: Any,
    samples: int,
    length: int,
    seed: int,
    progress: Progress = silent,
    file: Path | None = None,
) -> Tensor:
    """Let the model write, int64 [samples, length], several short documents for each sample.

    file: each document goes on from a piece of its text. Raises TextError where it is shorter than one.
    """
    count, size = documents(samples, length)
    pieces = _beginnings(tokenizer, file, count, size, seed) if file else [()] * count
    first = start_token(tokenizer)
    ids = _gone_on(writer, [(first, *piece) for piece in pieces], size, seed, progress)
    return ids.view(samples, -1)[:, :length].contiguous()


def _gone_on(writer: Writer, prompts: list[tuple[int, ...]], length: int, seed: int, progress: Progress) -> Tensor:
    """Each prompt with what the model writes after it, int64 [prompts, length]."""
    passages = [
        Passage(prompt, length - len(prompt), seed_of(seed, SELF, number)) for number, prompt in enumerate(prompts)
    ]
    written = zip(prompts, writer.write(passages, progress), strict=True)
    return torch.tensor([[*prompt, *more] for prompt, more in written], dtype=torch.int64)


def _beginnings(tokenizer: Any, file: Path, count: int, length: int, seed: int) -> list[tuple[int, ...]]:
    """Pieces from random places of a file, for documents of so many tokens."""
    text, size = tokens(tokenizer, file), min(PIECE_TOKENS, length // PIECE)
    if len(text) < size:
        raise TextError(f"{file} holds {len(text)} tokens, a piece to go on from is {size}; give more text")
    generator = torch.Generator().manual_seed(seed_of(seed, "beginnings"))
    places = torch.randint(len(text) - size + 1, (count,), generator=generator)
    return [tuple(text[place : place + size].tolist()) for place in places.tolist()]


def documents(samples: int, length: int) -> tuple[int, int]:
    """Return how many documents are written for the samples, several for each, and the tokens of a document."""
    each = -(-length // DOCUMENT_TOKENS)
    return samples * each, -(-length // each)
