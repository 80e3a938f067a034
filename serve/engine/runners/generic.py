"""Any transformers causal model, with attention over paged blocks through `AttentionInterface`.

A model is accepted by what it does, not by its name: a trial step records what its attention layers ask for, and
`verify` compares the paged logits with the model's own. A model that would be computed wrongly is refused.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AttentionInterface

from twofour.prune.errors import ModelError
from twofour.serve.engine.runners import Chunk, compiled, tiles
from twofour.serve.engine.runners.attention import LayerShape, Rule
from twofour.serve.engine.runners.compiled import CompiledStep
from twofour.serve.engine.runners.paged import Layer, Split, Step, lay_out, parts
from twofour.serve.engine.runners.verify import TRIAL_TOKENS, deviation, tolerance, trial_tokens

ATTENTION = "twofour_paged"
# What some models give to their attention, and this one does not compute: sinks, added biases.
UNSUPPORTED = ("s_aux", "sinks", "position_bias", "head_mask")
GOLDEN = 0.618034  # its multiples, modulo 1, are far from each other, neighbouring ones most of all


@dataclass
class Trial:
    """Stands in for a step to learn what the attention layers ask for. Attends to nothing."""

    shapes: dict[int, LayerShape] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)

    def attend(self, layer_index: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        self.shapes[layer_index] = LayerShape(key.shape[1], key.shape[-1], value.shape[-1], rule.window, rule.softcap)
        return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[-1])

    def refuse(self, module: torch.nn.Module, mask: Tensor | None, extras: dict[str, Any]) -> None:
        """Note everything that paged attention would leave out in silence."""
        self.complaints += [f"{name} in its attention" for name in UNSUPPORTED if extras.get(name) is not None]
        if mask is not None:
            self.complaints.append("an attention mask of its own")
        if not getattr(module, "is_causal", True):
            self.complaints.append("attention that is not causal")


def paged_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    paged: Step | CompiledStep | Trial | None = None,
    **extras: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer; `paged` has come through the model's forward."""
    if paged is None:
        raise ModelError(f"{type(module).__name__} does not hand keyword arguments on to its attention function")
    if isinstance(paged, Trial):
        paged.refuse(module, attention_mask, extras)
    index: int = module.layer_idx  # type: ignore[assignment]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return paged.attend(index, query, key, value, Rule(scale, sliding_window or 0, softcap or 0.0)), None


AttentionInterface.register(ATTENTION, paged_attention)


def attention_layers(model: Any) -> dict[int, LayerShape]:
    """Switch a model to paged attention and return what its layers store. Raises ModelError if it cannot be served."""
    name = type(model).__name__
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        raise ModelError(f"{name} cannot restrict its logits to some positions; it cannot be served")
    trial = Trial()
    try:
        model.set_attn_implementation(ATTENTION)
        _call(model, torch.zeros(1, 2, dtype=torch.int64, device=model.device), paged=trial)
    except (ValueError, KeyError, TypeError, AttributeError, NotImplementedError) as error:
        raise ModelError(f"{name} does not work with a custom attention function ({error})") from error
    for complaint in trial.complaints or _contradictions(model.config.get_text_config(), trial.shapes):
        raise ModelError(f"{name} cannot be served: it has {complaint}")
    return trial.shapes


def _contradictions(config: Any, shapes: dict[int, LayerShape]) -> list[str]:
    """Differences between the layers in the configuration and those that asked for attention."""
    if config.num_hidden_layers != len(shapes):
        return [f"{config.num_hidden_layers} layers, but {len(shapes)} with attention"]
    kinds = getattr(config, "layer_types", None)
    windowed = {"full_attention": False, "sliding_attention": True}
    return [
        f"a layer {index} of the kind {kinds[index]} that asks for a window of {shape.window}"
        for index, shape in shapes.items()
        if kinds and windowed.get(kinds[index]) is not bool(shape.window)
    ]


def _call(
    model: Any, tokens: Tensor, positions: Tensor | None = None, wanted: Tensor | int = 1, **paged: Any
) -> Tensor:
    with torch.inference_mode():
        out = model(
            input_ids=tokens,
            position_ids=positions,
            logits_to_keep=wanted,
            use_cache=False,
            return_dict=True,
            **paged,
        )
    logits: Tensor = out.logits[0]  # [wanted, vocabulary]
    return logits


def own_logits(model: Any, tokens: list[int], attention: str = "sdpa") -> Tensor:
    """What a model that `attention_layers` has switched gives with an attention of its own, after the last token."""
    try:
        model.set_attn_implementation(attention)
        return _call(model, torch.tensor([tokens], device=model.device))
    finally:
        model.set_attn_implementation(ATTENTION)


class GenericRunner:
    """Runs a model; `attention_layers` gives its layers. The last block of its cache, `scratch`, is for no sequence.

    Attention is torch's, unless it is `compiled`, for a model that compiled.py `fits`.
    """

    name: ClassVar[str] = "generic"
    piece: ClassVar[int] = 0
    best = None

    def __init__(
        self, model: Any, shapes: dict[int, LayerShape], block_count: int, block_size: int, is_compiled: bool = False
    ) -> None:
        self.model, self.block_size, self.scratch = model, block_size, block_count
        self.device: torch.device = model.device
        self.shares_output = self.device.type != "cpu"  # where equal requests get equal bits: tiles.py
        self.split: Split = tiles.parts if self.device.type == "cpu" else parts
        self._own_attention = "eager" if any(s.softcap for s in shapes.values()) or not model._supports_sdpa else "sdpa"
        self._nothing = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._caches = compiled.caches(shapes, block_count, block_size) if is_compiled else None
        self.layers = {} if is_compiled else self._new_layers(shapes, block_count + 1)

    def _new_layers(self, shapes: dict[int, LayerShape], blocks: int) -> dict[int, Layer]:
        new = {"dtype": self.model.dtype, "device": self.device}
        return {
            index: Layer(
                torch.empty(blocks, self.block_size, shape.heads, shape.key_dim, **new),
                torch.empty(blocks, self.block_size, shape.heads, shape.value_dim, **new),
            )
            for index, shape in shapes.items()
        }

    def forward(self, chunks: Sequence[Chunk]) -> Tensor:
        step = self._lay_out(chunks)
        count = len(step.wanted)
        # With no logits at all the last linear would get no rows; one row is computed and dropped.
        return self.compute(step if count else replace(step, wanted=self._nothing))[:count]

    def _lay_out(self, chunks: Sequence[Chunk]) -> Step | CompiledStep:
        if self._caches is not None:
            return compiled.lay_out(chunks, self._caches)
        return lay_out(chunks, self.layers, self.block_size, self.device, self.split)

    def compute(self, step: Step | CompiledStep) -> Tensor:
        """Run the model over a step that is laid out, for the logits that it wants [wanted, vocabulary]."""
        return _call(self.model, step.tokens, step.positions, step.wanted, paged=step)

    def verify(self) -> None:
        """Raise ModelError unless chunked prefill and decode give the logits of the model's own attention."""
        error = self.deviation(self.forward)
        if not error < self.tolerance:
            raise ModelError(
                f"{type(self.model).__name__} cannot be served: over paged attention its logits differ by "
                f"{error:.1%} from its own"
            )

    @property
    def tolerance(self) -> float:
        """The largest deviation that can be rounding."""
        return tolerance(self.model.dtype)

    def deviation(self, forward: Callable[[Sequence[Chunk]], Tensor]) -> float:
        """How far `forward` is from the model's own logits, relative to their norm."""
        tokens = trial_tokens(self.model.config.get_text_config().vocab_size)
        return deviation(
            forward, partial(own_logits, self.model, attention=self._own_attention), tokens, self.block_size
        )

    def occupy(self) -> None:
        """Fill the whole cache: every block with what one prompt computes, times a factor that differs by block."""
        count = min(TRIAL_TOKENS, self.block_size)
        self.forward([Chunk(range(count), 0, [0], range(0), count)])
        for layer in self.layers.values():
            for cache in (layer.keys, layer.values):
                factors = torch.arange(len(cache), device=self.device).mul(GOLDEN).frac().add(0.5)
                cache[1:].copy_(cache[:1].expand_as(cache[1:]))
                cache.mul_(factors.to(cache.dtype)[:, None, None, None])
