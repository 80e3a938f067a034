"""Make the linears of a language model strictly 2:4, pack them, and say what that lost.

In comes a dense model folder; out comes a packed one with its label. The rooms, from the bottom up: `machine`, `format`
(a 2:4 weight and the folder that holds it), `solving` (one weight), `model` (taken apart), `text` (to calibrate on),
`recovery` (kept weights trained), `policy` (what becomes 2:4 for a stated cost), `label` (what was lost), `run` (all of
it, in order), `commands`. Each imports only from those before it, and from the files beside them: `errors`, `progress`,
`out`, `config`. Begin with `run.prune`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twofour.prune.config import PruneConfig as PruneConfig
    from twofour.prune.format.packed import Packed as Packed
    from twofour.prune.format.packed import pack as pack
    from twofour.prune.label.check import check as check
    from twofour.prune.run.prune import prune as prune

__all__ = ["Packed", "PruneConfig", "check", "pack", "prune"]

_HOMES = {
    "Packed": "format.packed",
    "PruneConfig": "config",
    "check": "label.check",
    "pack": "format.packed",
    "prune": "run.prune",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"twofour.prune.{_HOMES[name]}"), name)
