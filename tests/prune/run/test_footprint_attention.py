"""What attention takes of memory, held against what batches and steps hold: masks, and weights for the way back."""

import pytest
import torch
from pruned_families import tiny
from torch import Tensor

from twofour.prune import PruneConfig
from twofour.prune.model import anatomy, batches
from twofour.prune.model.anatomy import Anatomy
from twofour.prune.model.attention import quick_attention
from twofour.prune.recovery.training import step_tokens
from twofour.prune.run import footprint, training_bytes


def masks_held(parts: Anatomy, asked: PruneConfig) -> int:
    """The bytes that the batches of a text hold of masks: a storage counts once, and one that is expanded as it is."""
    ids = torch.ones(asked.text_samples, asked.length, dtype=torch.int64)
    with quick_attention(parts.model):
        found = batches.record(parts, ids, batch_tokens=step_tokens(ids.numel()) if asked.stages.trains else None)
    masks = [call.kwargs.get("attention_mask") for batch in found for call in batch.calls]
    held = {mask.untyped_storage().data_ptr(): mask.untyped_storage().nbytes() for mask in masks if mask is not None}
    return sum(held.values())


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gemma3", "opt"])
def test_masks_are_counted(family: str, implementation: str) -> None:
    parts = anatomy.dissect(tiny(family))  # a sliding window has 6 tokens
    if family != "gemma2":  # which is always eager
        parts.model.set_attn_implementation(implementation)  # type: ignore[operator]
    for preset in ("fast", "balanced"):
        for length in (4, 16):
            asked = PruneConfig(preset=preset, samples=40, length=length)  # type: ignore[arg-type]
            assert footprint._masks(parts, asked) == masks_held(parts, asked)
            with_masks = footprint.memory_bytes(parts, asked, on_disk=True)
            assert with_masks - footprint.PROCESS_BYTES >= footprint.model_bytes(parts) + footprint._masks(parts, asked)


def kept_by_a_step(parts: Anatomy, ids: Tensor) -> int:
    """The bytes that one block keeps for its way back, but for weights and what the batch holds anyway."""
    with quick_attention(parts.model):
        (batch,) = batches.record(parts, ids, batch_tokens=ids.numel())
        held = [*parts.model.parameters(), *(each for each in batch.calls[0].kwargs.values() if each is not None)]
        outside = {part.untyped_storage().data_ptr() for part in held if isinstance(part, Tensor)}
        kept: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept.update({} if storage.data_ptr() in outside else {storage.data_ptr(): storage.nbytes()})
            return tensor

        for linear in parts.linears.values():
            linear.weight.requires_grad_(True)
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            batches.run_block(parts.blocks[0], 0, batch.hidden, batch)
    return sum(kept.values())


@pytest.mark.parametrize("family", ["llama", "gemma2"])  # the weights of eager attention are not as few
def test_what_a_step_keeps_is_not_more_than_is_counted(family: str) -> None:
    parts = anatomy.dissect(tiny(family, hidden_size=64, max_position_embeddings=512).to(torch.bfloat16))
    counted = training_bytes.for_backward(parts.blocks[0], parts, PruneConfig(samples=4, length=256))
    assert counted / 2 < kept_by_a_step(parts, torch.ones(2, 256, dtype=torch.int64)) < counted
