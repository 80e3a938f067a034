"""What else of vLLM works with packed weights: compiled models, ranks, adapters, weights loaded again."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from vllm_models import Forms, dense_model, greedy, prune, pruned
from vllm_runs import PROMPTS, TOKENS, Vllm, started

from twofour.prune.format.checkpoint import Weights, write_weights

LORA = ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
RANK, ALPHA = 4, 8


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Forms:
    return pruned(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture(scope="session")
def expected(llama: Forms) -> list[list[int]]:
    return greedy(llama.dense, PROMPTS, TOKENS)


@pytest.fixture(scope="session")
def ranks() -> Iterator[Vllm]:
    """A process whose models have workers of their own, each on one core."""
    with started(VLLM_ENABLE_V1_MULTIPROCESSING="1", VLLM_CPU_OMP_THREADS_BIND="0|1") as child:
        yield child


def test_a_compiled_model(vllm: Vllm, llama: Forms, expected: list[list[int]], tmp_path: Path) -> None:
    """By kernels of ours in bfloat16, too."""
    options = {"dtype": "float32", "enforce_eager": False}
    assert vllm.tokens(llama.packed, options=options) == expected
    dense = dense_model(tmp_path / "dense", "qwen2", torch.bfloat16)
    found = vllm.ask(prune(dense, tmp_path / "packed", "packed"), held=True, options=options | {"dtype": "bfloat16"})
    assert found["kernels"] == ["CpuKernel"] and len(found["tokens"]) == len(PROMPTS), found


def test_two_ranks(ranks: Vllm, llama: Forms, expected: list[list[int]]) -> None:
    two = {"tensor_parallel_size": 2}
    assert ranks.tokens(llama.packed, options=two) == expected
    assert ranks.tokens(llama.dense, options=two | {"quantization": "twofour"}) == expected


def test_two_ranks_with_one_head_of_keys_biases_and_int8(ranks: Vllm, vllm: Vllm, tmp_path: Path) -> None:
    forms = pruned(tmp_path, "qwen2", 64, num_key_value_heads=1)
    split = ranks.ask(forms.packed, options={"dtype": "float32", "tensor_parallel_size": 2})
    whole = vllm.ask(forms.packed, options={"dtype": "float32"})
    for mine, its in zip(split["logprobs"], whole["logprobs"], strict=True):
        assert mine == pytest.approx(its, abs=1e-3)


def adapter(folder: Path, base: Path) -> tuple[Path, Path]:
    """A LoRA adapter, and the dense model into which it is merged."""
    folder.mkdir()
    torch.manual_seed(1)
    parts, merged = {}, {}
    with Weights(base) as weights:
        for name in weights:
            merged[name] = weights[name]
            if name.removesuffix(".weight").endswith(LORA):
                rows, columns = merged[name].shape
                down, up = torch.randn(RANK, columns) * 0.1, torch.randn(rows, RANK) * 0.1
                stem = f"base_model.model.{name.removesuffix('.weight')}"
                parts |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
                merged[name] = merged[name] + ALPHA / RANK * (up @ down)
    save_file(parts, folder / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA, "bias": "none"}
    targets = sorted(name.rpartition(".")[2] for name in LORA)
    (folder / "adapter_config.json").write_text(json.dumps({**about, "target_modules": targets}))
    whole = folder / "merged"
    whole.mkdir()
    write_weights(whole, merged.items(), "dense")
    (whole / "config.json").write_bytes((base / "config.json").read_bytes())
    return folder, whole


def test_an_adapter(vllm: Vllm, llama: Forms, expected: list[list[int]], tmp_path: Path) -> None:
    folder, merged = adapter(tmp_path / "adapter", llama.dense)
    options = {"enable_lora": True, "max_lora_rank": 8, "max_loras": 1}
    assert vllm.tokens(llama.packed, options=options) == expected
    found = vllm.tokens(llama.packed, options=options, adapter=str(folder))
    assert found == greedy(merged, PROMPTS, TOKENS) != expected


def test_other_weights_loaded_into_a_running_model(vllm: Vllm, tmp_path: Path) -> None:
    """They take the place of the old ones in the same memory, so compiled models and graphs see them."""
    folders = []
    for seed in (0, 1):
        dense = dense_model(tmp_path / f"dense{seed}", "qwen2", torch.bfloat16, initializer_range=0.2 + 0.1 * seed)
        folders.append(prune(dense, tmp_path / f"packed{seed}", "packed"))
    options = {"dtype": "bfloat16"}
    first, second = (vllm.tokens(folder, "bfloat16") for folder in folders)
    assert first != second
    found = vllm.ask(folders[0], options=options, then_load=str(folders[1]), held=True)
    assert found.get("tokens") == second, found
