"""Models for tests: a tiny random one made here, and the demo model, made once from its package."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import engines
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from vllm_server import VllmServer
from vllm_server import model as one_text_model

from twofour.prune.format import Format, checkpoint
from twofour.prune.format.folder import new_folder
from twofour.prune.format.head import Head
from twofour.prune.format.packed import pack
from twofour.prune.format.rounding import to_int8
from twofour.prune.format.schemes import StoredWeight
from twofour.prune.solving.magnitude import magnitude

VOCABULARY = 320
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEMO = Path(__file__).parent.parent / ".demo" / "SmolLM2-135M-Instruct"

MakeModel = Callable[..., Path]


def pytest_configure() -> None:
    """A cache that cannot be written: kernels are the built-in ones, not the winners of a race on a busy machine."""
    os.environ["TWOFOUR_CACHE"] = "/dev/null/twofour"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Tests that ask a server, and do not care which engine it has, can ask one of vLLM (docs/serving.md)."""
    parser.addoption("--engine", choices=("embedded", "vllm"), default="embedded")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--engine") == "vllm":
        engines.choose(config, items)


@pytest.fixture(scope="session")
def vllm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """For all tests that leave it as they found it."""
    folder = tmp_path_factory.mktemp("vllm")
    server = VllmServer(one_text_model(folder / "model"), folder / "log")
    yield server.wait()
    server.close()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and three special ones."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=special[1], eos_token=special[2], chat_template=CHAT_TEMPLATE
    )


def tiny_model(folder: Path, dtype: torch.dtype, **changes: Any) -> Path:
    """Write a random two-block Llama with grouped queries."""
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        **{
            **shape,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            "vocab_size": VOCABULARY,
            **changes,
        }
    )
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model in bfloat16, its embeddings tied."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return tiny_model(folder, torch.bfloat16, tie_word_embeddings=True)


@pytest.fixture(scope="session")
def tiny_bos_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model whose tokenizer begins every text with BOS, 1, as that of a Gemma or Llama does."""
    folder = tiny_model(tmp_path_factory.mktemp("models") / "bos", torch.bfloat16)
    tokenizer = byte_tokenizer()
    begin = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    tokenizer.backend_tokenizer.post_processor = begin
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_float32_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model in float32, its embeddings not tied. vLLM's smallest heads on a CPU are of 32."""
    shape = {"head_dim": 32} if request.config.getoption("--engine") == "vllm" else {}
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny32", torch.float32, **shape)


def prune_by_magnitude(
    source: Path, out: Path, form: Format = "packed", scale_columns: int | None = None, head: Head | None = None
) -> Path:
    """Write a pruned copy of a model without the walk, with int8 values if `scale_columns` is given.

    head: lm_head, to become int8.
    """
    with checkpoint.Weights(source) as stored, new_folder(out) as part:
        names = [name.removesuffix(".weight") for name in stored if name.endswith("proj.weight")]
        weights: dict[str, StoredWeight] = {}
        for name in names:
            weight = magnitude(stored[f"{name}.weight"])
            weights[name] = pack(weight) if scale_columns is None else to_int8(pack(weight), scale_columns)
        checkpoint.write_model(part, source, weights, form, head)
        linears = {name: {"shape": list(weight.shape)} for name, weight in weights.items()}
        about = {"lm_head": {"dtype": "int8", "scale_columns": 64}} if head else {}
        checkpoint.write_manifest(part, {"method": "magnitude", "linears": linears, **about})
    return out


@pytest.fixture
def tiny_pruned_folder(tiny_model_folder: Path, tmp_path: Path) -> Path:
    """A packed copy of the tiny model, fresh for every test, to be damaged."""
    return prune_by_magnitude(tiny_model_folder, tmp_path / "tiny-2of4")


@pytest.fixture(params=[0, 64], ids=["a scale for each row", "a scale for each 64 columns"])
def tiny_int8_folder(request: pytest.FixtureRequest, tiny_model_folder: Path, tmp_path: Path) -> Path:
    """The same with int8 values; 64 does not divide the 96 columns of its down_proj."""
    return prune_by_magnitude(tiny_model_folder, tmp_path / "tiny-int8", scale_columns=request.param)


@pytest.fixture(params=[True, False], ids=["tied to the embeddings", "not tied"])
def tiny_head_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A packed tiny model with lm_head in int8, beside the dense one, `dense`; 64 does not divide its 72 columns."""
    shape = {"hidden_size": 72, "num_attention_heads": 3, "num_key_value_heads": 1}
    dense = tiny_model(tmp_path / "dense", torch.bfloat16, tie_word_embeddings=request.param, **shape)
    source = "model.embed_tokens.weight" if request.param else "lm_head.weight"
    return prune_by_magnitude(dense, tmp_path / "int8-head", head=Head("lm_head", source, (VOCABULARY, 72)))


@pytest.fixture(scope="session")
def demo_model_folder() -> Path:
    """The real demo model, kept between runs."""
    if not DEMO.exists():
        from twofour.prune.model import demo_model

        demo_model.make(DEMO)
    assert json.loads((DEMO / "config.json").read_text())["model_type"] == "llama"
    return DEMO


@pytest.fixture(scope="session")
def roomy_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model whose context holds a benchmark's prompts at a token a byte."""
    return tiny_model(tmp_path_factory.mktemp("models") / "roomy", torch.bfloat16, max_position_embeddings=8192)


@pytest.fixture(scope="session")
def large_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model of 284 MB, all but 1 of them in its 12 blocks."""
    shape = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12}
    return tiny_model(tmp_path_factory.mktemp("models") / "large", torch.bfloat16, **shape)


@pytest.fixture(scope="session")
def large_heads_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model in bfloat16, dense and pruned; torch multiplies few of such heads in another order than many."""
    folder = tmp_path_factory.mktemp("models")
    shape = {"hidden_size": 512, "intermediate_size": 1024, "head_dim": 128, "initializer_range": 0.1}
    dense = tiny_model(folder / "dense", torch.bfloat16, **shape)
    return {
        "dense": dense,
        "2:4": prune_by_magnitude(dense, folder / "2of4"),
        "2:4 int8": prune_by_magnitude(dense, folder / "int8", scale_columns=0),
    }


@pytest.fixture(scope="session")
def large_int8_folder(large_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed copy of it with int8 values."""
    return prune_by_magnitude(large_model_folder, tmp_path_factory.mktemp("models") / "large-int8", scale_columns=0)
