"""Serve 2:4 and dense models.

Importing this teaches transformers the packed format: `from_pretrained(path, variant="twofour")` then loads it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from twofour.serve.register import register

if TYPE_CHECKING:
    from twofour.serve.app import create_app as create_app
    from twofour.serve.evaluation import evaluate as evaluate
    from twofour.serve.linear import SparseLinear as SparseLinear
    from twofour.serve.loading import load_model as load_model

__all__ = ["SparseLinear", "create_app", "evaluate", "load_model"]

_HOMES = {"SparseLinear": "linear", "create_app": "app", "evaluate": "evaluation", "load_model": "loading"}

register()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"twofour.serve.{_HOMES[name]}"), name)
