"""What stays dense in the checkpoint, lm_head and linears: on CPUs our kernel multiplies by it in bfloat16.

It reads a weight where it lies, so that vLLM keeps none in a layout of its own. Rows of an embedding are looked up, and
weights tied, as vLLM does; and what the kernel does not take, or for so many tokens that torch is faster, is vLLM's.
"""

from typing import Any

from torch import Tensor
from vllm.model_executor.layers.linear import UnquantizedLinearMethod, register_weight_loader_v2_supported_method
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

from twofour.serve.kernels import dense, select
from twofour.serve.kernels.dense import DenseKernel
from twofour.serve.vllm_plugin.linear import apply, as_in_our_server, hold

CROSSOVER = "twofour_crossover_tokens"


class TwofourDenseHeadMethod(UnquantizedEmbeddingMethod):  # type: ignore[misc]
    """Logits are computed outside of what is compiled."""

    def process_weights_after_loading(self, layer: Any) -> None:
        setattr(layer, CROSSOVER, crossover_tokens(layer.weight.data, is_head=True))
        if not getattr(layer, CROSSOVER):
            super().process_weights_after_loading(layer)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:  # [..., in] -> [..., out]
        if crossover := getattr(layer, CROSSOVER):
            return dense.multiply(x, layer.weight, bias, crossover)
        logits: Tensor = super().apply(layer, x, bias)
        return logits


@register_weight_loader_v2_supported_method
class TwofourDenseMethod(UnquantizedLinearMethod):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.dense = UnquantizedLinearMethod()

    def process_weights_after_loading(self, layer: Any) -> None:
        weight = layer.weight.data
        if crossover := crossover_tokens(weight, is_head=False):
            hold(layer, DenseKernel(weight, None, crossover), weight.shape[0])
        else:
            self.dense.process_weights_after_loading(layer)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return apply(layer, x, bias, self.dense)


def crossover_tokens(weight: Tensor, is_head: bool) -> int:
    """Up to how many tokens our kernel multiplies; 0: none."""
    with as_in_our_server():
        return select.dense_crossover(weight, "auto", is_head)
