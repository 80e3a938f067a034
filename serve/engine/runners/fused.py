"""Models of the Llama family on a CPU: one call of C++ for a whole step, over the weights as the linears hold them.

Every token is computed by itself, in one order of additions that follows from its position: the same bits alone or
beside others, in one chunk or in several, on one thread or on more. The roundings are those that transformers has in
bfloat16. What such a model may not have, `misfit` says.
"""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM

from twofour.prune.errors import ModelError
from twofour.serve.engine.runners import Chunk
from twofour.serve.engine.runners.attention import LayerShape
from twofour.serve.engine.runners.generic import own_logits
from twofour.serve.engine.runners.verify import TRIAL_TOKENS, deviation, tolerance, trial_tokens
from twofour.serve.kernels import cpu, dense
from twofour.serve.kernels.cpu import CpuWeight
from twofour.serve.kernels.cpu.kernel import CpuKernel
from twofour.serve.kernels.cpu.step import PIECE, TOKEN_GROUP, Chunks, StepLayer, StepLinear, StepModel, StepShape
from twofour.serve.kernels.dense import DenseKernel
from twofour.serve.model.linear import SparseLinear

FAMILIES = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
LANES, ROWS, MOST_DIMS = 16, 8, 256
ANGLES_AT_ONCE = 4096


class Unfit(Exception):
    """Why a model cannot be fused."""


def misfit(model: Any, shapes: dict[int, LayerShape], block_size: int) -> str | None:
    """Say why this model cannot be fused, if it cannot."""
    try:
        for why in _misfits(model, shapes, block_size):
            return why
        for linear in _linears(model):
            _step_linear(linear)
    except Unfit as why:
        return str(why)
    return None


def _misfits(model: Any, shapes: dict[int, LayerShape], block_size: int) -> Iterator[str]:
    config = model.config
    if (available := cpu.available()).startswith("none"):
        yield f"no CPU kernel ({available.removeprefix('none: ')})"
    if type(model) not in FAMILIES:
        yield f"{type(model).__name__} is not of the Llama family"
    if model.device.type != "cpu" or model.dtype != torch.bfloat16:
        yield f"it takes bfloat16 on the CPU, not {model.dtype} on {model.device}"
    if config.hidden_act != "silu":
        yield f"it takes silu, not {config.hidden_act}"
    dims = {dim for shape in shapes.values() for dim in (shape.key_dim, shape.value_dim)}
    if len(dims) > 1 or min(dims) % LANES or min(dims) > MOST_DIMS:
        yield f"it takes one head size, a multiple of {LANES} up to {MOST_DIMS}, not {sorted(dims)}"
    if config.hidden_size % LANES:
        yield f"it takes a hidden size that is a multiple of {LANES}, not {config.hidden_size}"
    if any(shape.softcap for shape in shapes.values()):
        yield "it takes no cap on scores"
    if {2 * model.model.rotary_emb.inv_freq.numel()} != dims:
        yield "it takes a rotation of all dimensions of a head"
    if block_size % TOKEN_GROUP:
        yield f"it takes cache blocks of a multiple of {TOKEN_GROUP} tokens, not {block_size}"


def _linears(model: Any) -> Iterator[nn.Module]:
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        yield from (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        yield from (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    yield model.lm_head


def _step_linear(linear: Any) -> StepLinear:
    """A linear over the bytes that it holds already."""
    weight = _weight(linear)
    if weight.rows % ROWS:
        raise Unfit(f"it takes linears with a multiple of {ROWS} rows, not {weight.rows}")
    return StepLinear(weight, linear.bias)


def _weight(linear: Any) -> CpuWeight:
    kernel = linear.choice.kernel if isinstance(linear, SparseLinear) and linear.choice else linear
    if isinstance(kernel, CpuKernel):
        return kernel.weight
    if isinstance(kernel, DenseKernel | nn.Linear) and dense.takes(kernel.weight):
        return CpuWeight.from_dense(kernel.weight)
    raise Unfit(f"a linear of {linear.out_features} x {linear.in_features} is in a form that it does not read")


def _angles(model: Any, positions: int) -> tuple[Tensor, Tensor]:
    """The rotary tables [positions, head dim / 2], as the model itself computes them, whatever its kind of rope."""
    x = torch.empty(1, 1, 1, dtype=model.dtype)
    parts = [
        model.model.rotary_emb(x, torch.arange(begin, min(begin + ANGLES_AT_ONCE, positions))[None])
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
        config, attention = model.config, model.model.layers[0].self_attn
        self._shape = StepShape(
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            heads=config.num_attention_heads,
            key_heads=shapes[0].heads,
            head_dim=shapes[0].key_dim,
            vocabulary=config.vocab_size,
            norm_eps=config.rms_norm_eps,
            attention_scale=attention.scaling,
        )
        with torch.inference_mode():
            self._step_model = StepModel(
                self._shape,
                [_layer(layer, shapes[i].window) for i, layer in enumerate(model.model.layers)],
                model.model.embed_tokens.weight,
                model.model.norm.weight,
                _step_linear(model.lm_head),
                _angles(model, positions),
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


def _layer(layer: Any, window: int) -> StepLayer:
    attention, mlp = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    return StepLayer(
        attention_norm=layer.input_layernorm.weight,
        mlp_norm=layer.post_attention_layernorm.weight,
        query_norm=attention.q_norm.weight if hasattr(attention, "q_norm") else None,
        key_norm=attention.k_norm.weight if hasattr(attention, "k_norm") else None,
        linears=[_step_linear(each) for each in (*projections, mlp.gate_proj, mlp.up_proj, mlp.down_proj)],
        window=window,
    )
