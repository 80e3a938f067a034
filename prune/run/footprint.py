"""The memory and disk that a run takes: an estimate from above, the sum of what it holds at one time.

All the time it holds the process and the model; lm_head in int8, which is made at the end, counts with it. Beside them
it holds what the most demanding of its stages does:
- writing text: the keys and values of the samples that are being written;
- pruning: the Hessians of a block (of each expert, too), the activations of one batch, and the factor of the widest
  Hessian; all of these together, for the allocator does not reuse all memory of one for another;
- training, of one block or of all: see `training_bytes`.
With pruning and training it also holds the hidden states of the whole text (of the pruned model and, where the dense
one is followed, of that) and the masks of its batches, where attention needs any. Hidden states go to disk where the
limit asks for it.

Where the whole model is trained and memory is short, two things are given up, in this order: blocks are computed again
on the way back, which takes time and changes no bit, then moments are held in 8 bits, which changes numbers.
"""

from collections import Counter
from dataclasses import replace
from typing import Any, NamedTuple

from twofour.prune.config import PruneConfig
from twofour.prune.errors import InputError
from twofour.prune.machine.available import device_bytes, host_bytes
from twofour.prune.model import head
from twofour.prune.model.anatomy import Anatomy, Block
from twofour.prune.model.batches import BATCH_TOKENS
from twofour.prune.recovery.training import step_tokens
from twofour.prune.run import training_bytes
from twofour.prune.run.training_bytes import Terms, eager_weights, element, is_eager, numbers, parted, passed
from twofour.prune.text import plain, sources

PROCESS_BYTES = 720 << 20  # Python, torch and transformers, and what the allocator keeps
FACTORS = 2  # float32 matrices [in, in] beside the Hessian in `inverse_factor`: two of lower, inverse, factor at a time
WEIGHTS = 6  # float32 matrices [out, in] in `refit`: target, kept, slope, direction, bent, downhill
WHOLE = "training the model"
PACKED_SHARE = (2 + 1 / 2) / 4  # of four 16-bit weights: two values, and a byte for positions, which take half of it


class Peak(NamedTuple):
    """The stage that holds the most, and what it holds, in bytes."""

    stage: str
    terms: Terms

    @property
    def size(self) -> int:
        return sum(self.terms.values())

    def __str__(self) -> str:
        largest = sorted(self.terms.items(), key=lambda term: -term[1])
        return f"{self.stage}: " + ", ".join(f"{name} {_gib(size)}" for name, size in largest if size)


def memory_bytes(anatomy: Anatomy, config: PruneConfig, on_disk: bool = False) -> int:
    """Estimate the most memory that a run needs of the host. `on_disk`: the hidden states are."""
    return memory(anatomy, config, on_disk).size


def memory(anatomy: Anatomy, config: PruneConfig, on_disk: bool = False) -> Peak:
    """Say what a run holds in the memory of the host when it holds the most."""
    held = {"process": PROCESS_BYTES, "model": model_bytes(anatomy)}
    if config.lm_head == "int8":
        held["lm_head in int8"] = head.int8_bytes(anatomy.model)
    if not config.stages.needs_text:
        return Peak("pruning", held | {"solver": WEIGHTS * 4 * _largest(anatomy)})
    text = {"masks": _masks(anatomy, config), "hidden states": 0 if on_disk else states_bytes(anatomy, config)}
    stages = [("writing text", _sampling(anatomy, config))]
    if config.device != "cpu":  # the device has the rest; the host writes text where that has no room, and saves
        saved = training_bytes.saved(anatomy, config) if config.stages.trains_whole else 0
        stream = training_bytes.of_a_stream(anatomy, config)
        stages.append(("saving the training", text | stream | {"a copy of the optimiser": saved}))
    else:
        stream = training_bytes.of_a_stream(anatomy, config)
        stages += [
            (stage, text | (stream if stage == WHOLE else {}) | terms) for stage, terms in _work(anatomy, config)
        ]
    return _peak(held, stages)


def device_memory(anatomy: Anatomy, config: PruneConfig) -> Peak:
    """Say what a run holds on its GPU when it holds the most."""
    model = {"model": model_bytes(anatomy)}
    block = {"a block": max(sum(part.nbytes for part in each.module.parameters()) for each in anatomy.blocks)}
    stages = [(stage, (model if stage == WHOLE else block) | terms) for stage, terms in _work(anatomy, config)]
    return _peak({}, stages)


def _work(anatomy: Anatomy, config: PruneConfig) -> list[tuple[str, Terms]]:
    """What pruning a block, training it and training the whole hold beside the model and the text."""
    stages = [("pruning a block", _pruning(anatomy, config))]
    if config.stages.block_passes:
        each = [training_bytes.of_a_block(block, anatomy, config) for block in anatomy.blocks]
        stages.append(("training a block", max(each, key=lambda terms: sum(terms.values()))))
    if config.stages.trains_whole:
        writing = _sampling(anatomy, config) if config.stages.streams else {}
        stages.append((WHOLE, training_bytes.of_the_model(anatomy, config) | writing))
    if config.chooses:
        stages.append(("judging linears", training_bytes.of_judging(anatomy, config)))
    return stages


def teacher(anatomy: Anatomy, config: PruneConfig) -> str:
    """Decide where the dense weights of a stream wait: on the device, unless they have no room there."""
    if config.device == "cpu":
        return "cpu"
    needed = device_memory(anatomy, config).size + training_bytes.dense_bytes(anatomy)
    return config.device if needed <= device_bytes(config.device) else "cpu"


def _peak(held: Terms, stages: list[tuple[str, Terms]]) -> Peak:
    return max((Peak(stage, held | terms) for stage, terms in stages), key=lambda peak: peak.size)


def affordable(anatomy: Anatomy, config: PruneConfig) -> tuple[PruneConfig, list[str]]:
    """Decide how kept weights are trained: all together where memory allows it; else block by block, and say why."""
    if config.train == "blocks" or not config.stages.trains_whole:
        return config, []
    ways = [replace(config, lean=lean, recompute=recompute) for lean in (False, True) for recompute in (False, True)]
    shortages = [_shortage(anatomy, way) for way in ways]
    fits = [way for way, shortage in zip(ways, shortages, strict=True) if shortage is None]
    if not fits and config.train == "auto":
        return replace(config, train="blocks"), [f"kept weights trained block by block: all at once {shortages[-1]}"]
    chosen = fits[0] if fits else ways[-1]
    return chosen, [f"Adam's moments held in 8 bits: in float32 training {shortages[1]}"] if chosen.lean else []


def _shortage(anatomy: Anatomy, config: PruneConfig) -> str | None:
    """Say what memory is short where the whole model is trained as in this config; None: none is."""
    needs = [(memory_bytes(anatomy, config, on_disk=True), _limit_bytes(config), "memory")]
    if config.device != "cpu":
        needs.append((device_memory(anatomy, config).size, device_bytes(config.device), config.device))
    for needed, limit, place in needs:
        if needed > limit:
            return f"would have needed {_gib(needed)} of {place}, and {_gib(limit)} could be had"
    return None


def _limit_bytes(config: PruneConfig) -> int:
    return config.memory_limit_bytes or host_bytes()


def writer(anatomy: Anatomy, config: PruneConfig) -> str:
    """Decide where the model writes its text: on the device, unless the whole model has no room there."""
    if config.device == "cpu" or not sources.written(config):
        return config.device
    needed = model_bytes(anatomy) + sum(_sampling(anatomy, config).values())
    return config.device if needed <= device_bytes(config.device) else "cpu"


def judging_device(anatomy: Anatomy, config: PruneConfig) -> str:
    """Return where mixtures are judged: on the device, unless the whole model has no room there."""
    if config.device == "cpu":
        return config.device
    needed = model_bytes(anatomy) + sum(training_bytes.of_judging(anatomy, config).values())
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
    """The size of the hidden states of the text: of the pruned model and, where the dense one is followed, of that."""
    sizes: Any = anatomy.model.config
    copies = 2 if config.stages.follows_dense else 1
    return copies * config.text_tokens * int(sizes.hidden_size) * element(anatomy)


def disk_bytes(anatomy: Anatomy, config: PruneConfig, on_disk: bool = False) -> int:
    """Estimate the disk that a run needs: its result, and in its journal the pruned blocks, states and training."""
    pruned = numbers(anatomy.linears.values()) * anatomy.stored_dtype.itemsize
    if not config.stages.needs_text:
        return result_bytes(anatomy, config) + pruned
    copies = 3 if on_disk else 2  # in the journal behind the last block and behind this one; and those in use
    kept = training_bytes.saved(anatomy, config) + training_bytes.best(anatomy)
    training = 2 * kept if config.stages.trains_whole else 0  # this save, and the one before it
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


def _sampling(anatomy: Anatomy, config: PruneConfig) -> Terms:
    """What writing text holds: keys and values; in `decoding.draw`, float32, logits, softmax, sums, one in between."""
    each = [Terms()]
    for texts, tokens in sources.written(config):
        some = min(texts, plain.batch_samples(anatomy.model, tokens))
        cache = some * plain.cache_bytes(anatomy.model, tokens)
        each.append({"keys and values": cache, "probabilities": 4 * 4 * some * _vocabulary(anatomy)})
    return max(each, key=lambda terms: sum(terms.values()))


def _pruning(anatomy: Anatomy, config: PruneConfig) -> Terms:
    widest = max(linear.in_features for linear in anatomy.linears.values())
    return {
        "Hessians": max(map(_hessians, anatomy.blocks)),
        "inputs of a batch": _batch(anatomy, config),
        "factors": FACTORS * 4 * widest**2,
        "solver": WEIGHTS * 4 * _largest_together(anatomy),
    }


def _hessians(block: Block) -> int:
    """The Hessians of a block, float32 [in, in]: one for each width of input, and one more, for o_proj.

    q, k and v share one; o_proj has its own, often of the same width. Each expert has its own.
    """
    outside, experts = parted(block)
    widths = [linear.in_features for linear in outside]
    ours = sum(width**2 for width in set(widths)) + min(widths) ** 2
    return 4 * (ours + sum(width**2 for expert in experts for width in {linear.in_features for linear in expert}))


def _batch(anatomy: Anatomy, config: PruneConfig) -> int:
    """What `collect` keeps of one batch: the inputs of all linears of a block, and one of them in float32."""
    tokens = min(config.text_tokens, max(config.length, BATCH_TOKENS))
    widths = [[linear.in_features for linear in passed(block, anatomy)] for block in anatomy.blocks]
    inputs = max(tokens * (sum(each) * element(anatomy) + 4 * max(each)) for each in widths)
    return inputs + eager_weights(anatomy, config, tokens)


def _masks(anatomy: Anatomy, config: PruneConfig) -> int:
    """The masks that all batches hold, one for each kind of attention.

    `eager` attention has one in any case: a number for each pair of tokens, for each sample. Else there are masks only
    for texts that are longer than a sliding window: a bool for each pair of places, for each batch.
    """
    sizes: Any = anatomy.model.config
    window = getattr(sizes, "sliding_window", None)
    kinds = set(getattr(sizes, "layer_types", None) or ["sliding_attention" if window else "full_attention"])
    if is_eager(anatomy):
        return len(kinds) * config.text_tokens * config.length * element(anatomy)
    if "sliding_attention" not in kinds or window is None or config.length <= window:
        return 0
    size = step_tokens(config.text_tokens) if config.stages.follows_dense else BATCH_TOKENS
    batches = -(-config.text_samples // max(1, size // config.length))
    return batches * config.length**2


def _largest(anatomy: Anatomy) -> int:
    return max(linear.weight.numel() for linear in anatomy.linears.values())


def _largest_together(anatomy: Anatomy) -> int:
    """The most weights that are solved as one: linears of one module and one width, which may share their inputs."""
    together: Counter[tuple[str, int]] = Counter()
    for name, linear in anatomy.linears.items():
        together[name.rpartition(".")[0], linear.in_features] += linear.weight.numel()
    return max(together.values())


def _vocabulary(anatomy: Anatomy) -> int:
    sizes: Any = anatomy.model.config
    return int(sizes.vocab_size)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
