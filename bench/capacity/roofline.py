"""Hardware that nobody has measured: a first guess from what a model reads and computes, and from a GPU's data sheet.

A step reads all weights once, and the keys and values of what its sequences have said. It computes two operations for
each weight and token, and four for each pair of tokens that attend to one another, head and dimension. Of the
bandwidth and of the rate on paper a part is reached:

- READS, 0.73 of the bandwidth, and LAYER_S, 20 us for each layer: what fits Llama 2 7B in bfloat16 on an A100, 104.9
  tokens/s by gpt-fast's README. By the same README, int8 is estimated 15 % too fast at 7B, 1 % at 70B.
- COMPUTES, 0.5 of the dense rate, and ATTENDS, 0.4 of it: assumptions, as are FIRST_S and BETWEEN_S. 2:4 takes 0.6 of
  the dense time (`prune.policy.cards`); int8 is multiplied as 16 bits are.

A model of steps adds where the hardware overlaps, so that it errs to the slow side. Decoding takes as long per sequence
in all arms: few tokens gain nothing from sparse tensor cores. In the draws, reads and computing are off by up to ERROR
either way, each by itself. It is an estimate, and every profile of it says so.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from twofour.bench.capacity.hull import Hull, around
from twofour.bench.capacity.profile import Around, EngineLimits, Profile, Replica
from twofour.bench.capacity.step_model import StepModel
from twofour.prune.errors import InputError, ModelError, in_a_line

if TYPE_CHECKING:
    from twofour.prune.format.schemes import Scheme
    from twofour.prune.policy.cards import Card

READS, COMPUTES, ATTENDS = 0.73, 0.5, 0.4  # of what the data sheet says
LAYER_S = 20e-6  # between products
FIRST_S, BETWEEN_S = 0.005, 0.0005
ERROR = 1.6  # a factor, either way
DRAWS = 40
SEQUENCES, STEP_TOKENS, BLOCK = 256, 2048, 16  # usual settings of an engine
CACHE, OWN_GIB = 0.9, 2.0  # of the memory that the engine takes; of that, for what is neither weight nor cache
BITS = {"dense": 16, "2:4": 16, "dense-int8": 8, "2:4-int8": 8}
ARMS = {"int8": "dense-int8"}


@dataclass(frozen=True)
class Sizes:
    """Of a dense model with weights of 16 bits. matrices: (rows, columns) of the linears that can be 2:4, each."""

    name: str
    matrices: Sequence[tuple[int, int]]
    head: int  # numbers of lm_head, or of the embedding in its place
    others: int  # of all that is read in a step beside these
    embedding: int  # of what is stored and not read: a step looks single rows up
    cached: int  # that the keys and values of a token are
    layers: int
    attended: int  # heads times their dimension, in all layers
    context: int

    @property
    def linear(self) -> int:
        return sum(rows * columns for rows, columns in self.matrices)


def sizes(model: Path) -> Sizes:
    """By the config.json of a folder alone. Raises ModelError for what this does not describe."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from twofour.prune.format.folder import read_config
    from twofour.prune.model.anatomy import cached_numbers, head_dim

    read_config(model)
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        with torch.device("meta"):
            made = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # of a dozen kinds: a config.json can say anything
        raise ModelError(f"{model} describes no model that transformers makes ({in_a_line(error)})") from None
    if [name for name, each in made.named_parameters() if each.ndim > 2]:
        raise ModelError(f"{model} has experts or convolutions, of which a step reads some; run bench profile")
    head, words = made.get_output_embeddings(), made.get_input_embeddings()
    linears = [each for each in made.modules() if isinstance(each, torch.nn.Linear) and each is not head]
    matrices = [(each.out_features, each.in_features) for each in linears]
    embedding = 0 if head.weight is words.weight else words.weight.numel()
    whole = sum(each.numel() for each in made.parameters())
    text = config.get_text_config()
    return Sizes(
        model.resolve().name,
        matrices,
        head.weight.numel(),
        whole - sum(rows * columns for rows, columns in matrices) - head.weight.numel() - embedding,
        embedding,
        cached_numbers(text),
        text.num_hidden_layers,
        text.num_hidden_layers * text.num_attention_heads * head_dim(text),
        text.max_position_embeddings,
    )


def estimates(model: Path, gpus: Sequence[str], arms: Sequence[str]) -> list[Profile]:
    """One for each GPU and arm, named as H100-2:4."""
    from twofour.prune.policy.cards import known

    found = sizes(model)
    return [estimate(found, gpu, known(gpu), scheme(arm)) for gpu in gpus for arm in arms]


def scheme(arm: str) -> "Scheme":
    from twofour.prune.format.schemes import Scheme

    named: Any = ARMS.get(arm, arm)
    if named not in get_args(Scheme):
        raise InputError(f"no arm is named {arm!r}; --arm takes {', '.join(get_args(Scheme))}, and int8 for dense-int8")
    chosen: Scheme = named
    return chosen


def estimate(model: Sizes, gpu: str, card: "Card", arm: "Scheme") -> Profile:
    steps, limits = _steps(model, card, arm), _limits(model, gpu, card, arm)
    return Profile(
        f"{gpu}-{arm}",
        model.name,
        Replica(limits, steps, Around(FIRST_S, BETWEEN_S)),
        _hull(limits),
        source="estimate",
        draws=draws(steps),
        error=ERROR - 1,
        sparse=arm.startswith("2:4"),
        weight_bits=BITS[arm],
        weight_bytes=_stored(model, arm),
        notes=(
            f"estimate, not measured: from the data sheet of {gpu}, off by a factor of {ERROR:g} either way, or more",
        ),
    )


def _steps(model: Sizes, card: "Card", arm: "Scheme") -> StepModel:
    from twofour.prune.policy.cards import SPARSE_SHARE

    read_s, compute_s = 1 / (READS * card.bytes_per_s), 2 / (COMPUTES * card.flop_per_s)
    read = _stored(model, arm) - 2 * model.embedding
    share = SPARSE_SHARE if arm.startswith("2:4") else 1.0
    return StepModel(
        fixed_s=read * read_s + model.layers * LAYER_S,
        prefill_s=model.linear * compute_s * share,
        decode_s=(model.linear + model.head) * compute_s,
        kv_s=2 * model.cached * read_s,
        pair_s=4 * model.attended / (ATTENDS * card.flop_per_s),
    )


def _stored(model: Sizes, arm: "Scheme") -> int:
    """Bytes of all weights; those that are no linears of the blocks have 16 bits."""
    import torch

    from twofour.prune.format.schemes import scheme_bytes

    linear = sum(scheme_bytes(arm, rows, columns, torch.bfloat16) for rows, columns in model.matrices)
    return linear + 2 * (model.head + model.others + model.embedding)


def _limits(model: Sizes, gpu: str, card: "Card", arm: "Scheme") -> EngineLimits:
    weights, memory = _stored(model, arm), card.memory_gib * 2**30
    room = CACHE * memory - OWN_GIB * 2**30 - weights
    blocks = int(room // (2 * model.cached * BLOCK))
    if blocks < 1:
        raise InputError(
            f"{model.name} as {arm} has {weights / 2**30:.1f} GiB of weights, and a {gpu} has {card.memory_gib:g} GiB: "
            "no cache fits beside them; leave that GPU or that arm away"
        )
    context = min(model.context, blocks * BLOCK)
    return EngineLimits(SEQUENCES, STEP_TOKENS, blocks, BLOCK, context)


def _hull(limits: EngineLimits) -> Hull:
    """Nothing was measured, so nothing is beyond it: all steps that the engine can take."""
    most = limits.kv_blocks * limits.block_size * limits.max_num_seqs  # as many may share a beginning
    corners = product((0, limits.max_num_seqs), (0, limits.max_num_batched_tokens), (0, most))
    return around(*zip(*corners, strict=True))


def draws(steps: StepModel, seed: int = 0) -> list[StepModel]:
    """The same, where reads are off by one factor and computing by another."""
    draw, found = random.Random(seed), []
    for _ in range(DRAWS):
        reads, computes = (ERROR ** draw.uniform(-1, 1) for _ in range(2))
        found.append(
            replace(
                steps,
                fixed_s=steps.fixed_s * reads,
                kv_s=steps.kv_s * reads,
                prefill_s=steps.prefill_s * computes,
                decode_s=steps.decode_s * computes,
                pair_s=steps.pair_s * computes,
            )
        )
    return found
