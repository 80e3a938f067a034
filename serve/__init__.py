"""Serve 2:4 and dense models.

`import twofour.serve` before `from_pretrained(path, variant="twofour")`: it registers the packed format with
transformers, when transformers is there already or as soon as `load_model` needs it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twofour.serve.app import create_app as create_app
    from twofour.serve.evaluation import evaluate as evaluate
    from twofour.serve.linear import SparseLinear as SparseLinear
    from twofour.serve.loading import load_model as load_model

__all__ = ["SparseLinear", "create_app", "evaluate", "load_model"]

_HOMES = {"SparseLinear": "linear", "create_app": "app", "evaluate": "evaluation", "load_model": "loading"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"twofour.serve.{_HOMES[name]}"), name)
