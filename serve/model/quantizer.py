"""The packed format as transformers knows quantized models. Importing this registers it.

Import here only what is loaded when transformers loads its own quantizers: see register.py. The kernels are imported
when a model is loaded, for many a process that has both packages never loads one of ours.
"""

from collections.abc import Iterable, Iterator
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
from twofour.prune.format.quantization import Kind, named, require_known, stated
from twofour.prune.format.schemes import TWO_OF_FOUR
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
        self.schemes = stored.get("schemes")
        self.ignore = list(stored.get("ignore", ()))


@register_quantizer(VARIANT)
class TwofourQuantizer(HfQuantizer):  # type: ignore[misc]
    """Puts empty 2:4 linears into the model before loading, and gives them their kernels after it."""

    requires_calibration = True

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        from twofour.serve.model import stored_int8
        from twofour.serve.model.linear import SparseLinear

        experts.take_apart(model)
        linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        for name, kind in self._kinds(linears).items():
            if kind.scheme in TWO_OF_FOUR:
                dtype = checkpoint.value_dtype(kind.dtype)
                model.set_submodule(name, SparseLinear.empty(linears[name], dtype, kind.scale_columns))
            elif kind.scheme == "dense-int8":
                stored_int8.expect(model, name)
        if self.quantization_config.lm_head == "int8":
            stored_int8.expect_head(model)

    def _kinds(self, names: Iterable[str]) -> dict[str, Kind]:
        """How linears are stored, by their names in the model."""
        config = vars(self.quantization_config)
        known = named(config)
        stored = {name: next((each for each in experts.stored_names(name) if each in known), name) for name in names}
        kinds = stated(config, stored.values())
        return {name: kinds[each] for name, each in stored.items()}

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        if _kernels_later.get():
            return model
        from twofour.serve.model import stored_int8

        for name, linear in sparse_linears(model):
            if not linear.packed().values.is_meta:
                linear.prepare("auto", name, model.dtype)
        stored_int8.make_ready(model)
        return model

    def update_weight_conversions(self, weight_conversions: list[Any], *model: nn.Module) -> list[Any]:
        """Leave out what would join the dense weights of experts to one: here they are linears of their own.

        model: newer transformers hand it over.
        """
        kept = [each for each in weight_conversions if not experts.joins(getattr(each, "source_patterns", ()))]
        updated: list[Any] = super().update_weight_conversions(kept, *model)
        return updated

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
