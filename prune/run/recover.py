"""The walked model trained as a whole: again on the text that was walked on, or on a stream of fresh text."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from twofour.prune.model.anatomy import dissect, load
from twofour.prune.model.batches import Batch
from twofour.prune.progress import Progress
from twofour.prune.recovery.dense import DenseWeights
from twofour.prune.recovery.distil import distil
from twofour.prune.recovery.stream import distil_stream
from twofour.prune.recovery.training import Outcome
from twofour.prune.run import footprint
from twofour.prune.run.journal import Journal
from twofour.prune.run.mixture import Mixed
from twofour.prune.run.prepare import Prepared
from twofour.prune.run.training_bytes import stream_length
from twofour.prune.text import corpus, sources
from twofour.prune.text.writer import NewWriter

Train = Callable[[Mixed], Outcome | None]  # the whole model, in place


def trainer(
    ready: Prepared, ids: Tensor, batches: list[Batch], journal: Journal, progress: Progress, new_writer: NewWriter
) -> Train:
    """Return what trains a mixture as a whole: on a stream of fresh text, or again on the text that was walked on."""
    if ready.config.stages.streams:
        batches.clear()  # their states are not needed any more
        return partial(streamed, ready, journal, progress, new_writer)
    return partial(distilled, ready, ids, batches, journal, progress)


def distilled(
    ready: Prepared, ids: Tensor, batches: list[Batch], journal: Journal, progress: Progress, mixed: Mixed
) -> Outcome | None:
    """Train all kept weights of the model together; None where that is not asked for."""
    config, anatomy = ready.config, ready.anatomy
    if not config.stages.model_passes:
        return None
    anatomy.model.to(config.device)
    passes, lean, recompute = config.stages.model_passes, config.lean, config.recompute
    return distil(anatomy, ids, batches, passes, config.seed, progress, journal, mixed.schemes, lean, recompute)


def streamed(ready: Prepared, journal: Journal, progress: Progress, new_writer: NewWriter, mixed: Mixed) -> Outcome:
    """Train all kept weights of the model together on fresh text of the sources."""
    config, anatomy = ready.config, ready.anatomy
    tokenizer = corpus.load_tokenizer(ready.source)

    def new_chunk(number: int, windows: int) -> Tensor:
        some = max(windows, len(config.sources), 2)  # of each source at least one, and as many as any config has
        return next(sources.stream(lambda: new_writer(anatomy.model), tokenizer, config, some, number)).ids

    dense = dense_weights(ready)
    anatomy.model.to(config.device)
    length, lean, recompute = stream_length(config), config.lean, config.recompute
    return distil_stream(anatomy, dense, new_chunk, length, progress, journal, mixed.schemes, lean, recompute)


def dense_weights(ready: Prepared) -> DenseWeights:
    """Load the dense weights once more, to stand beside the pruned ones."""
    place = footprint.teacher(ready.anatomy, ready.config)
    dense = dissect(load(ready.source)).linears
    weights = {name: linear.weight.data.to(place, ready.forward_dtype) for name, linear in dense.items()}
    return DenseWeights(ready.anatomy, weights)
