"""The memory that training takes, in terms: what is held beside the model and its text, by what it is.

All of these are estimates from above. For one block or for the whole model:
- masters, moments and places of the kept weights (`recovery.optimiser`);
- one gradient, the largest, and what one step of the optimiser has in between;
- what a step keeps of every block for its way back; where blocks are recomputed on the way back, only the states in
  front of each, and all of one;
- for the whole model, the logits;
- on a CPU, what the heap keeps free and cannot use: gradients of all sizes come and go between activations.
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import nn

from twofour.prune.config import PruneConfig
from twofour.prune.format.pattern import GROUP, KEEP
from twofour.prune.model import attention
from twofour.prune.model.anatomy import Anatomy, Block
from twofour.prune.recovery.eight_bit import block_columns
from twofour.prune.recovery.optimiser import CHUNK
from twofour.prune.recovery.stream import Length
from twofour.prune.recovery.training import step_tokens

Terms = dict[str, int]  # what is held -> its bytes

# of a weight, as every second is kept
FULL = (4 + 4 + 4 + 4) / 2  # its master, two moments and its place
LEAN = (2 + 1 + 1 + 1 / 4) / 2  # half its master, two moments without their scales, its place
OTHER_HALF = 2 / 2  # of the master: in the optimiser, where the weight in the model is no half of it; and saved
FULL_SAVED = (4 + 4 + 4) / 2  # what a journal keeps of it
# of a weight that is in a step of the optimiser, as every second is kept
FULL_STEP = (2 + 4 + 8 + 4 + 4) / 2  # its slope, as it is and in float32; its place, int64; its new value, twice
LEAN_STEP = (2 + 5 * 4 + 4 * 8 + 2 * 4) / 2  # slope, five float32 in between, places in int64, new value and residue
LATE = 100  # the number of a chunk that is as large as any
GAPS = 1 / 2  # of the activations of a step: 0.44 were measured, of twelve blocks of 12M weights
NORMS = 2 * (4 + 4 + 2)  # per number, in the two norms of a block: as float32, normalised in float32, and in 16 bits


def of_a_block(block: Block, anatomy: Anatomy, config: PruneConfig) -> Terms:
    """The terms of training one block, whose optimiser is always the fast one."""
    linears = list(block.linears.values())
    best = numbers(linears) * element(anatomy) // 2
    return {
        "masters, moments and places": round(numbers(linears) * FULL) + best,
        "a step of the optimiser": _step_bytes(linears, anatomy, config, lean=False),
        "activations of a step": for_backward(block, anatomy, config),
    }


def of_the_model(anatomy: Anatomy, config: PruneConfig) -> Terms:
    """The terms of training the whole model."""
    linears = list(anatomy.linears.values())
    return {
        "masters, moments and places": _optimiser(anatomy, config),
        "a step of the optimiser": _step_bytes(linears, anatomy, config, config.lean),
        "activations of a step": _activations(anatomy, config),
        "logits of a step": _logits(anatomy, config),
        "gaps of the heap": _gaps(anatomy, config),
    }


def _gaps(anatomy: Anatomy, config: PruneConfig) -> int:
    return round(_activations(anatomy, config) * GAPS) if config.device == "cpu" else 0


def of_judging(anatomy: Anatomy, config: PruneConfig) -> Terms:
    """The terms of measuring what each linear loses: a step, and the linear whose gradient is there, on both ends."""
    largest = max(linear.weight.numel() for linear in anatomy.linears.values())
    return {
        "a linear, dense and 2:4": (4 * 4 + element(anatomy)) * largest,
        "activations of a step": _activations(anatomy, config),
        "logits of a step": _logits(anatomy, config),
    }


def of_a_stream(anatomy: Anatomy, config: PruneConfig) -> Terms:
    """The terms of a stream in the memory of the host: the dense weights, and states behind a chunk."""
    stages, sizes = config.stages, cast(Any, anatomy.model.config)
    if not stages.streams:
        return {}
    windows = stream_length(config).chunk("cpu" if config.device == "cpu" else "cuda", LATE)
    states = windows * config.length * int(sizes.hidden_size) * element(anatomy)
    return {"dense weights": dense_bytes(anatomy), "states of a chunk": states}


def stream_length(config: PruneConfig) -> Length:
    """How long the stream is that a config asks for."""
    return Length(config.length, config.stages.tokens, 60 * config.stages.minutes)


def dense_bytes(anatomy: Anatomy) -> int:
    """The size of the dense weights of all linears."""
    return numbers(anatomy.linears.values()) * element(anatomy)


def saved(anatomy: Anatomy, config: PruneConfig) -> int:
    """What a journal keeps of the training of the whole model: the state of the optimiser."""
    linears = anatomy.linears.values()
    if not config.lean:
        return round(numbers(linears) * FULL_SAVED)
    return round(numbers(linears) * (LEAN + OTHER_HALF)) + sum(map(_scales, linears))


def best(anatomy: Anatomy) -> int:
    """The size of the kept weights."""
    return numbers(anatomy.linears.values()) * element(anatomy) // 2


def _optimiser(anatomy: Anatomy, config: PruneConfig) -> int:
    linears = anatomy.linears.values()
    if not config.lean:
        return round(numbers(linears) * FULL)
    may_be_int8 = config.values == "int8" or (config.values is None and config.chooses)
    halved = dtype(anatomy) == anatomy.stored_dtype == torch.bfloat16 and not may_be_int8
    return round(numbers(linears) * (LEAN if halved else LEAN + OTHER_HALF)) + sum(map(_scales, linears))


def _scales(linear: nn.Linear) -> int:
    """The float32 scales of both moments, one for each block of kept weights of a row."""
    columns = linear.in_features * KEEP // GROUP
    return 2 * 4 * linear.out_features * columns // block_columns(columns)


def _step_bytes(linears: Iterable[nn.Linear], anatomy: Anatomy, config: PruneConfig, lean: bool) -> int:
    """One gradient, and one more in the making; and what a step takes of the weights that it works on at a time."""
    largest = max(linear.weight.numel() for linear in linears)
    some = min(largest, CHUNK["cpu" if config.device == "cpu" else "cuda"])
    step = some * LEAN_STEP if lean else largest * FULL_STEP
    return 2 * largest * element(anatomy) + round(step)


def _activations(anatomy: Anatomy, config: PruneConfig) -> int:
    each = [for_backward(block, anatomy, config) for block in anatomy.blocks]
    if not config.recompute:
        return sum(each)
    sizes: Any = anatomy.model.config
    return max(each) + len(each) * tokens_of_a_step(config) * int(sizes.hidden_size) * element(anatomy)


def _logits(anatomy: Anatomy, config: PruneConfig) -> int:
    """The logits of both models, their slope, and one more of that size in between."""
    slope = 4 if dtype(anatomy) == torch.float16 else element(anatomy)  # see `divergence`
    sizes: Any = anatomy.model.config
    return tokens_of_a_step(config) * int(sizes.vocab_size) * (3 * element(anatomy) + slope)


def for_backward(block: Block, anatomy: Anatomy, config: PruneConfig) -> int:
    """What a step keeps of a block for its backward pass.

    Of every token the inputs and outputs of each linear, and two norms; of every layer the weights of attention.
    """
    sizes: Any = anatomy.model.config
    kept = sum(linear.in_features + linear.out_features for linear in passed(block, anatomy))
    tokens = tokens_of_a_step(config)
    few = min(attention.SAVED_BYTES, sizes.num_attention_heads * tokens * config.length * element(anatomy))
    weights = eager_weights(anatomy, config, tokens) or int(few)
    return tokens * (kept * element(anatomy) + NORMS * sizes.hidden_size) + weights


def passed(block: Block, anatomy: Anatomy) -> list[nn.Linear]:
    """The linears of a block that a token passes: of the experts, as many as are chosen for it."""
    outside, experts = parted(block)
    chosen: int = getattr(anatomy.model.config, "num_experts_per_tok", 0)
    return outside + [linear for expert in experts[:chosen] for linear in expert]


def parted(block: Block) -> tuple[list[nn.Linear], list[list[nn.Linear]]]:
    """The linears outside the experts, and those of each expert."""
    outside = [linear for name, linear in block.linears.items() if block.expert_of(name) is None]
    experts = [expert for each in block.experts.values() for expert in each]
    return outside, [[part for part in expert.modules() if isinstance(part, nn.Linear)] for expert in experts]


def eager_weights(anatomy: Anatomy, config: PruneConfig, tokens: int) -> int:
    """The weights of `eager` attention in one block: in the model's dtype, as float32 softmax, and cast back."""
    if not is_eager(anatomy):
        return 0
    heads: int = anatomy.model.config.num_attention_heads  # type: ignore[union-attr, assignment]
    return heads * tokens * config.length * (4 + 2 * element(anatomy))


def is_eager(anatomy: Anatomy) -> bool:
    implementation: str = anatomy.model.config._attn_implementation  # type: ignore[union-attr, assignment]
    return implementation == "eager"


def tokens_of_a_step(config: PruneConfig) -> int:
    return max(config.length, step_tokens(config.text_tokens))  # a step has whole samples


def numbers(linears: Iterable[nn.Linear]) -> int:
    """How many weights some linears have."""
    return sum(linear.weight.numel() for linear in linears)


def element(anatomy: Anatomy) -> int:
    """The bytes of a number in the dtype that forwards run in."""
    return dtype(anatomy).itemsize


def dtype(anatomy: Anatomy) -> torch.dtype:
    return next(iter(anatomy.linears.values())).weight.dtype
