"""Tokens to calibrate on: windows of a text, or text that the dense model writes itself.

Self-sampled text needs no data set: at temperature 1.0 without truncation it is a sample of what the model believes
language to be (text at lower temperatures gave far worse results). A calibration sample is several short documents: one
long text would be about fewer things, and drift. Each starts from the token that stood before
documents in pretraining: BOS where the tokenizer adds it to a text, else `<|endoftext|>` where the vocabulary has it,
else BOS, else EOS. End tokens do not stop a document; the model goes on with another, as it did in pretraining. Every
document holds its start token.

A text is cut into windows that do not overlap, from a random offset on, and a random choice of them is taken; each
begins with BOS where the model is used to it (`windows`). Documents of a JSONL file are set apart by an empty line.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twofour.prune.errors import InputError, ModelError, NonFiniteError, TextError, in_a_line
from twofour.prune.format import tower
from twofour.prune.model.anatomy import cached_numbers
from twofour.prune.model.attention import quick_attention
from twofour.prune.model.decoding import draw, roomy_cache, with_cache
from twofour.prune.progress import Progress, silent, track
from twofour.prune.text import chat, windows

SEPARATOR = "<|endoftext|>"
BETWEEN_DOCUMENTS = "\n\n"
DOCUMENT_TOKENS = 128  # that the model writes from one start, at most
BATCH_TOKENS = 1 << 15  # that it writes at a time
CACHE_BYTES = 1 << 30  # of keys and values at a time

Take = Callable[[int], int]  # the token that the model has drawn -> the one that stands in the text


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
    """Draw windows of a UTF-8 text file, int64 [samples, length]. Raises TextError if it is too short."""
    return drawn(tokens(tokenizer, path), samples, length, seed, str(path), windows.bos(tokenizer))


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
    """Tokenise a whole UTF-8 file, of a .jsonl file the "text" of every line, without special tokens."""
    text = read_text(path)
    if path.suffix == ".jsonl":
        text = BETWEEN_DOCUMENTS.join(_documents(text, path))
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.int64)


def read_text(path: Path) -> str:
    """Read a UTF-8 file. Raises TextError where it is not one."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TextError(f"{path} cannot be read as UTF-8 text ({error}); give a text file") from error


def _documents(lines: str, path: Path) -> list[str]:
    numbered = enumerate(lines.split("\n"), start=1)  # splitlines() would also split inside of strings
    return [_document(line, f"{path} line {number}") for number, line in numbered if line.strip()]


def _document(line: str, place: str) -> str:
    try:
        document = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError):
        document = None
    if not isinstance(document, str):
        raise TextError(f'{place} is no JSON object with a string "text"; give one a line, or a .txt file')
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
    model: nn.Module, tokenizer: Any, samples: int, length: int, seed: int, progress: Progress = silent
) -> Tensor:
    """Sample text from the model, int64 [samples, length]; same seed, same kind of machine: same text."""
    as_drawn: Take = int
    return _sampled(model, start_token(tokenizer), [as_drawn] * samples, length, seed, progress)


def documents_sampled(
    model: nn.Module, tokenizer: Any, samples: int, length: int, seed: int, progress: Progress = silent
) -> Tensor:
    """Sample text from the model, int64 [samples, length], of several short documents each."""
    ids = self_sampled(model, tokenizer, *documents(samples, length), seed, progress)
    return ids.view(samples, -1)[:, :length].contiguous()


def documents(samples: int, length: int) -> tuple[int, int]:
    """Return how many documents are written for the samples, several for each, and the tokens of a document."""
    each = -(-length // DOCUMENT_TOKENS)
    return samples * each, -(-length // each)


def chat_sampled(
    model: nn.Module, tokenizer: Any, samples: int, length: int, seed: int, progress: Progress = silent
) -> Tensor:
    """Let the model write conversations, int64 [samples, length]. Raises TextError without a fitting template."""
    template = chat.template(tokenizer)
    if len(template.opening) >= length:
        raise TextError(
            f"the chat template takes {len(template.opening)} tokens before the first turn, a sample has {length}; "
            "give a greater length"
        )
    takes = [chat.Conversation(template).take for _ in range(samples)]
    return _sampled(model, template.opening[0], takes, length, seed, progress)


@torch.no_grad()
def _sampled(model: nn.Module, first: int, takes: Sequence[Take], length: int, seed: int, progress: Progress) -> Tensor:
    """Write a sample for each of `takes`, int64 [samples, length], some at a time."""
    refuse_length(model, length)
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    size = batch_samples(model, length)
    ids = torch.full((len(takes), length), first)
    parts = [(start, at) for start in range(0, len(takes), size) for at in range(1, length)]
    with quick_attention(model):
        for start, at in track(parts, "sampling text", progress):
            if at == 1:
                cache = roomy_cache(model, length)
            some = ids[start : start + size]
            chosen = _next(model, some[:, at - 1 : at].to(device), cache, generator)[:, 0].tolist()
            some[:, at] = torch.tensor([take(token) for take, token in zip(takes[start:], chosen, strict=False)])
    return ids


def batch_samples(model: nn.Module, length: int) -> int:
    """Return how many texts are written at a time: fewer where their keys and values would take much memory."""
    return max(1, min(BATCH_TOKENS // length, CACHE_BYTES // cache_bytes(model, length)))


def cache_bytes(model: nn.Module, length: int) -> int:
    """Return the size of the keys and values of one text."""
    return cached_numbers(model.config) * length * next(model.parameters()).element_size()


def _next(model: nn.Module, last: Tensor, cache: Any, generator: torch.Generator) -> Tensor:  # int64 [batch, 1]
    logits = model(last, **with_cache(model, cache), use_cache=True).logits[:, -1]
    if not bool(torch.isfinite(logits.amax(-1)).all()):  # single tokens may be impossible
        position = cache.get_seq_length() - 1
        raise NonFiniteError(
            f"the model's logits are NaN or infinite at position {position} of its own text; check its weights and "
            "dtype, or calibrate on a file, which names the first linear"
        )
    return draw(logits, generator)


def refuse_length(model: nn.Module, length: int) -> None:
    """Raise InputError if a window is longer than the model's context."""
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None and length > context:
        raise InputError(f"length {length} exceeds the model's context of {context}; give a smaller length")
