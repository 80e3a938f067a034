"""What a server does under load, and what 2:4 bought against dense.

In come addresses of servers, or models to serve. Out come documents: every figure with its spread, and the machine that
it was measured on. The rooms, from the bottom up: `load` (one server under one load), `traffic` (any load as a
schedule), `targets` (who is asked), `sweep` (running servers, many loads), `money`, `report` (a comparison for people),
`comparison` (arms in turns), `gate` (new against base),
`capacity` (how many machines), `kernels` (products by shape), `pruning` (presets), `engine`
(our own, timed by its parts), `decode` (bare steps beside other runtimes), `vllm` (vLLM offline), `gpu` (one session on
a GPU), `proof` (a mock that knows the truth) and `commands`. Beside them stand `hardware`, `stats`, `pareto`, `turns`,
`interrupt`, `child`, `meters` and `envelope`, which several rooms need, and `results`, the documents behind every
figure. Begin with `load.run`,
`comparison.compare` and `capacity.plan`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twofour.bench.capacity.plan import plan as plan
    from twofour.bench.comparison.compare import compare as compare

__all__ = ["compare", "plan"]

_FROM = {"compare": "comparison.compare", "plan": "capacity.plan"}


def __getattr__(name: str) -> Any:
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"twofour.bench.{_FROM[name]}"), name)
