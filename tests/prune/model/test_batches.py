"""Recording what blocks are called with leaves the model as it was; the walk itself is tested in `run`."""

import pytest
import torch
from pruned_families import tiny, tokens
from torch import Tensor

from twofour.prune.model import anatomy, batches


@pytest.mark.parametrize("fails", [False, True])
def test_a_forward_that_another_library_has_put_on_a_block_is_still_there_afterwards(fails: bool) -> None:
    model = tiny("llama")
    found, calls = anatomy.dissect(model), list[int]()
    block = found.blocks[0].module
    plain = block.forward

    def hooked(*args: object, **kwargs: object) -> Tensor:  # as accelerate does it
        calls.append(1)
        result: Tensor = plain(*args, **kwargs)
        return result

    block.forward = hooked
    if fails:
        with pytest.raises(RuntimeError):
            batches.logits_behind(found, tokens(), torch.zeros(1, 1, 7))  # of another width than the model's
    else:
        batches.record(found, tokens())
    assert block.forward is hooked
    assert all("forward" not in vars(other.module) for other in found.blocks[1:])
    calls.clear()
    model(tokens())
    assert calls == [1]
