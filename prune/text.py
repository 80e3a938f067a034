"""Tokens to calibrate on: windows of a text file, or text that the dense model writes itself.

Self-sampled text needs no data set: at temperature 1.0 without truncation it is a sample of what the model believes
language to be (colder text measured far worse). Each sample starts from the token that stood between documents in
pretraining: `<|endoftext|>` where the vocabulary has it, else BOS, else EOS. End tokens do not stop a sample; the
model goes on with another document, as it did in pretraining. Every sample holds its start token.

A file is cut into windows that do not overlap, from a random offset on, and a random choice of them is taken.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twofour.prune.errors import InputError, NonFiniteError, TextError
from twofour.prune.progress import Progress, silent, track

SEPARATOR = "<|endoftext|>"
BATCH_SAMPLES = 64


def from_file(tokenizer: Any, path: Path, samples: int, length: int, seed: int) -> Tensor:
    """Draw windows of a UTF-8 text file, int64 [samples, length]. Raises TextError if it is too short."""
    ids = tokens(tokenizer, path)
    if len(ids) < samples * length:
        raise TextError(
            f"{path} holds {len(ids)} tokens, {samples} samples of {length} need {samples * length}; "
            "give more text or fewer samples"
        )
    generator = torch.Generator().manual_seed(seed)
    spare = len(ids) - samples * length
    offset = int(torch.randint(min(spare, length - 1) + 1, (), generator=generator))
    windows = ids[offset : offset + (len(ids) - offset) // length * length].view(-1, length)
    return windows[torch.randperm(len(windows), generator=generator)[:samples]]


def tokens(tokenizer: Any, path: Path) -> Tensor:  # int64 [tokens]
    """Tokenise a whole UTF-8 file, without special tokens."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TextError(f"{path} cannot be read as UTF-8 text ({error}); give a text file") from error
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.int64)


def start_token(tokenizer: Any) -> int:
    """Return the id that text sampled from nothing starts with."""
    vocabulary = tokenizer.get_vocab()
    for candidate in (vocabulary.get(SEPARATOR), tokenizer.bos_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    raise TextError(f"the tokenizer has neither {SEPARATOR} nor BOS nor EOS to start from; calibrate on a file")


@torch.no_grad()
def self_sampled(
    model: nn.Module, tokenizer: Any, samples: int, length: int, seed: int, progress: Progress = silent
) -> Tensor:
    """Sample text from the model, int64 [samples, length]; the same seed gives the same text on one kind of machine."""
    refuse_length(model, length)
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    start = torch.full((samples, 1), start_token(tokenizer), device=device)
    with _quick_decoding(model):
        batches = [_sample(model, some, length, generator, progress) for some in start.split(BATCH_SAMPLES)]
    return torch.cat(batches).cpu()


def refuse_length(model: nn.Module, length: int) -> None:
    """Raise InputError if a window is longer than the model's context."""
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None and length > context:
        raise InputError(f"length {length} exceeds the model's context of {context}; give a smaller length")
