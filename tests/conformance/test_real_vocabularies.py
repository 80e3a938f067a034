"""Bytes of tokens with a SentencePiece vocabulary that models have: that of Mistral 7B."""

import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from spelled import TEXTS, check
from transformers import LlamaTokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> LlamaTokenizer:
    pytest.importorskip("sentencepiece", reason="pip install --group conformance")
    wheel = next(Path(sys.prefix).glob("mistral_common-*.whl"), None)
    if wheel is None:
        pytest.skip("needs the wheel of mistral-common: make judges downloads it")
    folder = tmp_path_factory.mktemp("mistral")
    with ZipFile(wheel) as archive:
        (folder / "tokenizer.model").write_bytes(archive.read("mistral_common/data/tokenizer.model.v1"))
    return LlamaTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("text", TEXTS)
def test_a_real_sentencepiece_vocabulary(mistral: LlamaTokenizer, text: str) -> None:
    check(mistral.backend_tokenizer, text)
