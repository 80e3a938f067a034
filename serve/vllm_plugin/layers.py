"""Which layer of a model vLLM loads by which method of ours, or by its own."""

from typing import TYPE_CHECKING, Any

from torch import nn
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

from twofour.prune.format.quantization import Kind
from twofour.serve.vllm_plugin.dense import TwofourDenseHeadMethod, TwofourDenseMethod
from twofour.serve.vllm_plugin.dense_int8 import TwofourDenseInt8Method
from twofour.serve.vllm_plugin.from_dense import TwofourFromDenseMethod
from twofour.serve.vllm_plugin.head import TwofourHeadMethod
from twofour.serve.vllm_plugin.linear import TwofourLinearMethod

if TYPE_CHECKING:
    from twofour.serve.vllm_plugin.config import TwofourVllmConfig


EXPERT_LINEARS = 3  # of one expert: gate, up, down


def method(config: "TwofourVllmConfig", layer: nn.Module, prefix: str) -> Any:
    """None: the layer is vLLM's own."""
    if isinstance(layer, LinearBase):
        return _linear_method(config, config.linears(prefix), config.kind(prefix))
    if isinstance(layer, RoutedExperts) and config.stored is not None:
        _require_dense(config, prefix, EXPERT_LINEARS * layer.global_num_experts)
    if isinstance(layer, ParallelLMHead):
        return TwofourHeadMethod() if config.stored and config.stored.get("lm_head") else TwofourDenseHeadMethod()
    return None


def _linear_method(config: "TwofourVllmConfig", names: list[str], kind: Kind) -> Any:
    if kind.scheme == "dense":
        return TwofourDenseMethod()
    if kind.scheme == "dense-int8":
        return TwofourDenseInt8Method(names)
    return TwofourFromDenseMethod(names) if config.stored is None else TwofourLinearMethod(names, kind)


def _require_dense(config: "TwofourVllmConfig", prefix: str, linears: int) -> None:
    """Raise ValueError unless all linears of the experts are as in the dense model."""
    kinds = [kind for name, kind in config.named.items() if name.startswith(f"{prefix}.")]
    if sum(kind.scheme == "dense" for kind in kinds) < linears:
        raise ValueError(
            f"{prefix} is 2:4 or int8, wholly or in part, and vLLM multiplies by experts in kernels of its own, which "
            'are dense; run "twofour convert DIR -o OUT --to dense" and serve OUT, or serve DIR with "twofour serve"'
        )
