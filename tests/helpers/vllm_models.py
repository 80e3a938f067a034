"""Small random models of several families, pruned, in all the forms in which vLLM can be given them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor
from vllm_runs import PROMPTS, TOKENS

from twofour.prune.format import Format, checkpoint
from twofour.prune.format.folder import new_folder
from twofour.prune.format.head import Head
from twofour.prune.format.packed import pack
from twofour.prune.format.rounding import to_int8
from twofour.prune.format.schemes import StoredWeight
from twofour.prune.solving.magnitude import magnitude
from twofour.serve.model.loading import load_model

Tensors = dict[str, Tensor]

SHAPE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 128,  # the smallest heads that vLLM's attention on CPUs takes have 32 dimensions
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (hf.LlamaConfig, hf.LlamaForCausalLM, {"tie_word_embeddings": True}),
    "qwen2": (hf.Qwen2Config, hf.Qwen2ForCausalLM, {}),
    "mixtral": (hf.MixtralConfig, hf.MixtralForCausalLM, {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "phi3": (hf.Phi3Config, hf.Phi3ForCausalLM, {}),
}


@dataclass(frozen=True)
class Forms:
    """Folders of one pruned model: as `twofour prune` writes it, and dense with zeros."""

    packed: Path
    dense: Path


def dense_model(folder: Path, family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """Write a random model; biases are not zero."""
    config_class, model_class, extra = FAMILIES[family]
    torch.manual_seed(0)
    model = model_class(config_class(**(SHAPE | extra | changes))).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(std=0.3)
    model.to(dtype).save_pretrained(folder)
    return folder


def pruned(folder: Path, family: str, scale_columns: int | None = None, **changes: Any) -> Forms:
    """scale_columns: values are int8, with a scale for so many columns; None: they are float32."""
    source = dense_model(folder / "unpruned", family, **changes)
    return Forms(*(prune(source, folder / form, form, scale_columns) for form in ("packed", "dense")))


def prune(
    source: Path, out: Path, form: Format, scale_columns: int | None = None, head: Head | None = None, *keep: str
) -> Path:
    """Write a model with all projections 2:4 by magnitude, but for those in `keep`; lm_head in int8 if it is given."""
    with checkpoint.Weights(source) as stored, new_folder(out) as part:
        names = [name.removesuffix(".weight") for name in stored if name.endswith("proj.weight")]
        weights: dict[str, StoredWeight] = {}
        for name in set(names).difference(keep):
            weight = magnitude(stored[f"{name}.weight"])
            packed = pack(weight) if scale_columns is None else to_int8(pack(weight), scale_columns)
            weights[name] = packed if form == "packed" else packed.unpack().to(weight.dtype)
        checkpoint.write_model(part, source, weights, form, head)
        linears = {name: {"shape": list(weight.shape)} for name, weight in weights.items()}
        about = {"lm_head": {"dtype": "int8", "scale_columns": 64}} if head else {}
        checkpoint.write_manifest(part, {"method": "magnitude", "linears": linears, **about})
    return out


def greedy(folder: Path, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    """What transformers answers in float32."""
    model = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    with torch.inference_mode():
        answers = [model.generate(torch.tensor([ids]), max_new_tokens=tokens, do_sample=False)[0] for ids in prompts]
    return [answer[len(ids) :].tolist() for answer, ids in zip(answers, prompts, strict=True)]


def damaged(folder: Path, source: Path, change: Callable[[Tensors], object]) -> Path:
    """A copy of a model folder with other tensors."""
    folder.mkdir()
    for path in source.iterdir():
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            change(tensors)
            save_file(tensors, folder / path.name, metadata={"format": "pt"})
        else:
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def ours(folder: Path) -> list[list[int]]:
    """What our own model answers in float32."""
    model = load_model(str(folder))
    assert model.dtype == torch.float32 and model.generation_config is not None
    model.generation_config.eos_token_id = None
    answers = [model.generate(torch.tensor([ids]), max_new_tokens=TOKENS, do_sample=False)[0] for ids in PROMPTS]
    return [answer[len(ids) :].tolist() for answer, ids in zip(answers, PROMPTS, strict=True)]
