"""What of a model gets pruned: its decoder blocks, and every linear inside them.

Nothing is left dense in silence: where a block holds a matrix that is not the weight of an `nn.Linear` (a `Conv1D`, a
convolution, fused experts that `experts` does not know), the model is refused, and the matrix named. Embeddings,
lm_head, routers and other linears outside the blocks stay as they are; a block linear that shares its memory with one
of them is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twofour.prune.errors import CheckpointError, ModelError, NonFiniteError, TwofourError
from twofour.prune.format import checkpoint, fp8, tower
from twofour.prune.format.dense import Dense
from twofour.prune.format.packed import FLOAT_DTYPES
from twofour.prune.format.pattern import GROUP
from twofour.prune.model import experts
from twofour.prune.model.experts import Expert, Experts
from twofour.prune.model.loading import from_dense
from twofour.prune.model.skeleton import misfits, skeleton


@dataclass(frozen=True)
class Block:
    """One decoder block, its linears and its sets of experts by their full names."""

    module: nn.Module
    linears: dict[str, nn.Linear]
    experts: dict[str, Experts]

    def expert_of(self, name: str) -> Expert | None:
        """The expert that a linear belongs to."""
        parent, _, number = name.rpartition(".")[0].rpartition(".")
        return self.experts[parent].expert(int(number)) if parent in self.experts else None


@dataclass(frozen=True)
class Anatomy:
    """A causal language model, taken apart.

    stored_dtype: of the linears in the checkpoint; pruned weights are rounded to it.
    dense: the linears and routers that stay dense, and why.
    """

    model: nn.Module
    blocks: list[Block]
    stored_dtype: torch.dtype
    dense: dict[str, str]

    @property
    def device(self) -> torch.device:
        """Where the model is, unless a block is worked on elsewhere."""
        return next(self.model.parameters()).device

    @property
    def linears(self) -> dict[str, nn.Linear]:
        """All linears that get pruned, in the order of the model."""
        return {name: linear for block in self.blocks for name, linear in block.linears.items()}


def refuse_config(config: Mapping[str, Any]) -> None:
    """Raise ModelError if a config.json is not that of a dense causal language model that transformers knows.

    One whose weights are in FP8, or whose text tower can be taken alone, is fine.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    fp8.method_of(config)
    tower.refuse_unknown(config)
    kind = config.get("model_type")
    if config.get("is_encoder_decoder"):
        raise ModelError(f"{kind} is an encoder-decoder; give a causal language model")
    if not isinstance(kind, str) or (kind not in CAUSAL and tower.kind_of(config) is None):
        raise ModelError(
            f"this transformers knows no causal language model {kind!r}; upgrade it, or give a supported model"
        )


def load(folder: Path) -> nn.Module:
    """Load a dense causal language model for reading. Safetensors only, no code.

    Its dtype is the one that its linears are stored in, whatever config.json says of it.
    """
    stored = stored_dtype(folder)
    try:
        model, report = from_dense(folder, stored)
    except TwofourError:
        raise
    except Exception as error:  # a folder can hold anything
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"transformers cannot load {folder} ({type(error).__name__}: {reason})") from error
    checkpoint.require_loaded(report, folder)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(torch.stack(tensor.aminmax())).all()):
            place = (~torch.isfinite(tensor)).nonzero()[0].tolist()
            raise NonFiniteError(f"{name} is NaN or infinite at {place}; take an intact copy of the model")
    loaded: nn.Module = model.eval().requires_grad_(False)
    return loaded


def head_dim(config: Any) -> int:
    """How many numbers an attention head has, of the config of a text model."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def cached_numbers(config: Any) -> int:
    """How many numbers the keys and values of one token are, in all layers."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return 2 * int(config.num_hidden_layers) * int(heads) * head_dim(config)


def stored_dtype(folder: Path) -> torch.dtype:
    """Return the dtype in which the files of a folder hold what can be pruned; nothing is loaded for it.

    Raises ModelError where there are several, or one that cannot be pruned, and CheckpointError where config.json and
    the tensors contradict each other.
    """
    with Dense(folder) as tensors:
        model = skeleton(tensors.config, tensors)
        if faults := list(misfits(model, tensors)):
            raise CheckpointError(faults[0])
        anatomy = dissect(model)
        names = stored_names(anatomy, folder)
        dtypes = {tensors.dtype(f"{names[name]}.weight"): names[name] for name in anatomy.linears}
    if len(dtypes) != 1:
        found = ", ".join(f"{dtype} as {name} is" for dtype, name in sorted(dtypes.items()))
        raise ModelError(
            f"the linears are stored in several dtypes ({found}); give a model whose linears have one dtype"
        )
    (dtype,) = dtypes
    if dtype not in checkpoint.FLOATS:
        raise ModelError(f"the linears are stored as {dtype}; give a model in bfloat16, float16 or float32")
    return checkpoint.FLOATS[dtype]


def dissect(model: nn.Module) -> Anatomy:
    """Find the decoder blocks and their linears; fused experts are taken apart in place.

    Raises ModelError where a part cannot be pruned.
    """
    experts.take_apart(model)
    path, modules = _decoder_blocks(model)
    blocks = [_block(f"{path}.{index}", module) for index, module in enumerate(modules)]
    pruned = {name for block in blocks for name in block.linears}
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    outside = {name: "outside the decoder blocks: never pruned" for name in linears if name not in pruned}
    routers = {name: "a router: never pruned" for name, module in model.named_modules() if experts.is_router(module)}
    anatomy = Anatomy(model, blocks, _stored_dtype(blocks), outside | routers)
    _refuse_shared_memory(anatomy)
    return anatomy


def stored_names(anatomy: Anatomy, source: Path) -> dict[str, str]:
    """Return the names under which a folder stores the linears that are pruned and those that stay dense.

    Raises ModelError where a weight to be pruned is stored under no name that is known.
    """
    with Dense(source) as tensors:
        names = {name: experts.stored_name(name, tensors) for name in (*anatomy.linears, *anatomy.dense)}
    if missing := [name for name in anatomy.linears if names[name] is None]:
        raise ModelError(
            f"{source} stores no {missing[0]}.weight: its tensors have other names than the model's; load it and save "
            "it again with transformers' save_pretrained"
        )
    return {name: stored or name for name, stored in names.items()}  # a tied lm_head is not stored


def _stored_dtype(blocks: list[Block]) -> torch.dtype:
    dtypes = {linear.weight.dtype for block in blocks for linear in block.linears.values()}
    if len(dtypes) != 1:
        raise ModelError(f"the linears have the dtypes {dtypes}; give a model stored in one dtype")
    stored = dtypes.pop()
    if stored not in FLOAT_DTYPES:
        raise ModelError(f"the linears are stored as {stored}; give a model in bfloat16, float16 or float32")
    return stored


def _decoder_blocks(model: nn.Module) -> tuple[str, list[nn.Module]]:
    count = getattr(model.config, "num_hidden_layers", None)
    found = [
        (name, list(module))
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    outermost = [(name, m) for name, m in found if not any(name.startswith(f"{other}.") for other, _ in found)]
    if len(outermost) != 1:
        raise ModelError(
            f"{type(model).__name__} has {len(outermost)} lists of {count} decoder blocks instead of one; "
            "give a standard causal language model"
        )
    return outermost[0]


def _block(path: str, module: nn.Module) -> Block:
    linears = {f"{path}.{name}": m for name, m in module.named_modules() if isinstance(m, nn.Linear)}
    _refuse_other_matrices(path, module)
    for name, linear in linears.items():
        if linear.in_features % GROUP:
            raise ModelError(
                f"{name} has {linear.in_features} inputs, which {GROUP} does not divide; this model cannot become 2:4"
            )
    if not linears:
        raise ModelError(f"{path} ({type(module).__name__}) holds no linear; give a standard causal language model")
    return Block(module, linears, {f"{path}.{name}": m for name, m in module.named_modules() if isinstance(m, Experts)})


def _refuse_other_matrices(path: str, module: nn.Module) -> None:
    owners = {name: module.get_submodule(name.rpartition(".")[0]) for name, _ in module.named_parameters()}
    others = [
        (name, parameter)
        for name, parameter in module.named_parameters()
        if parameter.dim() > 1 and not isinstance(owners[name], nn.Linear) and not experts.is_router(owners[name])
    ]
    if not others:
        return
    name, parameter = max(others, key=lambda other: other[1].dim())  # the experts rather than their router
    shape = "x".join(str(size) for size in parameter.shape)
    raise ModelError(
        f"{path}.{name} ({shape}, of {type(owners[name]).__name__}) is not the weight of a linear and cannot be "
        "pruned yet; give a model whose blocks are made of nn.Linear"
    )


def _refuse_shared_memory(anatomy: Anatomy) -> None:
    owner_of: dict[int, str] = {}
    for name, module in anatomy.model.named_modules():
        if name not in anatomy.linears:
            owner_of |= {_place(p): f"{name}.{own}" for own, p in module.named_parameters(recurse=False)}
    for name, linear in anatomy.linears.items():
        if other := owner_of.setdefault(_place(linear.weight), f"{name}.weight"):
            _require_own(name, other)


def _place(parameter: Tensor) -> int:
    """Where a parameter lies in memory. The meta device has no memory: there only one object is one place."""
    return id(parameter) if parameter.is_meta else parameter.data_ptr()


def _require_own(name: str, owner: str) -> None:
    if owner != f"{name}.weight":
        raise ModelError(f"{name}.weight is tied to {owner}, which would change with it; untie them first")
