"""The text tower of a multimodal model, as a causal language model of its own: its config.json and its tensors' names.

Known are kinds whose tower computes, for text alone, exactly what a causal language model of transformers computes: the
logits are the same bit for bit (tests/prune/format/test_tower.py). The rope of Qwen's models has three sections, for
time, height and width; text has the same position in all three, which makes it the rope of Qwen2 and Qwen3. The states
of images that Qwen3-VL adds in its first blocks (deepstack) are added at images alone.

transformers has changed the names of these tensors (`language_model.model.layers` became `model.language_model.layers`)
and checkpoints exist with both. A tensor is of the tower, or it is left behind with a part that is known by name; any
other is refused. So is a tower that is not whole: whoever loads it compares it with its config.json.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twofour.prune.errors import CheckpointError, ModelError, in_a_line
from twofour.prune.format.counts import require_bounded
from twofour.prune.format.folder import read_json

KEYS = ("vision_config", "audio_config", "text_config", "thinker_config")  # a config.json with one is multimodal
PROCESSOR_TEMPLATE, TEMPLATE = "chat_template.json", "chat_template.jinja"  # of a processor; of a tokenizer
FILES = (
    *("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json", "params.json"),
    PROCESSOR_TEMPLATE,
)
FROM_WHOLE = ("bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype")  # may stand above text_config
NOT_OF_TEXT = ("mrope_section", "mrope_interleaved", "type")  # of a rope: for images; the old name of its rope_type


@dataclass(frozen=True)
class Kind:
    """A kind of multimodal model.

    texts: the model_type that its text_config may have -> that of the causal language model.
    names: how names of the tower begin -> what they begin with there; the first that fits counts.
    left: how the names of other parts begin.
    """

    texts: Mapping[str, str]
    names: Mapping[str, str]
    left: tuple[str, ...]

    def renamed(self, stored: str) -> str | None:
        """The name of a tensor in the tower; None if it belongs to another part. Raises ModelError if to neither."""
        if stored.startswith(self.left):
            return None
        for before, after in self.names.items():
            if stored.startswith(before):
                return after + stored.removeprefix(before)
        raise ModelError(
            f"{stored} is neither of the text model nor of a part that is known to be left behind; give a text-only "
            "causal language model"
        )


_LLAVA_NAMES = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
    "lm_head.": "lm_head.",
}
_LLAVA_LEFT = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
_QWEN_NAMES = {"model.language_model.": "model.", "model.": "model.", "lm_head.": "lm_head."}
_QWEN_LEFT = ("visual.", "model.visual.")
KINDS: Mapping[str, Kind] = {
    "gemma3": Kind({"gemma3_text": "gemma3_text"}, _LLAVA_NAMES, _LLAVA_LEFT),
    "mistral3": Kind({kind: kind for kind in ("mistral", "ministral", "ministral3")}, _LLAVA_NAMES, _LLAVA_LEFT),
    "qwen2_5_vl": Kind({"qwen2_5_vl_text": "qwen2"}, _QWEN_NAMES, _QWEN_LEFT),
    "qwen3_vl": Kind({"qwen3_vl_text": "qwen3"}, _QWEN_NAMES, _QWEN_LEFT),
}


@dataclass(frozen=True)
class Tower:
    """A text tower that was taken out of a model.

    model, text: the architectures of the whole, and of what was taken. left: the parts left behind, with their bytes.
    """

    model: str
    text: str
    left: Mapping[str, int]

    @classmethod
    def of(cls, whole: Mapping[str, Any], text: Mapping[str, Any], left: Mapping[str, int]) -> "Tower":
        """Describe it. whole, text: config.json of the whole, and the one made of it."""
        stated = whole.get("architectures")
        model = stated[0] if isinstance(stated, list) and stated else whole["model_type"]
        return cls(str(model), text["architectures"][0], left)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"model": self.model, "text": self.text, "left_bytes": dict(self.left)}

    def __str__(self) -> str:
        left = f"left behind: {', '.join(self.left)} ({sum(self.left.values()) / 1e6:,.1f} MB)"
        return f"of {self.model} only the text model was taken, as {self.text}; {left}"


def kind_of(config: Mapping[str, Any]) -> Kind | None:
    """Return how the model of a config.json holds its tower; None if it is a text-only one, or of a kind not known."""
    kind = config.get("model_type")
    return KINDS.get(kind) if isinstance(kind, str) and any(key in config for key in KEYS) else None


def refuse_unknown(config: Mapping[str, Any]) -> None:
    """Raise ModelError for a multimodal model whose tower cannot be taken."""
    found = [key for key in KEYS if key in config]
    if found and kind_of(config) is None:
        raise ModelError(
            f"{config.get('model_type')} is multimodal ({found[0]} in config.json), and its text model cannot be taken "
            f"alone, as that of {', '.join(KINDS)} can; give a text-only causal language model"
        )


def text_config(config: Mapping[str, Any], kind: Kind, tensors: int, has_head: bool) -> dict[str, Any]:
    """Make the config.json of the tower. tensors: how many there are. has_head: whether one is lm_head's weight.

    Raises ModelError where the text model is of a kind that is not known, CheckpointError where config.json is damaged.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    for each in (config, config.get("text_config")):
        if isinstance(each, Mapping):
            require_bounded(each, {}, tensors)
    try:
        whole = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
        values = _values(config, whole, has_head)
        text = kind.texts.get(found := values.pop("model_type"))
        made = None if text is None else CONFIG_MAPPING[text].from_dict(values)
    except Exception as error:  # of a dozen kinds: a config.json can say anything
        raise CheckpointError(f"config.json describes no model ({in_a_line(error)}); take an intact copy") from error
    if made is None:
        raise ModelError(
            f"the text model of {config['model_type']} is {found!r}, known is {', '.join(kind.texts)}; give a "
            "text-only causal language model"
        )
    made.architectures = [CAUSAL[made.model_type]]
    written: dict[str, Any] = made.to_diff_dict()
    return written


def _values(config: Mapping[str, Any], whole: Any, has_head: bool) -> dict[str, Any]:
    """What the config of a tower says. A head that is stored is not tied, whatever config.json says."""
    values: dict[str, Any] = whole.get_text_config().to_dict()
    values |= {key: config[key] for key in FROM_WHOLE if config.get(key) is not None}
    rope = values.get("rope_parameters") or {}
    values["rope_parameters"] = {key: value for key, value in rope.items() if key not in NOT_OF_TEXT}
    is_tied = getattr(whole, "tie_word_embeddings", False) or values.get("tie_word_embeddings")
    values["tie_word_embeddings"] = bool(is_tied) and not has_head
    return values


def template(folder: Path) -> str | None:
    """Return the chat template that only the processor of a folder has; None where its tokenizer has one, or none has.

    A tokenizer does not read it there.
    """
    settings, stated = folder / "tokenizer_config.json", folder / PROCESSOR_TEMPLATE
    if not stated.exists() or (folder / TEMPLATE).exists():
        return None
    found = read_json(stated).get("chat_template")
    has_own = settings.exists() and bool(read_json(settings).get("chat_template"))
    return found if isinstance(found, str) and not has_own else None
