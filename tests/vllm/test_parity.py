"""Packed in vLLM, dense with zeros in vLLM, and transformers: the same greedy tokens in float32."""

import pytest
from vllm_models import FAMILIES, Forms, greedy, pruned
from vllm_runs import PROMPTS, TOKENS, Vllm


@pytest.fixture(scope="session", params=FAMILIES)
def forms(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Forms:
    return pruned(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture(scope="session")
def packed(vllm: Vllm, forms: Forms) -> list[list[int]]:
    return vllm.tokens(forms.packed)


def test_packed_is_dense_with_zeros(vllm: Vllm, forms: Forms, packed: list[list[int]]) -> None:
    assert packed == vllm.tokens(forms.dense)


def test_packed_is_transformers(forms: Forms, packed: list[list[int]]) -> None:
    assert packed == greedy(forms.dense, PROMPTS, TOKENS)


def test_dense_with_zeros_is_packed_while_loading(vllm: Vllm, forms: Forms, packed: list[list[int]]) -> None:
    assert packed == vllm.tokens(forms.dense, options={"quantization": "twofour"})
