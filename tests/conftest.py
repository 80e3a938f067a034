"""Model folders that the tests share: tiny random ones, made in seconds, and the demo model."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from twofour.prune import checkpoint, pattern

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and three special ones with the ids 0, 1 and 2: 259 in all."""
    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=SPECIAL[0],
        bos_token=SPECIAL[1],
        eos_token=SPECIAL[2],
        pad_token=SPECIAL[2],
        chat_template=TEMPLATE,
    )


def tiny_config(tied: bool) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=264,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )


def make_tiny_model(folder: Path, tied: bool = True, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write a random Llama that weighs a few hundred kilobytes."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_config(tied)).to(dtype)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    (folder / "LICENSE").write_text("do what you like\n")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# tiny\n")
    return folder


def prune_tiny_model(source: Path, out: Path, format: checkpoint.Format = "packed") -> Path:
    """Prune every decoder linear by magnitude, without the pruning floor's own walk."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    linears = {
        name: module.weight.detach()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    weights = {name: weight * pattern.mask_from_scores(weight.abs()) for name, weight in linears.items()}
    with checkpoint.new_folder(out) as folder:
        checkpoint.write_model(folder, source, weights, format)
        shapes = {name: {"shape": list(weight.shape)} for name, weight in weights.items()}
        checkpoint.write_manifest(folder, {"format_version": 1, "method": "magnitude", "linears": shapes, "dense": {}})
    return out


@pytest.fixture(scope="session")
def make_tiny() -> Callable[..., Path]:
    """Make a tiny model where a test wants its own: tied or not, of any dtype."""
    return make_tiny_model


@pytest.fixture(scope="session")
def prune_tiny() -> Callable[..., Path]:
    """Prune a tiny model by magnitude where a test wants its own."""
    return prune_tiny_model


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense tiny model with tied embeddings, bf16. Read only."""
    return make_tiny_model(tmp_path_factory.mktemp("dense") / "tiny")


@pytest.fixture(scope="session")
def tiny_pruned_folder(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model pruned by magnitude and packed. Read only."""
    return prune_tiny_model(tiny_model_folder, tmp_path_factory.mktemp("packed") / "tiny-24")


@pytest.fixture(scope="session")
def demo_model_folder() -> Path:
    """The demo model, made once and kept in the checkout's `.demo/`. Read only."""
    from twofour.prune.demo_model import make_demo_model

    folder = Path(os.environ.get("TWOFOUR_DEMO_MODEL") or Path(__file__).parents[1] / ".demo" / "SmolLM2-135M-Instruct")
    if not folder.exists():
        make_demo_model(folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
    return folder
