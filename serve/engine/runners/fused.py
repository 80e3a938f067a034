"""Models of the Llama family and Gemma 3 on a CPU: a step is one call of C++, over weights as the linears hold them.

Every token is computed by itself, in one order of additions that follows from its position: the same bits alone or
beside others, in one chunk or in several, on one thread or on more. The roundings are those that transformers has in
bfloat16. What such a model may not have, `misfit` says.
"""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import (
    Gemma3ForCausalLM,
    LlamaForCausalLM,
    MistralForCausalLM,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

from twofour.prune.errors import ModelError
from twofour.serve.engine.runners import Chunk
from twofour.serve.engine.runners.attention import LayerShape
from twofour.serve.engine.runners.generic import own_logits
from twofour.serve.engine.runners.verify import TRIAL_TOKENS, deviation, tolerance, trial_tokens
from twofour.serve.kernels import cpu, dense
from twofour.serve.kernels.cpu import CpuWeight
from twofour.serve.kernels.cpu import kernel as cpu_kernel
from twofour.serve.kernels.cpu.attention import DIMS, MOST_DIMS
from twofour.serve.kernels.cpu.kernel import CpuKernel
from twofour.serve.kernels.cpu.step import PIECE, TOKEN_GROUP, Chunks, StepLayer, StepLinear, StepModel, StepShape
from twofour.serve.kernels.dense import DenseKernel
from twofour.serve.kernels.dense_int8 import DenseInt8Kernel
from twofour.serve.model.dense_int8 import Int8Linear
from twofour.serve.model.linear import SparseLinear

ACTIVATIONS = {  # of the gate, by family
    LlamaForCausalLM: "silu",
    MistralForCausalLM: "silu",
    Qwen2ForCausalLM: "silu",
    Qwen3ForCausalLM: "silu",
    Gemma3ForCausalLM: "gelu_pytorch_tanh",
}
LANES, ROWS = 16, 8
ANGLES_AT_ONCE = 4096
UNFIT = ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention")  # of Gemma 3


class Unfit(Exception):
    """Why a model cannot be fused."""


def misfit(model: Any, block_size: int) -> str | None:
    """Say why this model cannot be fused, if it cannot. Its linears need no kernels yet."""
    try:
        for why in _misfits(model, block_size):
            return why
        for linear in _linears(model):
            _require_readable(linear)
    except Unfit as why:
        return str(why)
    return None


def _misfits(model: Any, block_size: int) -> Iterator[str]:
    config = model.config
    if (available := cpu.available()).startswith("none"):
        yield f"no CPU kernel ({available.removeprefix('none: ')})"
    if type(model) not in ACTIVATIONS:
        yield f"{type(model).__name__} is neither of the Llama family nor a Gemma 3"
        return
    if model.device.type != "cpu" or model.dtype != torch.bfloat16:
        yield f"it takes bfloat16 on the CPU, not {model.dtype} on {model.device}"
    if (activation := _activation(config)) != ACTIVATIONS[type(model)]:
        yield f"it takes {ACTIVATIONS[type(model)]}, not {activation}"
    if any(getattr(config, name, None) for name in UNFIT):
        yield f"it has none of {', '.join(UNFIT)}"
    dims: int = model.model.layers[0].self_attn.head_dim
    if dims % DIMS or dims > MOST_DIMS:
        yield f"it takes a head size that is a multiple of {DIMS} up to {MOST_DIMS}, not {dims}"
    if config.hidden_size % LANES:
        yield f"it takes a hidden size that is a multiple of {LANES}, not {config.hidden_size}"
    rotations = [turns for name, turns in model.model.rotary_emb.named_buffers() if name.endswith("inv_freq")]
    if any(2 * turns.numel() != dims for turns in rotations):
        yield "it takes a rotation of all dimensions of a head"
    if block_size % TOKEN_GROUP:
        yield f"it takes cache blocks of a multiple of {TOKEN_GROUP} tokens, not {block_size}"


def _activation(config: Any) -> str:
    name: str = config.hidden_activation if hasattr(config, "hidden_activation") else config.hidden_act
    return name


def _linears(model: Any) -> Iterator[nn.Module]:
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        yield from (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        yield from (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    yield model.lm_head


def _require_readable(linear: Any) -> None:
    """A 2:4 linear without a kernel must be one that the CPU kernel takes."""
    if linear.out_features % ROWS:
        raise Unfit(f"it takes linears with a multiple of {ROWS} rows, not {linear.out_features}")
    if not isinstance(linear, SparseLinear) or linear.choice:
        _weight(linear)
    elif why := cpu_kernel.refusal(linear.packed()):
        raise Unfit(why)


def _step_linear(linear: Any) -> StepLinear:
    """A linear over the bytes that it holds already."""
    return StepLinear(_weight(linear), linear.bias)


def _weight(linear: Any) -> CpuWeight:
    kernel = linear.choice.kernel if isinstance(linear, SparseLinear) and linear.choice else linear
    kernel = linear.kernel if isinstance(linear, Int8Linear) else kernel
    if isinstance(kernel, CpuKernel | DenseInt8Kernel):
        return kernel.weight
    if isinstance(kernel, DenseKernel | nn.Linear) and dense.takes(kernel.weight):
        return CpuWeight.from_dense(kernel.weight)
    raise Unfit(f"a linear of {linear.out_features} x {linear.in_features} is in a form that it does not read")


def _angles(model: Any, positions: int, kind: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """The rotary tables [positions, head dim / 2] of a kind of layers, as the model itself computes them."""
    x = torch.empty(1, 1, 1, dtype=model.dtype)
    parts = [
        model.model.rotary_emb(x, torch.arange(begin, min(begin + ANGLES_AT_ONCE, positions))[None], *kind)
        for begin in range(0, positions, ANGLES_AT_ONCE)
    ]
    cosines, sines = (torch.cat(each, dim=1)[0] for each in zip(*parts, strict=True))
    half = cosines.shape[1] // 2
    return cosines[:, :half].contiguous(), sines[:, :half].contiguous()


class FusedRunner:
    """Runs a model that `misfit` finds nothing against."""

    name: ClassVar[str] = "fused"
    piece: ClassVar[int] = PIECE
    shares_output = True

    def __init__(self, model: Any, shapes: dict[int, LayerShape], blocks: int, block_size: int, positions: int) -> None:
        self.model, self.block_size = model, block_size
        config, inner, is_gemma = model.config, model.model, isinstance(model, Gemma3ForCausalLM)
        self._shape = StepShape(
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            heads=config.num_attention_heads,
            key_heads=shapes[0].heads,
            head_dim=shapes[0].key_dim,
            vocabulary=config.vocab_size,
            is_gemma=is_gemma,
            norm_eps=config.rms_norm_eps,
            attention_scale=inner.layers[0].self_attn.scaling,
            embedding_scale=float(getattr(inner.embed_tokens, "embed_scale", torch.ones(())).to(model.dtype)),
        )
        with torch.inference_mode():
            kinds = [(layer.self_attn.layer_type,) if is_gemma else () for layer in inner.layers]
            angles = {kind: _angles(model, positions, kind) for kind in set(kinds)}
            self._step_model = StepModel(
                self._shape,
                [_layer(layer, angles[kinds[i]], shapes[i].window) for i, layer in enumerate(inner.layers)],
                inner.embed_tokens.weight,
                inner.norm.weight,
                _step_linear(model.lm_head),
                blocks,
                block_size,
            )
        self.best: Sequence[int] = ()

    def forward(self, chunks: Sequence[Chunk]) -> Tensor:
        wanted, first = list[int](), 0
        for chunk in chunks:
            wanted += [first + offset for offset in chunk.wanted]
            first += len(chunk.tokens)
        logits, self.best = self._step_model.step(
            [token for chunk in chunks for token in chunk.tokens],
            Chunks((chunk.start, len(chunk.tokens), chunk.blocks) for chunk in chunks),
            wanted,
        )
        return logits

    def verify(self) -> None:
        """Raise ModelError unless chunked prefill and decode give the model's own logits."""
        model = self._step_model
        count = min(TRIAL_TOKENS, model.positions, model.blocks * self.block_size)
        tokens = trial_tokens(self._shape.vocabulary, count)
        error = deviation(self.forward, lambda tokens: own_logits(self.model, tokens), tokens, self.block_size)
        if not error < tolerance(self.model.dtype):
            raise ModelError(f"its logits differ by {error:.1%} from the model's own")


def _layer(layer: Any, angles: tuple[Tensor, Tensor], window: int) -> StepLayer:
    attention, mlp, norms = layer.self_attn, layer.mlp, _norms(layer)
    projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    return StepLayer(
        attention_norm=layer.input_layernorm.weight,
        mlp_norm=norms[0],
        attention_after_norm=norms[1],
        mlp_after_norm=norms[2],
        query_norm=attention.q_norm.weight if hasattr(attention, "q_norm") else None,
        key_norm=attention.k_norm.weight if hasattr(attention, "k_norm") else None,
        linears=[_step_linear(each) for each in (*projections, mlp.gate_proj, mlp.up_proj, mlp.down_proj)],
        angles=angles,
        window=window,
    )


def _norms(layer: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Those before the MLP, after the attention and after the MLP: a Gemma has all three."""
    after_attention: Tensor = layer.post_attention_layernorm.weight
    if not hasattr(layer, "pre_feedforward_layernorm"):
        return after_attention, None, None
    return layer.pre_feedforward_layernorm.weight, after_attention, layer.post_feedforward_layernorm.weight
