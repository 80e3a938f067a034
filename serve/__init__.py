"""Serve 2:4 and dense models.

In comes a model folder, out come an OpenAI-compatible endpoint, a transformers model, or what a model lost. The rooms,
from the bottom up: `kernels` (y = x W^T for a packed W), `model` (a folder becomes a transformers model), `engine`
(continuous batching, in a process of its own), `edge` (what stands before any engine), `openai` (requests and answers),
`http` (the process that listens), `vllm_edge` (vLLM in the place of our engine), `writing` (a dense model's own text),
`evaluation`, `vllm_plugin` (2:4 in vLLM), `commands`. Beside them stand `config` (how the endpoint behaves) and `app`
(the application put together). Begin with `app` and `commands.serve`.

Importing this registers the packed format in transformers: `from_pretrained(path, variant="twofour")` then loads it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from twofour.serve.model.register import register

if TYPE_CHECKING:
    from twofour.serve.app import create_app as create_app
    from twofour.serve.evaluation.evaluate import evaluate as evaluate
    from twofour.serve.model.linear import SparseLinear as SparseLinear
    from twofour.serve.model.loading import load_model as load_model

__all__ = ["SparseLinear", "create_app", "evaluate", "load_model"]

_HOMES = {
    "SparseLinear": "model.linear",
    "create_app": "app",
    "evaluate": "evaluation.evaluate",
    "load_model": "model.loading",
}

register()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"twofour.serve.{_HOMES[name]}"), name)
