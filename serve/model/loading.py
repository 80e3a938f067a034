"""Packed, dense-with-zeros and dense folders become transformers models; and what these take in memory."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from twofour.prune.errors import CheckpointError, InputError, ModelError, TwofourError
from twofour.prune.format import Format, checkpoint
from twofour.prune.format.checkpoint import VARIANT
from twofour.prune.format.folder import read_config, resolve
from twofour.prune.format.quantization import require_kinds, require_known
from twofour.prune.format.weights import Weights
from twofour.prune.model.skeleton import misfits, skeleton
from twofour.serve.kernels import select
from twofour.serve.kernels.cusparselt import kernel as cusparselt
from twofour.serve.kernels.dense import DenseKernel, DenseLinear
from twofour.serve.model import dense_int8, stored_int8
from twofour.serve.model.dense_int8 import INT8, Int8Linear, int8_linears, lm_head_of
from twofour.serve.model.linear import SparseLinear
from twofour.serve.model.quantizer import sparse_linears, without_kernels

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def load_model(
    path_or_id: str,
    device: str | None = None,
    dtype: str | None = None,
    kernels: str = "auto",
    revision: str | None = None,
    lm_head: str | None = None,
    dense_values: str | None = None,
    decide: Callable[[PreTrainedModel], str] | None = None,
) -> PreTrainedModel:
    """Load a model for inference, packed linears as `SparseLinear`.

    dtype None is that of the checkpoint, device None is cuda if there is one; cuda:1 becomes the current device.
    lm_head "int8" rounds lm_head, dense_values "int8" the other linears that are dense; embeddings stay.
    decide: names the kernels for the loaded model, whose packed linears have none yet; without it, `kernels` does.
    Raises CheckpointError, ModelError or InputError, naming what is wrong; never runs code of the folder.
    """
    select.require_name(kernels)
    folder = resolve(path_or_id, revision)
    form = checkpoint.form_of(folder)
    config = read_config(folder)
    _refuse_config(config, form)
    to = _device(device)
    dense_int8.require_known(lm_head, dense_values, to)
    _require_fitting(folder, config, form)
    model, report = _from_pretrained(folder, form, "auto" if dtype is None else _dtype(dtype))
    checkpoint.require_loaded(report, path_or_id)
    _require_ends(model)
    loaded: PreTrainedModel = model.to(to).eval().requires_grad_(False)
    stored_int8.make_ready(loaded, kernels)
    dense_int8.round_linears(loaded, lm_head, dense_values, kernels)
    give_kernels(loaded, decide(loaded) if decide else kernels)
    return loaded


def give_kernels(model: PreTrainedModel, kernels: str) -> None:
    """Choose a kernel for each linear, once more if it has one."""
    for name, sparse in sparse_linears(model):
        sparse.prepare(kernels, name, model.dtype)
    for name, linear in list(model.named_modules()):
        if type(linear) in (nn.Linear, DenseLinear):
            crossover = select.dense_crossover(linear.weight, kernels, _is_head(model, linear))
            if crossover or isinstance(linear, DenseLinear):
                model.set_submodule(name, DenseLinear(linear, crossover))


def _from_pretrained(folder: Path, form: Format, dtype: torch.dtype | str) -> tuple[Any, dict[str, Any]]:
    """Let transformers load a folder. Raises CheckpointError if it cannot, with the reason."""
    try:
        with without_kernels():
            loaded: tuple[Any, dict[str, Any]] = AutoModelForCausalLM.from_pretrained(
                folder,
                variant=VARIANT if form == "packed" else None,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused later, by name
            )
    except TwofourError:
        raise
    except Exception as error:  # a folder can hold anything
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"transformers cannot load {folder} ({type(error).__name__}: {reason})") from error
    return loaded


def _require_fitting(folder: Path, config: dict[str, Any], form: Format) -> None:
    """Raise CheckpointError, before anything is loaded, if config.json and the tensors differ in shapes."""
    with Weights(folder, form) as weights:
        if form == "packed":
            require_kinds(weights, config["quantization_config"])
        if faults := list(misfits(skeleton(config, weights), weights)):
            raise CheckpointError(faults[0])


def _refuse_config(config: dict[str, Any], form: Format) -> None:
    quantization = config.get("quantization_config") or {}
    if form == "packed":
        require_known(quantization)
        return
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else "an unknown method"
        raise ModelError(f"the model is quantised ({method}); give a dense model or one that twofour pruned")


def _require_ends(model: PreTrainedModel) -> None:
    """Raise CheckpointError if the end of generation is not a token: generation would never end."""
    eos = model.generation_config.eos_token_id if model.generation_config else None
    ends = eos if isinstance(eos, list) else [] if eos is None else [eos]
    if any(type(end) is not int for end in ends):
        raise CheckpointError(f"generation_config.json has the eos_token_id {eos!r}; give a token's number, or a list")


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise InputError(f"no dtype is named {name!r}; choose one of {', '.join(DTYPES)}")
    return DTYPES[name]


def _device(name: str | None) -> torch.device:
    """The device, made the current one: some kernels on a GPU do not look where their tensors are."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise InputError(f"no device is named {name!r}; choose cpu, cuda or one like cuda:1") from error
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise InputError("this machine has no CUDA device that torch can use; choose --device cpu")
    if device.index is not None:
        if device.index >= torch.cuda.device_count():
            raise InputError(
                f"there is no {device}, torch sees {torch.cuda.device_count()} CUDA devices; choose another"
            )
        torch.cuda.set_device(device)
    return device


@dataclass(frozen=True)
class WeightReport:
    """What is resident. `kernels`: kernel name -> decoder linears; `notes`: what a user must know.

    A dense linear counts as "dense" if few tokens are multiplied by our own kernel, as "dense int8" if it is int8, else
    as "torch". `head_values`, `dense_values`: what lm_head, and the other linears that are dense, are held as.
    """

    weight_bytes: int
    linear_bytes: int
    kernels: dict[str, int]
    notes: tuple[str, ...]
    sparse: bool
    head_values: str
    dense_values: str


def weight_report(model: nn.Module) -> WeightReport:
    """Count resident weights; tied tensors count once."""
    sparse = dict(sparse_linears(model))
    rounded = [linear for _, linear in int8_linears(model)]
    dense = [m for m in model.modules() if isinstance(m, nn.Linear | Int8Linear) and not _is_head(model, m)]
    tensors = {t.data_ptr(): t.nbytes for t in [*model.parameters(), *model.buffers()]}
    sparse_bytes = sum(linear.kernel_bytes for linear in sparse.values())
    kernels = Counter(linear.choice.kernel.name for linear in sparse.values() if linear.choice)
    kernels += Counter(map(_kernel_name, dense))
    return WeightReport(
        weight_bytes=sum(tensors.values()) + sparse_bytes + sum(each.nbytes for each in rounded if each.kernel),
        linear_bytes=sum(_bytes(linear) for linear in dense) + sparse_bytes,
        kernels=dict(kernels),
        notes=(*_notes(sparse), *dense_int8.notes(model)),
        sparse=bool(sparse),
        head_values=_values(lm_head_of(model)),
        dense_values=", ".join(sorted(set(map(_values, dense)))),
    )


def _kernel_name(dense: nn.Module) -> str:
    if isinstance(dense, Int8Linear) and dense.kernel:
        return dense.kernel.name
    return DenseKernel.name if isinstance(dense, DenseLinear) else "torch"


def _bytes(dense: nn.Linear | Int8Linear) -> int:
    return dense.nbytes if isinstance(dense, Int8Linear) else dense.weight.nbytes


def _values(dense: nn.Module | None) -> str:
    if isinstance(dense, Int8Linear):
        return INT8
    return str(dense.weight.dtype).removeprefix("torch.") if isinstance(dense, nn.Linear) else ""


def _is_head(model: nn.Module, module: nn.Module) -> bool:
    return module is lm_head_of(model)


def _notes(sparse: dict[str, SparseLinear]) -> Iterator[str]:
    expanded = [linear for linear in sparse.values() if linear.choice and linear.choice.kernel.name == "reference"]
    if expanded:
        reasons = sorted({linear.choice.note or "asked for" for linear in expanded if linear.choice})
        yield (
            f"{len(expanded)} of {len(sparse)} 2:4 linears are expanded to dense ({', '.join(reasons)}): "
            "they take as much memory and time as dense"
        )
    yield from _dropped(sparse)
    slower = sum(linear.choice is not None and linear.choice.note == select.SLOWER for linear in sparse.values())
    if slower:
        yield f"{slower} of {len(sparse)} 2:4 linears are kept dense: {select.SLOWER}"
    uses_cusparselt = any(linear.choice and linear.choice.kernel.name == "cusparselt" for linear in sparse.values())
    if uses_cusparselt and (warning := cusparselt.warning()):
        yield warning


def _dropped(sparse: dict[str, SparseLinear]) -> Iterator[str]:
    """Kernels that could not be built or raced, and for how many linears."""
    counts = Counter(reason for linear in sparse.values() if linear.choice for reason in linear.choice.dropped)
    for reason, count in counts.items():
        yield f"dropped: {reason} ({count} of {len(sparse)} 2:4 linears)"
