"""Tokens to calibrate on: windows of a text file, or text that the dense model writes itself.

Self-sampled text needs no data set: at temperature 1.0 without truncation it is a sample of what the model believes
language to be (colder text measured far worse). Each sample starts from the token that stood between documents in
pretraining: `<|endoftext|>` where the vocabulary has it, else BOS, else EOS. End tokens do not stop a sample; the
model goes on with another document, as it did in pretraining. Every sample holds its start token.

A file is cut into windows that do not overlap, from a random offset on, and a random choice of them is taken.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twofour.prune.decoding import draw, quick_attention, roomy_cache
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
    """Sample text from the model, int64 [samples, length]; same seed, same kind of machine: same text."""
    refuse_length(model, length)
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    ids = torch.full((samples, length), start_token(tokenizer), device=device)
    parts = [(some, at) for some in ids.split(BATCH_SAMPLES) for at in range(1, length)]
    with quick_attention(model):
        for some, at in track(parts, "sampling text", progress):
            if at == 1:
                cache = roomy_cache(model, length)
            some[:, at : at + 1] = _next(model, some[:, at - 1 : at], cache, generator)
    return ids.cpu()


def _next(model: nn.Module, last: Tensor, cache: Any, generator: torch.Generator) -> Tensor:  # int64 [batch, 1]
    logits = model(last, past_key_values=cache, use_cache=True).logits[:, -1]
    if bool(torch.isnan(logits).any()):
        position = cache.get_seq_length() - 1
        raise NonFiniteError(f"the model's logits are NaN at position {position} of its own text; check its weights")
    return draw(logits, generator)


def refuse_length(model: nn.Module, length: int) -> None:
    """Raise InputError if a window is longer than the model's context."""
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None and length > context:
        raise InputError(f"length {length} exceeds the model's context of {context}; give a smaller length")
