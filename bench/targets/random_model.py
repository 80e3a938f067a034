"""Models of a known shape with random weights, to measure speed and memory where the real ones cannot be had.

Weights are normal with deviation 0.02 (norms are 1), bfloat16, from one seed; the 2:4 form is pruned by magnitude.
The tokenizer makes one token of every word that the load client sends, so that a prompt is as long as was asked
for; the rest of the vocabulary are placeholders, each with a text of its own, so that every token that a random
model samples is a chunk of its stream. There is no chat template: such a model has nothing to say.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twofour import prune
from twofour.bench.load.workload import WORDS
from twofour.bench.targets import shapes
from twofour.bench.targets.shapes import DecoderShape
from twofour.prune.config import PruneConfig
from twofour.prune.format.checkpoint import write_weights
from twofour.prune.format.folder import new_folder, require_space
from twofour.prune.progress import Progress

SEED = 0
DEVIATION = 0.02
CONTEXT = 2048  # bounds what the caches of several servers take
PACKED_BYTES = 1.125  # of a bfloat16 weight: half the values, a nibble for every four positions
END = "<|endoftext|>"


def pair(name: str, folder: Path, progress: Progress) -> tuple[Path, Path]:
    """Return the dense and the 2:4 model of a shape in `folder`; what is not there yet is made."""
    shape = shapes.named(name)
    dense, sparse = folder / f"{name}-random", folder / f"{name}-random-2of4"
    missing_bytes = (0 if dense.exists() else dense_bytes(shape)) + (0 if sparse.exists() else sparse_bytes(shape))
    require_space(dense, missing_bytes)
    if not dense.exists():
        print(f"making {dense}", file=sys.stderr, flush=True)
        make(shape, dense)
    if not sparse.exists():
        print(f"making {sparse}", file=sys.stderr, flush=True)
        prune.prune(dense, sparse, PruneConfig(method="magnitude"), progress)
    return dense, sparse


def make(shape: DecoderShape, out: Path) -> None:
    """Write a dense model folder."""
    with new_folder(out) as folder:
        write_weights(folder, _tensors(shape), "dense")
        config(shape).save_pretrained(folder)
        _tokenizer(shape.vocab).save_pretrained(folder)


def dense_bytes(shape: DecoderShape) -> int:
    return sum(parameter.numel() * 2 for _, parameter in _parameters(shape))


def sparse_bytes(shape: DecoderShape) -> int:
    linears = sum(out * columns * count for (out, columns), count in shape.linears().items())
    return dense_bytes(shape) - round(linears * (2 - PACKED_BYTES))


def config(shape: DecoderShape) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=shape.tied,
        bos_token_id=0,
        eos_token_id=0,
        dtype="bfloat16",
    )


def _parameters(shape: DecoderShape) -> Iterator[tuple[str, Tensor]]:
    """Names and shapes as transformers has them, without memory; a tied lm_head is none of them."""
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(config(shape))
    yield from model.named_parameters()


def _tensors(shape: DecoderShape) -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(SEED)
    for name, parameter in _parameters(shape):
        weight = torch.ones(parameter.shape, dtype=torch.bfloat16)
        yield name, weight if weight.ndim == 1 else weight.normal_(0, DEVIATION, generator=generator)


def _tokenizer(size: int) -> Any:
    """Whole words and single bytes, then placeholders up to `size` tokens; nothing is ever merged."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    space = "Ġ"  # a byte-level alphabet's letter for it
    known = [END, *sorted(pre_tokenizers.ByteLevel.alphabet()), *WORDS, *(space + word for word in WORDS)]
    tokens = [*known, *(f"<|{number}|>" for number in range(len(known), size))]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([END])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=END, eos_token=END)
