"""The text tower of a multimodal model is a causal language model that computes the same, to the last bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from multimodal_models import MODELS, TEXT, changed, logits, published, random

from twofour.prune.errors import CheckpointError, ModelError
from twofour.prune.format import tower
from twofour.prune.format.dense import Dense
from twofour.prune.format.folder import read_config, write_json
from twofour.prune.model import anatomy

TEXTS = {
    "gemma3": "Gemma3ForCausalLM",
    "mistral3": "MistralForCausalLM",
    "ministral": "MinistralForCausalLM",
    "ministral3": "Ministral3ForCausalLM",
    "qwen2_5_vl": "Qwen2ForCausalLM",
    "qwen3_vl": "Qwen3ForCausalLM",
    "qwen3_vl tied": "Qwen3ForCausalLM",
}


@pytest.mark.parametrize("old_names", [False, True], ids=["names of today", "old names"])
@pytest.mark.parametrize("name", MODELS)
def test_the_tower_computes_what_the_whole_computes_for_text(tmp_path: Path, name: str, old_names: bool) -> None:
    whole = random(name)
    folder = published(whole, tmp_path / "whole", old_names)
    text = anatomy.load(folder)
    assert type(text).__name__ == TEXTS[name]
    assert torch.equal(logits(text), logits(whole))
    assert anatomy.stored_names(anatomy.dissect(text), folder)
    left = sum(
        p.nbytes for path, p in whole.named_parameters() if "language_model" not in path and "lm_head" not in path
    )
    with Dense(folder) as tensors:
        assert tensors.tower is not None and sum(tensors.tower.left.values()) == left > 0
        assert tensors.tower.model == type(whole).__name__ and tensors.tower.text == TEXTS[name]
        assert not any("mrope" in key for key in tensors.config.get("rope_parameters") or ())


def test_a_config_of_the_old_kind_has_no_text_config(tmp_path: Path) -> None:
    """Qwen2.5-VL is published with the values of the text model beside vision_config."""
    whole = random("qwen2_5_vl")
    folder = published(whole, tmp_path / "whole", old_names=True)
    config = read_config(folder)
    text = config.pop("text_config")
    rope = {"rope_scaling": {"type": "mrope", "mrope_section": [4, 2, 2]}, "rope_theta": 1e6}
    flat = {key: value for key, value in text.items() if key not in ("rope_parameters", "model_type")}
    write_json(folder / "config.json", flat | config | rope)
    assert torch.equal(logits(anatomy.load(folder)), logits(whole))


def test_a_head_that_is_stored_is_not_tied_whatever_config_json_says(tmp_path: Path) -> None:
    whole = random("mistral3")
    folder = changed(published(whole, tmp_path / "whole", old_names=False), {}, tie_word_embeddings=True)
    text = anatomy.load(folder)
    assert text.config.tie_word_embeddings is False
    assert torch.equal(logits(text), logits(whole))


def test_a_head_may_be_tied_by_the_text_config_alone(tmp_path: Path) -> None:
    whole = random("qwen3_vl tied")
    folder = published(whole, tmp_path / "whole", old_names=False)
    text = read_config(folder)["text_config"] | {"tie_word_embeddings": True}
    changed(folder, {}, tie_word_embeddings=False, text_config=text)
    assert torch.equal(logits(anatomy.load(folder)), logits(whole))


def test_tokens_that_stand_above_the_text_config_are_those_of_the_tower(tmp_path: Path) -> None:
    folder = changed(published(random("gemma3"), tmp_path / "whole", old_names=False), {}, eos_token_id=[1, 106])
    with Dense(folder) as tensors:
        assert tensors.config["eos_token_id"] == [1, 106] and tensors.config["bos_token_id"] == TEXT["bos_token_id"]


@pytest.mark.parametrize(
    ("name", "stranger", "message"),
    [
        (
            "gemma3",
            "model.audio_tower.weight",
            r"model\.audio_tower\.weight is neither of the text model nor of a part",
        ),
        ("gemma3", "model.language_model.layers.0.extra.weight", r"holds model\.layers\.0\.extra\.weight, which its"),
        ("qwen3_vl", "model.layers.0.mlp.up_proj.weight", r"model\.layers\.0\.mlp\.up_proj\.weight are one tensor"),
        ("qwen3_vl", "mtp.weight", r"mtp\.weight is neither of the text model"),
    ],
)
def test_a_tensor_that_is_not_known_is_refused_by_name(tmp_path: Path, name: str, stranger: str, message: str) -> None:
    folder = changed(published(random(name), tmp_path / "whole", old_names=False), {stranger: torch.zeros(3)})
    with pytest.raises((ModelError, CheckpointError), match=message):
        anatomy.load(folder)


@pytest.mark.parametrize("missing", ["model.language_model.norm.weight", "lm_head.weight"])
def test_a_tower_that_is_not_whole_is_refused_by_name(tmp_path: Path, missing: str) -> None:
    folder = changed(published(random("qwen3_vl"), tmp_path / "whole", old_names=False), {missing: None})
    with pytest.raises(CheckpointError, match=f"lacks {missing.replace('model.language_model', 'model')}"):
        anatomy.load(folder)


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "another text model": ({"text_config": {"model_type": "llama"}}, "the text model of mistral3 is 'llama', known is"),
    "many blocks": ({"text_config": TEXT | {"num_hidden_layers": 10**15}}, "num_hidden_layers 10+, the files hold"),
    "no config": ({"text_config": {"model_type": "mistral", "hidden_size": "wide"}}, "describes no model"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_describes_no_tower_is_refused(tmp_path: Path, case: str) -> None:
    config, message = CONFIGS[case]
    folder = changed(published(random("mistral3"), tmp_path / "whole", old_names=False), {}, **config)
    with pytest.raises((ModelError, CheckpointError), match=message):
        Dense(folder)


def test_a_template_that_only_the_processor_has(tmp_path: Path) -> None:
    write_json(tmp_path / "chat_template.json", {"chat_template": "{{ messages }}"})
    assert tower.template(tmp_path) == "{{ messages }}"
    write_json(tmp_path / "tokenizer_config.json", {"chat_template": "own"})
    assert tower.template(tmp_path) is None
    write_json(tmp_path / "tokenizer_config.json", {})
    (tmp_path / "chat_template.jinja").write_text("own")
    assert tower.template(tmp_path) is None
