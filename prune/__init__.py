"""Make the linears of a language model strictly 2:4, pack them, and say what that lost."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twofour.prune.audit import check as check
    from twofour.prune.packed import Packed as Packed
    from twofour.prune.packed import pack as pack
    from twofour.prune.recipe import PruneConfig as PruneConfig
    from twofour.prune.run import prune as prune

__all__ = ["Packed", "PruneConfig", "check", "pack", "prune"]

_HOMES = {"Packed": "packed", "PruneConfig": "recipe", "check": "audit", "pack": "packed", "prune": "run"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"twofour.prune.{_HOMES[name]}"), name)
