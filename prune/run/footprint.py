"""The memory and disk that a run takes: an estimate from above, the sum of what it holds at one time.

All the time it holds the process and the model; lm_head in int8, which is made at the end, counts with it. Beside them
it holds the largest of
- writing text: the keys and values of the samples that are being written;
- pruning: the Hessians of a block (of each expert, too), the activations of one batch, and the factor of the widest
  Hessian; all of these together, for the allocator does not reuse all memory of one for another;
- training: masters, moments and gradients, of one block or of all, and what a step keeps for its backward pass.
With pruning and training it also holds the hidden states of the whole text (of the pruned model and, where weights are
trained, of the dense one) and the masks of its batches, where attention needs any. Hidden states go to disk where the
limit asks for it.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from twofour.prune.config import PruneConfig
from twofour.prune.errors import InputError
from twofour.prune.machine.available import device_bytes, host_bytes
from twofour.prune.model import attention, head
from twofour.prune.model.anatomy import Anatomy, Block
from twofour.prune.model.batches import BATCH_TOKENS
from twofour.prune.recovery.training import step_tokens
from twofour.prune.text import corpus, sources

PROCESS_BYTES = 600 << 20  # Python, torch and transformers, and what the allocator keeps
FACTORS = 2  # float32 matrices [in, in] beside the Hessian in `inverse_factor`: two of lower, inverse, factor at a time
WEIGHTS = 6  # float32 matrices [out, in] in `refit`: target, kept, slope, direction, bent, downhill
SAVED_BYTES = (4 + 4 + 4) / 2  # per weight, as every second is kept: its master and two moments, float32
TRAINED_BYTES = SAVED_BYTES + 4 / 2  # the same, and its place, int32
NORMS = 2 * (4 + 4 + 2)  # per number, in the two norms of a block: as float32, normalised in float32, and in 16 bits
PACKED_SHARE = (2 + 1 / 2) / 4  # of four 16-bit weights: two values, and a byte for positions, which take half of it


def memory_bytes(anatomy: Anatomy, config: PruneConfig, on_disk: bool = False) -> int:
    """Estimate the most memory that a run needs. `on_disk`: the hidden states are."""
    held = PROCESS_BYTES + model_bytes(anatomy) + (head.int8_bytes(anatomy.model) if config.lm_head == "int8" else 0)
    if not config.stages.needs_text:
        return held + WEIGHTS * 4 * _largest(anatomy)
    states = _masks(anatomy, config) + (0 if on_disk else states_bytes(anatomy, config))
    sampling = _sampling(anatomy, config)
    if config.device != "cpu":  # the device has the rest; the host writes text where that has no room, and saves
        saved = round(numbers(anatomy.linears.values()) * SAVED_BYTES) if config.stages.model_passes else 0
        return held + max(sampling, states + saved)
    pruning = max(map(_hessians, anatomy.blocks)) + _batch(anatomy, config) + _solving(anatomy)
    walking = states + max(pruning, _training(anatomy, config) if config.stages.block_passes else 0)
    whole = states + _distilling(anatomy, config) if config.stages.model_passes else 0
    judging = states + _judging(anatomy, config) if config.chooses else 0
    return held + max(sampling, walking, whole, judging)


def affordable(anatomy: Anatomy, config: PruneConfig) -> tuple[PruneConfig, list[str]]:
    """Decide how kept weights are trained: all together where memory allows it; else block by block, and say why."""
    if config.train != "auto" or not config.stages.model_passes:
        return config, []
    needs = [(memory_bytes(anatomy, config, on_disk=True), _limit_bytes(config), "memory")]
    if config.device != "cpu":
        needs.append((model_bytes(anatomy) + _distilling(anatomy, config), device_bytes(config.device), config.device))
    for needed, limit, place in needs:
        if needed > limit:
            fallback = (
                f"kept weights trained block by block: all at once would have needed {_gib(needed)} of {place}, and "
                f"{_gib(limit)} could be had"
            )
            return replace(config, train="blocks"), [fallback]
    return config, []


def _limit_bytes(config: PruneConfig) -> int:
    return config.memory_limit_bytes or host_bytes()


def writer(anatomy: Anatomy, config: PruneConfig) -> str:
    """Decide where the model writes its text: on the device, unless the whole model has no room there."""
    if config.device == "cpu" or not sources.written(config):
        return config.device
    needed = model_bytes(anatomy) + _sampling(anatomy, config)
    return config.device if needed <= device_bytes(config.device) else "cpu"


def judging_device(anatomy: Anatomy, config: PruneConfig) -> str:
    """Return where mixtures are judged: on the device, unless the whole model has no room there."""
    if config.device == "cpu":
        return config.device
    needed = model_bytes(anatomy) + _judging(anatomy, config)
    return config.device if needed <= device_bytes(config.device) else "cpu"


def states_on_disk(anatomy: Anatomy, config: PruneConfig) -> bool:
    """Tell whether hidden states must go to disk: to keep the limit, or because there is no more memory.

    Raises InputError where even that does not keep a limit that was given.
    """
    limit = _limit_bytes(config)
    if memory_bytes(anatomy, config) <= limit:
        return False
    least = memory_bytes(anatomy, config, on_disk=True)
    if config.memory_limit_bytes and least > limit:
        raise InputError(
            f"the run needs {_gib(least)} of memory even with hidden states on disk, {_gib(model_bytes(anatomy))} of "
            f"them for the model, the limit is {_gib(limit)}; give a higher limit, a faster preset or shorter samples"
        )
    return True


def model_bytes(anatomy: Anatomy) -> int:
    """The size of the model."""
    return sum(parameter.nbytes for parameter in anatomy.model.parameters())


def states_bytes(anatomy: Anatomy, config: PruneConfig) -> int:
    """The size of the hidden states of the text: of the pruned model and, where weights are trained, of the dense."""
    sizes: Any = anatomy.model.config
    copies = 2 if config.stages.trains else 1
    return copies * config.text_tokens * int(sizes.hidden_size) * _element(anatomy)


def disk_bytes(anatomy: Anatomy, config: PruneConfig, on_disk: bool = False) -> int:
    """Estimate the disk that a run needs: its result, and in its journal the pruned blocks, states and training."""
    pruned = numbers(anatomy.linears.values()) * anatomy.stored_dtype.itemsize
    if not config.stages.needs_text:
        return result_bytes(anatomy, config) + pruned
    copies = 3 if on_disk else 2  # in the journal behind the last block and behind this one; and those in use
    kept = numbers(anatomy.linears.values()) * (SAVED_BYTES + _element(anatomy) / 2)  # and the best values so far
    training = round(2 * kept) if config.stages.model_passes else 0  # this save, and the one before it
    return result_bytes(anatomy, config) + pruned + copies * states_bytes(anatomy, config) + training


def result_bytes(anatomy: Anatomy, config: PruneConfig) -> int:
    """Estimate the size of the result."""
    linears = sum(linear.weight.nbytes for linear in anatomy.linears.values())
    saved = round(linears * (1 - PACKED_SHARE)) if config.format == "packed" and not config.keep_dense else 0
    added = head.added_bytes(anatomy.model) if config.lm_head == "int8" else 0
    return model_bytes(anatomy) - saved + added


def more_results_bytes(anatomy: Anatomy, config: PruneConfig) -> int:
    """Estimate the size of all results but one."""
    return max(0, len(config.frontier) - 1) * result_bytes(anatomy, config)


def _sampling(anatomy: Anatomy, config: PruneConfig) -> int:
    most = 0
    for texts, tokens in sources.written(config):
        some = min(texts, corpus.batch_samples(anatomy.model, tokens))
        # In `decoding.draw`, float32: logits, their softmax, its sums, and one in between.
        probabilities = 4 * 4 * some * _vocabulary(anatomy)
        most = max(most, some * corpus.cache_bytes(anatomy.model, tokens) + probabilities)
    return most


def _hessians(block: Block) -> int:
    """The Hessians of a block, float32 [in, in]: one for each width of input, and one more, for o_proj.

    q, k and v share one; o_proj has its own, often of the same width. Each expert has its own.
    """
    outside, experts = _linears(block)
    widths = [linear.in_features for linear in outside]
    ours = sum(width**2 for width in set(widths)) + min(widths) ** 2
    return 4 * (ours + sum(width**2 for expert in experts for width in {linear.in_features for linear in expert}))


def _batch(anatomy: Anatomy, config: PruneConfig) -> int:
    """What `collect` keeps of one batch: the inputs of all linears of a block, and one of them in float32."""
    tokens = min(config.text_tokens, max(config.length, BATCH_TOKENS))
    passed = [[linear.in_features for linear in _passed(block, anatomy)] for block in anatomy.blocks]
    inputs = max(tokens * (sum(widths) * _element(anatomy) + 4 * max(widths)) for widths in passed)
    return inputs + _eager_weights(anatomy, config, tokens)


def _passed(block: Block, anatomy: Anatomy) -> list[nn.Linear]:
    """The linears of a block that a token passes: of the experts, as many as are chosen for it."""
    outside, experts = _linears(block)
    chosen: int = getattr(anatomy.model.config, "num_experts_per_tok", 0)
    return outside + [linear for expert in experts[:chosen] for linear in expert]


def _linears(block: Block) -> tuple[list[nn.Linear], list[list[nn.Linear]]]:
    """The linears outside the experts, and those of each expert."""
    outside = [linear for name, linear in block.linears.items() if block.expert_of(name) is None]
    experts = [expert for each in block.experts.values() for expert in each]
    return outside, [[part for part in expert.modules() if isinstance(part, nn.Linear)] for expert in experts]


def _solving(anatomy: Anatomy) -> int:
    widest = max(linear.in_features for linear in anatomy.linears.values())
    return FACTORS * 4 * widest**2 + WEIGHTS * 4 * _largest_together(anatomy)


def _training(anatomy: Anatomy, config: PruneConfig) -> int:
    return max(
        round(_kept(block.linears.values(), anatomy)) + _for_backward(block, anatomy, config)
        for block in anatomy.blocks
    )


def _distilling(anatomy: Anatomy, config: PruneConfig) -> int:
    """Kept weights in training, and a step."""
    return round(_kept(anatomy.linears.values(), anatomy)) + _step(anatomy, config)


def _judging(anatomy: Anatomy, config: PruneConfig) -> int:
    """A step, whose gradients are used and freed one by one; that one with its weights on both ends, in float32."""
    return _step(anatomy, config) + (4 * 4 + _element(anatomy)) * _largest(anatomy)


def _step(anatomy: Anatomy, config: PruneConfig) -> int:
    """The logits of both models, their slope, one more of that size in between; and what goes back through blocks."""
    slope = 4 if _dtype(anatomy) == torch.float16 else _element(anatomy)  # see `divergence`
    logits = _step_tokens(config) * _vocabulary(anatomy) * (3 * _element(anatomy) + slope)
    return logits + sum(_for_backward(block, anatomy, config) for block in anatomy.blocks)


def _kept(linears: Iterable[nn.Linear], anatomy: Anatomy) -> float:
    """Of kept weights the masters, moments, places and best values so far; of all weights the gradients."""
    return numbers(linears) * (TRAINED_BYTES + _element(anatomy) / 2 + _element(anatomy))


def _for_backward(block: Block, anatomy: Anatomy, config: PruneConfig) -> int:
    """What a step keeps of a block for its backward pass.

    Of every token the inputs and outputs of each linear, and two norms; of every layer the weights of attention.
    """
    sizes: Any = anatomy.model.config
    kept = sum(linear.in_features + linear.out_features for linear in _passed(block, anatomy))
    tokens = _step_tokens(config)
    few = min(attention.SAVED_BYTES, sizes.num_attention_heads * tokens * config.length * _element(anatomy))
    weights = _eager_weights(anatomy, config, tokens) or int(few)
    return tokens * (kept * _element(anatomy) + NORMS * sizes.hidden_size) + weights


def _eager_weights(anatomy: Anatomy, config: PruneConfig, tokens: int) -> int:
    """The weights of `eager` attention in one block: in the model's dtype, as float32 softmax, and cast back."""
    if not _eager(anatomy):
        return 0
    heads: int = anatomy.model.config.num_attention_heads  # type: ignore[union-attr, assignment]
    return heads * tokens * config.length * (4 + 2 * _element(anatomy))


def _masks(anatomy: Anatomy, config: PruneConfig) -> int:
    """The masks that all batches hold, one for each kind of attention.

    `eager` attention has one in any case: a number for each pair of tokens, for each sample. Else there are masks only
    for texts that are longer than a sliding window: a bool for each pair of places, for each batch.
    """
    sizes: Any = anatomy.model.config
    window = getattr(sizes, "sliding_window", None)
    kinds = set(getattr(sizes, "layer_types", None) or ["sliding_attention" if window else "full_attention"])
    if _eager(anatomy):
        return len(kinds) * config.text_tokens * config.length * _element(anatomy)
    if "sliding_attention" not in kinds or window is None or config.length <= window:
        return 0
    size = step_tokens(config.text_tokens) if config.stages.trains else BATCH_TOKENS
    batches = -(-config.text_samples // max(1, size // config.length))
    return batches * config.length**2


def _eager(anatomy: Anatomy) -> bool:
    implementation: str = anatomy.model.config._attn_implementation  # type: ignore[union-attr, assignment]
    return implementation == "eager"


def _step_tokens(config: PruneConfig) -> int:
    return max(config.length, step_tokens(config.text_tokens))  # a step has whole samples


def numbers(linears: Iterable[nn.Linear]) -> int:
    """How many weights some linears have."""
    return sum(linear.weight.numel() for linear in linears)


def _largest(anatomy: Anatomy) -> int:
    return max(linear.weight.numel() for linear in anatomy.linears.values())


def _largest_together(anatomy: Anatomy) -> int:
    """The most weights that are solved as one: linears of one module and one width, which may share their inputs."""
    together: Counter[tuple[str, int]] = Counter()
    for name, linear in anatomy.linears.items():
        together[name.rpartition(".")[0], linear.in_features] += linear.weight.numel()
    return max(together.values())


def _element(anatomy: Anatomy) -> int:
    """The bytes of a number in the dtype that forwards run in."""
    return _dtype(anatomy).itemsize


def _dtype(anatomy: Anatomy) -> torch.dtype:
    return next(iter(anatomy.linears.values())).weight.dtype


def _vocabulary(anatomy: Anatomy) -> int:
    sizes: Any = anatomy.model.config
    return int(sizes.vocab_size)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
