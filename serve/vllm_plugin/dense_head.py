"""lm_head that is dense in the checkpoint, tied to the embedding or not: on CPUs our kernel multiplies few tokens.

It reads the weight where it lies, in bfloat16, so that vLLM keeps no second copy of it in a layout of its own. Rows are
looked up, and weights tied, as vLLM does.
"""

from typing import Any

from torch import Tensor
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

from twofour.serve.kernels import dense, select
from twofour.serve.vllm_plugin.linear import as_in_our_server

CROSSOVER = "twofour_crossover_tokens"


class TwofourDenseHeadMethod(UnquantizedEmbeddingMethod):  # type: ignore[misc]
    def process_weights_after_loading(self, layer: Any) -> None:
        with as_in_our_server():
            crossover = select.dense_crossover(layer.weight.data, "auto", is_head=True)
        setattr(layer, CROSSOVER, crossover)
        if not crossover:
            super().process_weights_after_loading(layer)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:  # [..., in] -> [..., out]
        if crossover := getattr(layer, CROSSOVER):
            return dense.multiply(x, layer.weight, bias, crossover)
        logits: Tensor = super().apply(layer, x, bias)
        return logits
