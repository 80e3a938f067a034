"""On GPUs: the same tokens compiled, in CUDA graphs, on several GPUs, and after a sleep."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from vllm_models import dense_model, prune
from vllm_runs import Vllm, started

GPUS = torch.cuda.device_count()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not GPUS, reason="no CUDA device")]
several = pytest.mark.skipif(GPUS < 2, reason="one GPU")
SIZES = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 4}
EAGER, GRAPHS = (
    {"dtype": "bfloat16", "enforce_eager": eager, "gpu_memory_utilization": 0.2} for eager in (True, False)
)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    dense = dense_model(folder / "unpruned", "qwen2", torch.bfloat16, **SIZES)
    return {
        "packed": prune(dense, folder / "packed", "packed"),
        "dense": prune(dense, folder / "dense", "dense"),
        "int8": prune(dense, folder / "int8", "packed", 0),
    }


@pytest.fixture(scope="session")
def gpu() -> Iterator[Vllm]:
    with started() as child:
        yield child


@pytest.fixture(scope="session")
def gpus() -> Iterator[Vllm]:
    with started(VLLM_ENABLE_V1_MULTIPROCESSING="1") as child:
        yield child


def agree(found: list[list[int]], expected: list[list[int]]) -> float:
    """The share of first tokens, eight of each answer, that are the same: later ones follow roundings."""
    pairs = [pair for mine, its in zip(found, expected, strict=True) for pair in zip(mine[:8], its[:8], strict=True)]
    return sum(mine == its for mine, its in pairs) / len(pairs)


@pytest.mark.parametrize("form", ["packed", "int8"])
def test_graphs_give_what_eager_gives(gpu: Vllm, folders: dict[str, Path], form: str) -> None:
    eager = gpu.ask(folders[form], options=EAGER, held=True)
    graphs = gpu.ask(folders[form], options=GRAPHS, held=True)
    assert eager["kernels"] == graphs["kernels"]
    assert agree(graphs["tokens"], eager["tokens"]) > 0.8


def test_packed_is_dense_with_zeros(gpu: Vllm, folders: dict[str, Path]) -> None:
    packed = gpu.ask(folders["packed"], options=GRAPHS)
    dense = gpu.ask(folders["dense"], options=GRAPHS)
    assert agree(packed["tokens"], dense["tokens"]) > 0.8
    for mine, its in zip(packed["logprobs"], dense["logprobs"], strict=True):
        shared = mine.keys() & its.keys()
        assert shared and all(mine[token] == pytest.approx(its[token], abs=0.1) for token in shared)


def test_dense_with_zeros_is_packed_while_loading(gpu: Vllm, folders: dict[str, Path]) -> None:
    found = gpu.tokens(folders["dense"], options=GRAPHS | {"quantization": "twofour"})
    assert found == gpu.tokens(folders["packed"], options=GRAPHS)


def test_graphs_see_weights_that_are_loaded_again(gpu: Vllm, folders: dict[str, Path], tmp_path: Path) -> None:
    dense = dense_model(tmp_path / "dense", "qwen2", torch.bfloat16, initializer_range=0.3, **SIZES)
    other = prune(dense, tmp_path / "packed", "packed")
    found = gpu.ask(folders["packed"], options=GRAPHS, then_load=str(other))
    assert found.get("tokens") == gpu.tokens(other, options=GRAPHS), found


def test_weights_come_back_after_a_sleep(gpu: Vllm, folders: dict[str, Path]) -> None:
    options = GRAPHS | {"enable_sleep_mode": True}
    assert gpu.tokens(folders["packed"], options=options, sleep=1) == gpu.tokens(folders["packed"], options=options)


@several
@pytest.mark.parametrize("split", ["tensor_parallel_size", "pipeline_parallel_size"])
def test_two_gpus(gpus: Vllm, gpu: Vllm, folders: dict[str, Path], split: str) -> None:
    one = gpu.tokens(folders["packed"], options=GRAPHS)
    assert agree(gpus.tokens(folders["packed"], options=GRAPHS | {split: 2}), one) > 0.8
