"""The packed format as transformers knows quantized models. Importing this registers it.

Import here only what is loaded when transformers loads its own quantizers: see register.py. The kernels are imported
when a model is loaded, for many a process that has both packages never loads one of ours.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from twofour.prune.format import checkpoint
from twofour.prune.format.checkpoint import VARIANT
from twofour.prune.format.quantization import require_known
from twofour.prune.model import experts

if TYPE_CHECKING:
    from twofour.serve.model.linear import SparseLinear

_kernels_later = ContextVar("_kernels_later", default=False)


@contextmanager
def without_kernels() -> Iterator[None]:
    """Load linears without kernels: the caller moves the model first, or wants certain ones."""
    token = _kernels_later.set(True)
    try:
        yield
    finally:
        _kernels_later.reset(token)


@register_quantization_config(VARIANT)
class TwofourConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """What config.json says of a packed checkpoint. Raises CheckpointError if it is of an unknown kind."""

    def __init__(self, **stored: Any) -> None:
        require_known(stored)
        self.quant_method = VARIANT
        self.format_version = stored["format_version"]
        self.pattern = stored["pattern"]
        self.values_dtype = stored["values_dtype"]
        self.scale_columns = stored.get("scale_columns", 0)
        self.lm_head = stored.get("lm_head")
        self.ignore = list(stored.get("ignore", ()))


@register_quantizer(VARIANT)
class TwofourQuantizer(HfQuantizer):  # type: ignore[misc]
    """Puts empty 2:4 linears into the model before loading, and gives them their kernels after it."""

    requires_calibration = True

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        from twofour.serve.model import head
        from twofour.serve.model.linear import SparseLinear

        config = self.quantization_config
        experts.take_apart(model)
        dtype = checkpoint.value_dtype(config.values_dtype)
        for name, linear in list(model.named_modules()):
            if isinstance(linear, nn.Linear) and name not in config.ignore:
                model.set_submodule(name, SparseLinear.empty(linear, dtype, config.scale_columns))
        if config.lm_head == "int8":
            head.expect(model)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        if _kernels_later.get():
            return model
        from twofour.serve.model import head

        for name, linear in sparse_linears(model):
            if not linear.packed().values.is_meta:
                linear.prepare("auto", name, model.dtype)
        head.make_ready(model)
        return model

    def get_new_dtype(self, converter: Any, param: Any, dtype: torch.dtype | None) -> torch.dtype | None:
        """Cast floats as transformers would, but never to int8: that would cut them off in silence."""
        return None if dtype == torch.int8 else super().get_new_dtype(converter, param, dtype)

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def sparse_linears(model: nn.Module) -> Iterator[tuple[str, "SparseLinear"]]:
    """The 2:4 linears of a model by name."""
    from twofour.serve.model.linear import SparseLinear

    return ((name, module) for name, module in model.named_modules() if isinstance(module, SparseLinear))
