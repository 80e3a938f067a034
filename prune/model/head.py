"""The head of a dense model, lm_head: where its folder holds the weight, and whether it can be stored in int8."""

from pathlib import Path
from typing import Any

from torch import nn

from twofour.prune.errors import ModelError
from twofour.prune.format import dense_int8
from twofour.prune.format.dense import Dense
from twofour.prune.format.head import NAMES, Head

COLUMNS = 8  # a multiple of these; every model has it, and the kernels may count on it


def linear(model: nn.Module) -> nn.Linear:
    """Return lm_head. Raises ModelError where a model has none that can be int8."""
    head = getattr(model, NAMES[0], None)
    if not isinstance(head, nn.Linear) or head is not _ends(model)[1]:
        raise ModelError(f"{type(model).__name__} has no linear {NAMES[0]} that makes its logits; leave out --lm-head")
    if head.in_features % COLUMNS:
        raise ModelError(
            f"{NAMES[0]} has {head.in_features} columns, which {COLUMNS} does not divide; leave out --lm-head"
        )
    return head


def shape_of(model: nn.Module) -> tuple[int, int] | None:
    """The shape (out, in) of lm_head; None where a model has none."""
    head = getattr(model, NAMES[0], None)
    return (head.out_features, head.in_features) if isinstance(head, nn.Linear) else None


def is_tied(model: nn.Module) -> bool:
    """Whether lm_head has the weight of the embeddings."""
    embeddings, head = _ends(model)
    return head.weight is embeddings.weight


def int8_bytes(model: nn.Module) -> int:
    """The size of lm_head in int8."""
    head = linear(model)
    return dense_int8.int8_bytes(head.out_features, head.in_features)


def added_bytes(model: nn.Module) -> int:
    """How much larger a model is with lm_head in int8: where it is tied, the embeddings stay beside it."""
    return int8_bytes(model) - (0 if is_tied(model) else linear(model).weight.nbytes)


def find(model: nn.Module, source: Path) -> Head:
    """Find lm_head of a model in its folder. Raises ModelError where there is none that can be int8."""
    head = linear(model)
    shape = (head.out_features, head.in_features)
    with Dense(source) as weights:
        for name in NAMES:
            if f"{name}.weight" in weights:
                return Head(name, f"{name}.weight", shape)
        tied = [f"{name}.weight" for name, module in model.named_modules() if module is _ends(model)[0]]
        if tied and tied[0] in weights and is_tied(model):
            return Head(NAMES[0], tied[0], shape)
    raise ModelError(
        f"{source} stores the weight of {NAMES[0]} under no name that is known; load it and save it again with "
        "transformers' save_pretrained, or leave out --lm-head"
    )


def _ends(model: Any) -> tuple[Any, Any]:
    """The embeddings and the head, as transformers names them."""
    return model.get_input_embeddings(), model.get_output_embeddings()
