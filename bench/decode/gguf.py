"""A dense model of the Llama family as a GGUF file, for llama.cpp.

Every matrix is in one format, the embedding too. (llama.cpp's own recipe for q4_0 gives the embedding more bits: such a
file is larger and slower.) Its tokens are stand-ins: only numbers of tokens go in and out.
"""

import hashlib
import re
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoConfig

from twofour.prune.errors import InputError, ModelError
from twofour.prune.format.folder import making
from twofour.prune.format.weights import Weights, form_of
from twofour.prune.model.anatomy import head_dim

ENDS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.weight")


def made(folder: Path, weights: str, place: Path) -> Path:
    """The file of a model in `place`, written unless it is there and newer than the model."""
    _require_takes(folder)
    file = place / f"{folder.resolve().name}-{weights}.gguf"
    with Weights(folder, "dense") as tensors:
        if not file.exists() or any(path.stat().st_mtime > file.stat().st_mtime for path in tensors.files):
            place.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(".part")
            with making(file):
                _write(AutoConfig.from_pretrained(folder), tensors, weights, part)
                part.replace(file)
    return file


def digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def weight_bytes(file: Path) -> int:
    """Bytes of all matrices: what a step reads. A tied embedding is the head; one that is not counts for no step."""
    import gguf

    matrices = [tensor for tensor in gguf.GGUFReader(file).tensors if len(tensor.shape) == 2]
    untied = any(tensor.name == "output.weight" for tensor in matrices)
    return sum(int(t.n_bytes) for t in matrices if not (untied and t.name == "token_embd.weight"))


def _require_takes(folder: Path) -> None:
    if form_of(folder) != "dense":
        raise InputError(f"{folder} is packed, which llama.cpp cannot read; give it the dense model")
    config = AutoConfig.from_pretrained(folder)
    kind = config.rope_parameters["rope_type"]
    if config.architectures != ["LlamaForCausalLM"] or kind != "default":
        raise ModelError(
            f"{folder} is {config.architectures} with rope {kind}; a GGUF is made of Llama's, rope default"
        )


def _write(config: Any, tensors: Weights, weights: str, file: Path) -> None:
    gguf = _gguf()
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(head_dim(config))
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _add_tokens(writer, config.vocab_size)
    for name, tensor in tensors.items():
        if not (name == "lm_head.weight" and config.tie_word_embeddings):
            form = gguf.GGMLQuantizationType["F32" if tensor.ndim == 1 else weights.upper()]
            numbers = _turned(config, name, tensor).float().numpy()
            writer.add_tensor(name_of(name), gguf.quants.quantize(numbers, form), raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokens(writer: Any, count: int) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"<{number}>" for number in range(count)])
    writer.add_token_types([1] * count)
    writer.add_token_merges(["< 0"])


def name_of(name: str) -> str:
    """GGUF's name of a weight."""
    found = _LAYER.fullmatch(name)
    own = PARTS.get(found[2]) if found else ENDS.get(name.removesuffix(".weight"))
    if own is None:
        raise ModelError(f"a GGUF of this family has no place for {name}; give a Llama without biases")
    return f"blk.{found[1]}.{own}.weight" if found else f"{own}.weight"


def _turned(config: Any, name: str, weight: Tensor) -> Tensor:
    """llama.cpp rotates neighbours, transformers the two halves of a head: rows of queries and keys change places."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return weight
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _gguf() -> Any:
    try:
        import gguf
    except ImportError:
        raise InputError('llama.cpp reads GGUF files; pip install "twofour[bench]" to write them') from None
    return gguf
